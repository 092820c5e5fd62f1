"""A bar of a part of a whole."""

from composer_tui.widgets.cells import Row, Span
from composer_tui.widgets.glyphs import Glyphs


def meter(
    part: float, cells: int, glyphs: Glyphs, *, mark: float | None = None, style: str = "line"
) -> Row:
    """``cells`` cells, filled for ``part`` of 0..1, with a mark where the highest part was."""
    cells = max(0, cells)
    filled = min(cells, max(0, round(part * cells)))
    bar = [glyphs.full] * filled + [glyphs.empty] * (cells - filled)
    if mark is None or not cells:
        return (
            Span("".join(bar[:filled]), style),
            Span("".join(bar[filled:]), "axis"),
        )
    place = min(cells - 1, max(0, round(mark * cells) - 1))
    if place < filled:
        place = min(filled, cells - 1)
    return (
        Span("".join(bar[:filled]), style),
        Span("".join(bar[filled:place]), "axis"),
        Span(glyphs.mark if place >= filled else "", "warn"),
        Span("".join(bar[max(place + 1, filled) :]), "axis"),
    )
