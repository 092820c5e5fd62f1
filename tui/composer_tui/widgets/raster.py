"""Vertical pixel intervals into character cells."""

from collections.abc import Sequence

from composer_tui.widgets.glyphs import PixelGrid

Pixels = Sequence[int | None]


def raster(top: Pixels, bottom: Pixels, width: int, height: int, grid: PixelGrid) -> list[bytes]:
    """``height`` rows of ``width`` masks for ``grid.glyphs``.

    ``top[i]`` and ``bottom[i]`` are the first and last pixel row of pixel column ``i`` (row 0 is
    the top), None where there is nothing. A column reaches out to its neighbour, so that a steep
    line has no holes.
    """
    rows = [bytearray(width) for _ in range(height)]
    fills = [
        [[sum(bits[a : b + 1]) for b in range(grid.rows)] for a in range(grid.rows)]
        for bits in grid.bits
    ]
    deepest = grid.rows - 1
    before: tuple[int, int] | None = None
    for column in range(min(width * grid.columns, len(top))):
        first, last = top[column], bottom[column]
        if first is None or last is None:
            before = None
            continue
        drawn_first, drawn_last = _joined(first, last, before)
        before = first, last
        cell, side = divmod(column, grid.columns)
        fill = fills[side]
        row, start = divmod(drawn_first, grid.rows)
        last_row, end = divmod(drawn_last, grid.rows)
        while row < last_row:
            rows[row][cell] |= fill[start][deepest]
            row, start = row + 1, 0
        rows[row][cell] |= fill[start][end]
    return [bytes(row) for row in rows]


def _joined(first: int, last: int, before: tuple[int, int] | None) -> tuple[int, int]:
    """The interval, grown to touch the one before it."""
    if before is None:
        return first, last
    if before[1] < first - 1:
        return before[1] + 1, last
    if before[0] > last + 1:
        return first, before[0] - 1
    return first, last
