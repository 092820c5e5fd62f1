"""Text from outside cannot command a terminal."""

import re
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composer_engine.protocol import (
    AlertRaised,
    Channels,
    Device,
    Event,
    Logged,
    RunFailed,
    RunStarted,
    SampleGenerated,
    StepCompleted,
)
from composer_tui.runs.sanitise import MAX_BLOCK, clean, clean_block, clean_event
from tests.strategies import events

FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
NASTY = st.text(
    st.one_of(
        st.sampled_from(
            "\x1b\x9b\x9d\x90[]PX^_;0123m\\\x07\x9c\r\n\t\x00\u202e\u2066\ud800\u200d a"
        ),
        st.characters(),
    )
)


@given(NASTY)
def test_clean_text_holds_no_control_character_and_stays_clean(text: str) -> None:
    cleaned = clean(text)
    assert not FORBIDDEN.search(cleaned)
    assert not any(unicodedata.category(c) in {"Cc", "Cs"} for c in cleaned)
    assert clean(cleaned) == cleaned


@given(NASTY)
def test_a_clean_block_holds_only_newlines_and_stays_clean(text: str) -> None:
    block = clean_block(text)
    assert not FORBIDDEN.search(block.replace("\n", ""))
    assert clean_block(block) == block


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jwiped", "wiped"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;new title\x07text", "text"),
        ("\x1b]52;c;ZXZpbA==\x1b\\text", "text"),
        ("\x1b]52;c;never ended", ""),
        ("\x9d52;c;ZXZpbA==\x9ctext", "text"),
        ("\x9b31mred", "red"),
        ("\x1bP1$r0m\x1b\\text", "text"),
        ("\x1b(0qqq\x1b(B", "qqq"),
        ("\x1b\x1b[0m[31mx", "[31mx"),
        ("cut \x1b[31", "cut "),
        ("user\u202egnp.exe", "usergnp.exe"),
        ("\u2066isolated\u2069", "isolated"),
        ("👩\u200d🚀", "👩\u200d🚀"),
        ("nul\x00l", "null"),
        ("lone \ud83d half", "lone \ufffd half"),
        (" 10%|#   |\r 20%|##  |\r 30%|### |", " 30%|### |"),
        (" 30%|### |\r", " 30%|### |"),
        ("windows\r\n", "windows"),
        ("a\tb", "a    b"),
        ("two\nlines", "two lines"),
        ("[/markup] stays", "[/markup] stays"),
        ("žluťoučký 深層 ✓", "žluťoučký 深層 ✓"),
    ],
)
def test_a_hostile_line_becomes_a_harmless_one(text: str, shown: str) -> None:
    assert clean(text) == shown


@pytest.mark.parametrize("unit", ["x", "\x1b[", "\x1b]", "\x1b[0", "\r", "\x9b", "\u202e", "\t"])
def test_ten_megabytes_cost_their_length_and_not_its_square(unit: str) -> None:
    text = unit * (10_000_000 // len(unit))
    begun = time.process_time()
    clean(text)
    assert time.process_time() - begun < 8


def test_a_block_keeps_its_lines_and_is_cut_where_it_is_too_long() -> None:
    assert clean_block("a\x1b[31m\nb\rc\r\nd") == "a\nc\nd"
    cut = clean_block("\t" * MAX_BLOCK * 3)
    assert len(cut) == MAX_BLOCK
    assert cut.endswith("…")


@pytest.mark.parametrize(
    "event",
    [
        RunStarted(
            run_id="\x1b[2J",
            total_steps=1,
            model="m\x9b2J",
            parameters=1,
            device=Device(kind="\x07cpu", name="\x1b]0;x\x07", count=1, total_bytes=1),
            engine_version="1\x00",
            config_hash="\x7f",
        ),
        StepCompleted(step=1, loss=None, channels=Channels(), metrics={"k\x1b[31ml": 1.0}),
        SampleGenerated(step=1, prompt="a\nb\x1b[2J", completion="\x9b2J", reward=None),
        AlertRaised(rule="oom", level="error", message="\x1b]52;c;eA==\x07"),
        Logged(level="info", message="a\nb\x1b[2J"),
        RunFailed(kind="engine", message="\x1b[2J", hint="\x9b2J", detail="1\n2\x1b[2J"),
    ],
)
def test_every_string_of_an_event_is_cleaned(event: Event) -> None:
    assert not FORBIDDEN.search("".join(strings_of(clean_event(event))).replace("\n", ""))


def strings_of(value: object) -> list[str]:
    """Every string inside a value, keys too."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in strings_of(part)]
    if isinstance(value, tuple):
        return [text for part in value for text in strings_of(part)]
    fields: tuple[str, ...] = getattr(value, "__struct_fields__", ())
    return [text for name in fields for text in strings_of(getattr(value, name))]


@given(events())
def test_cleaning_an_event_twice_changes_nothing(event: Event) -> None:
    assert clean_event(clean_event(event)) == clean_event(event)
