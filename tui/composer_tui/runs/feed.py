"""Everything a viewer knows of one run, read from its folder a chunk at a time.

Each line is decoded and cleaned once. A chunk's steps are stored together, column by column:
that, and not the decoding, is what ingestion would otherwise spend its time on.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from operator import itemgetter

from composer_engine.protocol import (
    Evaluated,
    Event,
    MemorySampled,
    SampleGenerated,
    StepCompleted,
    Unrecognized,
)
from composer_tui.runs.folder import RunFolder
from composer_tui.runs.framer import Framer
from composer_tui.runs.journal import read_line
from composer_tui.runs.log import LogLine, LogRing, guess_level
from composer_tui.runs.sanitise import clean, clean_event
from composer_tui.runs.state import RunState, advance
from composer_tui.runs.table import StepTable
from composer_tui.runs.tail import Tail
from composer_tui.runs.words import log_lines

STEP_COLUMNS = (
    "loss",
    "channel/grpo",
    "channel/sdpo",
    "channel/replay",
    "reward_mean",
    "reward_std",
    "grad_norm",
    "learning_rate",
    "step_seconds",
    "seconds/rollout",
    "seconds/loss",
    "seconds/optimizer",
    "tokens_per_second",
    "mfu",
)
MEMORY_COLUMNS = (
    "allocated_bytes",
    "reserved_bytes",
    "peak_bytes",
    "total_bytes",
    "host_rss_bytes",
    "host_total_bytes",
)
DEVICE_COLUMNS = ("utilization", "power_watts", "temperature_c", "used_bytes", "total_bytes")
SAMPLES_KEPT = 50
_NAMES_KEPT = 4096

Column = list[float | None]


class RunFeed:
    """One run as its folder tells it, from the first byte to the newest.

    ``state``, ``table``, ``memory``, ``evaluations``, ``log``, ``samples`` and ``progress`` (the
    line of log.txt that is still being written, such as a progress bar) only change inside `poll`,
    and ``version`` grows whenever one of them has. All text in them is clean.

    ``bad_lines`` are lines of events.jsonl that are no event; ``truncated_lines`` were too long;
    ``resets`` counts how often a file was cut or replaced.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.version = 0
        self.caught_up = False
        self.state = RunState()
        self.table = StepTable(STEP_COLUMNS)
        self.memory = StepTable(MEMORY_COLUMNS)
        self.evaluations = StepTable()
        self.log = LogRing()
        self.samples: deque[SampleGenerated] = deque(maxlen=SAMPLES_KEPT)
        self.progress = ""
        self.bad_lines = 0
        self._events = Tail(folder.events_path)
        self._events_framer = Framer()
        self._log = Tail(folder.log_path)
        self._log_framer = Framer(overwriting=True)
        self._clean_names: set[str] = set()

    @property
    def truncated_lines(self) -> int:
        return self._events_framer.truncated_lines + self._log_framer.truncated_lines

    @property
    def dropped_columns(self) -> set[str]:
        """Metrics that the table has no room for."""
        return self.table.left_out

    @property
    def resets(self) -> int:
        return self._events.resets + self._log.resets

    def poll(self, limit: int = 1 << 18) -> bool:
        """Reads at most ``limit`` bytes of each file; True when there is something new to show.

        ``caught_up`` says whether that was all. Never raises for what the files hold.
        """
        events = self._poll_events(limit)
        log = self._poll_log(limit)
        changed = events or log
        self.version += changed
        return changed

    def close(self) -> None:
        """Lets go of the files."""
        self._events.close()
        self._log.close()

    def _poll_events(self, limit: int) -> bool:
        resets = self._events.resets
        data = self._events.read(limit)
        if self._events.resets != resets:
            self._events_framer.reset()
        self.caught_up = len(data) < limit
        lines = self._events_framer.feed(data) if data else []
        if not lines:
            return self._events.resets != resets
        self._take([read_line(line) for line in lines if line])
        return True

    def _poll_log(self, limit: int) -> bool:
        resets = self._log.resets
        data = self._log.read(limit)
        if self._log.resets != resets:
            self._log_framer.reset()
        self.caught_up = self.caught_up and len(data) < limit
        if not data:
            return self._log.resets != resets
        for line in self._log_framer.feed(data):
            text = clean(line.decode("utf-8", "replace"))
            self.log.append(LogLine(None, guess_level(text), text))
        self.progress = clean(self._log_framer.partial.decode("utf-8", "replace"))
        return True

    def _take(self, events: list[Event | Unrecognized]) -> None:
        steps: list[tuple[bool, StepCompleted]] = []
        samples: list[MemorySampled] = []
        for late, event in self._advance(self._cleaned(events)):
            if isinstance(event, StepCompleted):
                steps.append((late, event))
            elif isinstance(event, MemorySampled):
                if not late:  # the memory table is in the order of time
                    samples.append(event)
            elif isinstance(event, Evaluated):
                put = self.evaluations.merge if late else self.evaluations.extend
                metrics = {name: [value] for name, value in event.metrics.items()}
                put([event.step], [event.time], metrics)
                self.log.extend(log_lines(event))
            elif isinstance(event, SampleGenerated):
                self.samples.append(event)
            else:
                self.bad_lines += isinstance(event, Unrecognized) and event.seq is None
                self.log.extend(log_lines(event))
        for late, group in groupby(steps, key=itemgetter(0)):
            batch = [event for _, event in group]
            put = self.table.merge if late else self.table.extend
            put([e.step for e in batch], [e.time for e in batch], step_columns(batch))
        if samples:
            first = len(self.memory)
            rows = range(first, first + len(samples))
            self.memory.extend(rows, [e.time for e in samples], _memory_columns(samples))

    def _cleaned(self, events: list[Event | Unrecognized]) -> Iterator[Event | Unrecognized]:
        """The events, clean. A step's only strings are its metrics' names: looked at by chunk."""
        names = set(chain.from_iterable(e.metrics for e in events if isinstance(e, StepCompleted)))
        unknown = names - self._clean_names
        found_clean = {name for name in unknown if clean(name) == name}
        if len(self._clean_names) < _NAMES_KEPT:
            self._clean_names |= found_clean
        as_they_are = found_clean == unknown
        for event in events:
            skip = as_they_are and type(event) is StepCompleted
            yield event if skip else clean_event(event)

    def _advance(
        self, events: Iterable[Event | Unrecognized]
    ) -> Iterator[tuple[bool, Event | Unrecognized]]:
        """Moves the state on; the events that are new, each with whether it came late."""
        state = self.state
        for event in events:
            before, state = state, advance(state, event)
            if state.duplicates == before.duplicates:
                yield event.seq is not None and event.seq < before.next_seq, event
        self.state = state


def step_columns(steps: Sequence[StepCompleted]) -> dict[str, Column]:
    """The steps' numbers by column: those of `STEP_COLUMNS`, then each metric's by its name."""
    channels = [e.channels for e in steps]
    seconds = [e.seconds for e in steps]
    columns: dict[str, Column] = {
        "loss": [e.loss for e in steps],
        "channel/grpo": [c.grpo for c in channels],
        "channel/sdpo": [c.sdpo for c in channels],
        "channel/replay": [c.replay for c in channels],
        "reward_mean": [e.reward_mean for e in steps],
        "reward_std": [e.reward_std for e in steps],
        "grad_norm": [e.grad_norm for e in steps],
        "learning_rate": [e.learning_rate for e in steps],
        "step_seconds": [e.step_seconds for e in steps],
        "seconds/rollout": [s.rollout for s in seconds],
        "seconds/loss": [s.loss for s in seconds],
        "seconds/optimizer": [s.optimizer for s in seconds],
        "tokens_per_second": [e.tokens_per_second for e in steps],
        "mfu": [e.mfu for e in steps],
    }
    metrics = [e.metrics for e in steps]
    for name in dict.fromkeys(chain.from_iterable(metrics)):
        column = f"metrics/{name}" if name in STEP_COLUMNS else name
        columns[column] = [m.get(name) for m in metrics]
    return columns


def _memory_columns(samples: Sequence[MemorySampled]) -> dict[str, Column]:
    columns: dict[str, Column] = {
        name: [getattr(e, name) for e in samples] for name in MEMORY_COLUMNS
    }
    for row, sample in enumerate(samples):
        for device in sample.devices:
            for name in DEVICE_COLUMNS:
                column = columns.setdefault(f"gpu{device.index}/{name}", [None] * len(samples))
                column[row] = getattr(device, name)
    return columns
