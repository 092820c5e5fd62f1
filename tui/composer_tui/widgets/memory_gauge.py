"""Memory in use, its peak, and what the accelerators are doing."""

from collections.abc import Sequence

from composer_engine.protocol import DeviceSample, MemorySampled
from composer_tui.numbers import memory
from composer_tui.runs.series import Series, bucket_for
from composer_tui.runs.table import StepTable
from composer_tui.widgets.cells import Row, Span, as_many_as_fit, row_cells
from composer_tui.widgets.glyphs import Glyphs
from composer_tui.widgets.meter import meter
from composer_tui.widgets.pane import Pane
from composer_tui.widgets.spark import spark

_NEARLY_FULL = 0.95
_LEAST_BAR = 6


def highest(series: Series | None) -> int | None:
    """The largest of a series of sizes; None without one. It costs the same for any length."""
    if series is None or not len(series):
        return None
    found = series.envelope(0, bucket_for(len(series), 1), 1).high[0]
    return None if found is None else int(found)


def gauge_rows(
    sample: MemorySampled | None, history: StepTable, width: int, height: int, glyphs: Glyphs
) -> list[Row]:
    """A bar with its words, then history and devices as far as the height allows."""
    if sample is None:
        return [(Span("no memory sample yet", "dim"),)]
    on_device = sample.allocated_bytes is not None
    used = sample.allocated_bytes if on_device else sample.host_rss_bytes
    total = sample.total_bytes if on_device else sample.host_total_bytes
    name = "allocated_bytes" if on_device else "host_rss_bytes"
    peak = sample.peak_bytes if on_device else highest(history.series.get(name))
    rows = [_bar("vram" if on_device else "host", used, total, peak, width, glyphs)]
    series = history.series.get(name)
    if height > 1 and series is not None:
        reserved = f"reserved {memory(sample.reserved_bytes)}" if sample.reserved_bytes else ""
        words = f"{reserved or 'so far'}  "
        rows.append((Span(words, "dim"), Span(spark(series, width - len(words), glyphs), "line")))
    rows += [_device(device, width) for device in sample.devices]
    return rows[:height]


def _bar(
    name: str, used: int | None, total: int | None, peak: int | None, width: int, glyphs: Glyphs
) -> Row:
    part = used / total if used is not None and total else 0.0
    style = "warn" if part >= _NEARLY_FULL else "line"
    lead: Row = (Span(f"{name} ", "dim"),)
    room = width - row_cells(lead) - _LEAST_BAR - 1
    words: list[Row] = [_used(used, total, room, glyphs)]
    if total:
        words.append((Span(f"{part:.0%}", "warn" if part >= _NEARLY_FULL else "text"),))
    if peak is not None:
        words.append((Span(f"peak {memory(peak)}", "dim"),))
    shown = as_many_as_fit(words, Span("  "), room)
    bar = meter(
        part,
        width - row_cells(lead) - row_cells(shown) - 1,
        glyphs,
        mark=peak / total if peak is not None and total else None,
        style=style,
    )
    return (*lead, *shown, Span(" "), *bar)


def _used(used: int | None, total: int | None, room: int, glyphs: Glyphs) -> Row:
    """``823 MiB / 23.5 GiB``; where that does not fit, ``823 MiB``."""
    words = memory(used, glyphs.missing)
    if not total:
        return (Span(words, "strong"),)
    value, _, unit = words.partition(" ")
    of = memory(total)
    if of.endswith(f" {unit}"):
        words = value
    row = (Span(words, "strong"), Span(f" / {of}"))
    return row if row_cells(row) <= room else (Span(f"{value} {unit}", "strong"),)


def _device(device: DeviceSample, width: int) -> Row:
    parts: list[Row] = [(Span(f"gpu {device.index}", "dim"),)]
    if device.utilization is not None:
        parts.append((Span(f"util {device.utilization:.0%}"),))
    if device.power_watts is not None:
        parts.append((Span(f"{device.power_watts:.0f} W"),))
    if device.temperature_c is not None:
        parts.append((Span(f"{device.temperature_c:.0f} C"),))
    if device.used_bytes is not None:
        parts.append((Span(f"{memory(device.used_bytes)} used", "dim"),))
    return as_many_as_fit(parts, Span("  "), width)


class MemoryGauge(Pane):
    """The newest memory sample of the run."""

    title = "memory"
    help_text = (
        "Memory in use now against what there is: the accelerator's where the run has one, the "
        "host's otherwise. The mark in the bar and the word peak are the most it ever was."
    )

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._now: MemorySampled | None = None
        self._history = StepTable()

    def show(self, sample: MemorySampled | None, history: StepTable) -> None:
        """Show a sample and the samples before it."""
        self._now, self._history = sample, history
        self.redraw()

    def content(self, width: int, height: int) -> Sequence[Row]:
        return gauge_rows(self._now, self._history, width, height, self.glyphs)
