"""Rows of styled text, measured in terminal cells, and the smallest part of a row that changed.

A row is a tuple of spans; a span names its style (``axis``, ``good`` ...), and the style sheet says
what that looks like. Text in a row has no control characters: what comes from outside is cleaned
where it is read.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.cells import cell_len, chop_cells, set_cell_size

from composer_tui.widgets.glyphs import Glyphs


class Span(NamedTuple):
    """Text in one style."""

    text: str
    style: str = "text"


Row = tuple[Span, ...]


def row_cells(row: Row) -> int:
    """How many cells a row takes."""
    return sum(cell_len(span.text) for span in row)


def cut(text: str, cells: int, ellipsis: str = "…") -> str:
    """At most ``cells`` cells of text; the ellipsis says that there was more."""
    if cell_len(text) <= cells:
        return text
    return set_cell_size(text, max(0, cells - 1)).rstrip() + ellipsis if cells > 0 else ""


def cut_middle(text: str, cells: int, tail: int, ellipsis: str = "…") -> str:
    """At most ``cells`` cells of text that keep its last characters, which tell runs apart."""
    if cell_len(text) <= cells or cells <= 2 * tail:
        return cut(text, cells, ellipsis)
    last = text[-tail:]
    return cut(text, cells - cell_len(last), ellipsis) + last


def fit(text: str, cells: int, ellipsis: str = "…") -> str:
    """Exactly ``cells`` cells: cut, or padded on the right."""
    return set_cell_size(cut(text, cells, ellipsis), max(0, cells))


def fit_right(text: str, cells: int, ellipsis: str = "…") -> str:
    """Exactly ``cells`` cells: cut, or padded on the left."""
    text = cut(text, cells, ellipsis)
    return " " * (cells - cell_len(text)) + text


def fit_row(row: Row, cells: int, ellipsis: str = "…") -> Row:
    """A row of exactly ``cells`` cells."""
    spans: list[Span] = []
    left = cells
    for span in row:
        size = cell_len(span.text)
        if size > left:
            spans.append(Span(cut(span.text, left, ellipsis), span.style))
            left -= cell_len(spans[-1].text)
            break
        spans.append(span)
        left -= size
    if left > 0:
        spans.append(Span(" " * left))
    return tuple(spans)


def apart(left: Row, right: Row, cells: int, fill: Span | None = None) -> Row:
    """Left and right at the ends of ``cells`` cells; where both do not fit, left alone is cut."""
    free = cells - row_cells(left) - row_cells(right)
    if free < 1 and right:
        return apart(left, (), cells, fill)
    if free < 0:
        return fit_row(left, cells)
    if free == 0:
        return left
    character, style = fill or (" ", "text")
    return (*left, Span(character * free, style), *right)


def joined(rows: Iterable[Row], separator: Span) -> Row:
    """Rows in one row, with the separator between those that are not empty."""
    spans: list[Span] = []
    for row in rows:
        if row and spans:
            spans.append(separator)
        spans.extend(row)
    return tuple(spans)


def as_many_as_fit(parts: Iterable[Row], separator: Span, cells: int) -> Row:
    """The first parts that fit whole: a label is left out rather than cut."""
    kept: list[Row] = []
    for part in parts:
        if not part:
            continue
        if row_cells(joined([*kept, part], separator)) > cells:
            break
        kept.append(part)
    return joined(kept, separator)


def wrap(source: str, cells: int) -> list[str]:
    """Text in lines of at most ``cells`` cells: broken at spaces, and inside longer words."""
    lines: list[str] = []
    for paragraph in source.split("\n"):
        text = paragraph.lstrip(" ")
        line = " " * min(len(paragraph) - len(text), cells // 2)  # code keeps its indentation
        for word in text.split(" "):
            longer = f"{line} {word}" if line.strip() else line + word
            if cell_len(longer) <= cells:
                line = longer
                continue
            if line.strip():
                lines.append(line)
            *whole, line = chop_cells(word, max(1, cells)) or [""]
            lines.extend(whole)
        lines.append(line)
    return lines


def framed(
    rows: Sequence[Row],
    width: int,
    height: int,
    glyphs: Glyphs,
    *,
    title: Row = (),
    right: Row = (),
    note: Row = (),
    style: str = "frame",
) -> list[Row]:
    """``height`` rows of ``width`` cells: a box around ``rows``, with words in its edges."""
    start, edge, stop, side, bottom, end = tuple(glyphs.box)
    inner = width - 2
    above = apart(
        (Span(edge + " ", style), *title, Span(" ", style)),
        (Span(" ", style), *right, Span(" " + edge, style)) if right else (),
        inner,
        Span(edge, style),
    )
    below = apart(
        (Span(edge + " ", style), *note, Span(" ", style)) if note else (),
        (),
        inner,
        Span(edge, style),
    )
    wall = Span(side, style)
    blank = (Span(" " * inner),)
    body = [
        (wall, *(fit_row(rows[y], inner) if y < len(rows) else blank), wall)
        for y in range(height - 2)
    ]
    top = (Span(start, style), *above, Span(stop, style))
    return [top, *body, (Span(bottom, style), *below, Span(end, style))]


def changed_cells(old: Row, new: Row) -> tuple[int, int] | None:
    """The half-open range of cells in which two rows of equal width differ; None where they do not.

    A row with characters that are not one cell wide counts as changed whole: a repaint must not
    begin in the middle of such a character.
    """
    if old == new:
        return None
    before, after = "".join(s.text for s in old), "".join(s.text for s in new)
    size = len(after)
    if len(before) != size or cell_len(before) != size or cell_len(after) != size:
        return 0, max(cell_len(before), cell_len(after))
    first = _equal_prefix(old, new)
    last = size - _equal_prefix(_mirrored(old), _mirrored(new))
    return first, max(last, first + 1)


def _mirrored(row: Row) -> Row:
    return tuple(Span(span.text[::-1], span.style) for span in reversed(row))


def _equal_prefix(old: Row, new: Row) -> int:
    """Characters at the start that are equal in text and style."""
    equal = 0
    for a, b in zip(old, new, strict=False):
        if a == b:
            equal += len(a.text)
            continue
        if a.style == b.style:
            shorter = min(len(a.text), len(b.text))
            equal += next((i for i in range(shorter) if a.text[i] != b.text[i]), shorter)
        break
    return equal
