"""A series in one line of bars."""

from composer_tui.runs.series import Series, bucket_for
from composer_tui.widgets.glyphs import Glyphs


def spark(series: Series, cells: int, glyphs: Glyphs) -> str:
    """Exactly ``cells`` bars over the whole series, spaces where nothing is known.

    Oldest left, newest right; a series that never moves is flat and low.
    """
    points = len(series)
    if cells <= 0 or not points:
        return " " * max(0, cells)
    bucket = bucket_for(points, cells)
    means = series.envelope(0, bucket, -(-points // bucket)).mean
    finite = [mean for mean in means if mean is not None]
    if not finite:
        return " " * cells
    low, high = min(finite), max(finite)
    scale = (len(glyphs.spark) - 1) / (high - low) if high > low else 0.0
    bars = [
        " " if mean is None else glyphs.spark[int((mean - low) * scale + 0.5)] for mean in means
    ]
    return "".join([bars[cell * len(bars) // cells] for cell in range(cells)])
