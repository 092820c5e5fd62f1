"""One re-render of a chart of 120 x 40 cells, at a thousand to a million points."""

import math
import random
import statistics
import time

from composer_tui.runs.series import Series
from composer_tui.runs.table import StepColumn
from composer_tui.widgets.band import band_rows
from composer_tui.widgets.curve import View
from composer_tui.widgets.glyphs import UNICODE
from tests.bench.harness import COLUMNS, LINES, report

SIZES = (1_000, 10_000, 100_000, 1_000_000)
REPEATS = 31


def noisy_loss(points: int) -> tuple[Series, StepColumn]:
    rng = random.Random(points)
    series, steps = Series(), StepColumn()
    series.extend([2.5 * math.exp(-i / points) + abs(rng.gauss(0, 0.2)) for i in range(points)])
    steps.extend(range(1, points + 1))
    return series, steps


def render_seconds(series: Series, steps: StepColumn, view: View) -> float:
    times = []
    scale = None
    for _ in range(REPEATS):
        began = time.process_time()
        scale = band_rows(series, steps, COLUMNS, LINES, view, UNICODE, held=scale).scale
        times.append(time.process_time() - began)
    return statistics.median(times)


def main() -> None:
    plain, smoothed = {}, {}
    for points in SIZES:
        series, steps = noisy_loss(points)
        plain[points] = round(render_seconds(series, steps, View(live=True)) * 1e3, 2)
        smoothed[points] = round(render_seconds(series, steps, View(smoothing=0.9)) * 1e3, 2)
    report(
        bench="chart",
        cells=[COLUMNS, LINES],
        cpu_milliseconds_by_points=plain,
        cpu_milliseconds_by_points_smoothed=smoothed,
        largest_to_smallest=round(plain[SIZES[-1]] / plain[SIZES[0]], 2),
        target_milliseconds=3,
    )


if __name__ == "__main__":
    main()
