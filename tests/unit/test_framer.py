"""Lines come out whole, however the bytes are cut, in bounded memory."""

import random
import time
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from composer_tui.runs.framer import KEPT_OF_A_LONG_LINE, Framer, Truncated
from composer_tui.runs.tail import Tail


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """The data in pieces that end at the places, wherever those fall."""
    ends = sorted({min(place, len(data)) for place in places} | {len(data)})
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@given(st.binary(max_size=400), st.lists(st.integers(0, 400)))
def test_any_cut_of_the_bytes_gives_the_same_lines(data: bytes, places: list[int]) -> None:
    framer = Framer()
    lines = [line for piece in cut(data, places) for line in framer.feed(piece)]
    *whole, rest = data.split(b"\n")
    assert lines == whole
    assert framer.partial == rest
    assert framer.flush() == (rest or None)
    assert framer.flush() is None


@given(st.lists(st.integers(0, 40)), st.lists(st.integers(0, 1000)))
def test_a_line_too_long_is_cut_counted_and_the_next_is_whole(
    lengths: list[int], places: list[int]
) -> None:
    data = b"".join(b"x" * length + b"\n" for length in lengths)
    framer = Framer(max_line=20)
    lines = [line for piece in cut(data, places) for line in framer.feed(piece)]
    assert [len(line) for line in lines] == [min(length, 20) for length in lengths]
    too_long = [length > 20 for length in lengths]
    assert [isinstance(line, Truncated) for line in lines] == too_long
    assert framer.truncated_lines == sum(too_long)


def test_ten_megabytes_in_one_line_cost_little_time_and_no_memory() -> None:
    framer = Framer()
    begun = time.process_time()
    for _ in range(2560):
        assert framer.feed(b"x" * 4096) == []
        assert len(framer.partial) <= (1 << 20) + 4096
    [long, next_line] = framer.feed(b"end\n{}\n")
    assert time.process_time() - begun < 2
    assert (len(long), next_line) == (KEPT_OF_A_LONG_LINE, b"{}")
    assert framer.dropped_bytes == 2560 * 4096 + 3 - KEPT_OF_A_LONG_LINE


def test_a_progress_bar_never_grows() -> None:
    framer = Framer(max_line=1000, overwriting=True)
    rng = random.Random(0)
    for i in range(10_000):
        bar = f"{i:6d}|####".encode()
        framer.feed(rng.choice([b"\r" + bar, bar + b"\r", b"\r" + bar + b"\r"]))
        assert len(framer.partial) < 40
    assert b"9999|####" in framer.partial
    assert framer.feed(b"\rdone\n") == [b"done"]
    assert framer.truncated_lines == 0


def test_a_carriage_return_before_a_newline_overwrites_nothing() -> None:
    framer = Framer(overwriting=True)
    assert framer.feed(b"kept\r") == []
    assert framer.feed(b"\n") == [b"kept\r"]


def test_a_tail_reads_what_a_file_gains_from_before_there_is_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    tail = Tail(path)
    assert tail.read() == b""
    path.write_bytes(b"one")
    assert tail.read() == b"one"
    with path.open("ab") as file:
        file.write(b"two")
    assert tail.read(2) == b"tw"
    tail.close()
    assert (tail.read(), tail.read(), tail.offset) == (b"o", b"", 6)
    assert tail.resets == 0
    tail.close()


def test_a_file_that_is_cut_or_replaced_is_read_again_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"long content")
    tail = Tail(path)
    tail.read()
    path.write_bytes(b"short")
    assert (tail.read(), tail.resets) == (b"short", 1)
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / "other").replace(path)
    assert (tail.read(), tail.resets) == (b"other", 2)
    path.unlink()
    assert (tail.read(), tail.resets) == (b"", 2)
    tail.close()


def test_a_name_that_is_no_file_gives_nothing(tmp_path: Path) -> None:
    tail = Tail(tmp_path)
    assert tail.read() == b""
    tail.close()
