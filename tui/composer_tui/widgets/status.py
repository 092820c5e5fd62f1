"""A run's state as a glyph, a word and a colour: never the colour alone."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from composer_engine.protocol import EndedBy
from composer_tui.runs.state import ENDED, Life
from composer_tui.runs.words import life_word
from composer_tui.widgets.cells import Row, Span
from composer_tui.widgets.glyphs import Glyphs


class Status(NamedTuple):
    """What stands for a state; ``glyph`` names a field of `Glyphs`, ``style`` a style."""

    glyph: str
    word: str
    style: str


_STATUS: Mapping[Life, Status] = MappingProxyType(
    {
        "launching": Status("waiting", "launching", "busy"),
        "loading": Status("waiting", "loading", "busy"),
        "training": Status("live", "training", "good"),
        "saving": Status("saving", "saving", "busy"),
        "finished": Status("done", "finished", "good"),
        "stopped": Status("stopped", "stopped", "warn"),
        "failed": Status("failed", "failed", "bad"),
    }
)
STOPPING = Status("saving", "stopping", "warn")


def status_of(life: Life, *, stopping: bool = False, ended_by: EndedBy = "") -> Status:
    """A run that was asked to stop is stopping until it has ended.

    One that a guard rail stopped names it: ``ended_by``, which may be the kind of its failure, too.
    """
    if stopping and life not in ENDED:
        return STOPPING
    status, word = _STATUS[life], life_word(life, ended_by)
    return status if word == status.word else Status(status.glyph, word, "bad")


def status_row(status: Status, glyphs: Glyphs) -> Row:
    """``● training``."""
    return (Span(f"{getattr(glyphs, status.glyph)} {status.word}", status.style),)
