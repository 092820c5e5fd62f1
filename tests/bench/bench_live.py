"""A live run at 1,000 events/s: CPU of the app, and how long a key takes to show."""

import tempfile
import threading
import time
from pathlib import Path

from composer_engine.protocol import encode
from composer_tui.runs.folder import RunFolder
from tests.bench.harness import (
    TerminalApp,
    cpu_seconds,
    make_run,
    monitor,
    percentile,
    report,
    step_event,
    waited_seconds,
)

EVENTS_PER_SECOND = 1000
SECONDS = 20.0
KEYS = 300
# Letters that stand nowhere on the screen, so that their echo is theirs.
RARE = "ǂʬɮʘǁ"


class Writer(threading.Thread):
    """Appends steps at a steady pace, 20 at a time."""

    def __init__(self, folder: RunFolder, first_seq: int) -> None:
        super().__init__(daemon=True)
        self._folder, self._seq = folder, first_seq
        self.stopped = threading.Event()

    def run(self) -> None:
        began, batch = time.monotonic(), 20
        with self._folder.events_path.open("ab", buffering=0) as file:
            written = 0
            while not self.stopped.is_set():
                lines = []
                for _ in range(batch):
                    step = self._seq - 2
                    lines.append(encode(step_event(step, self._seq, time.time())))
                    self._seq += 1
                file.write(b"".join(lines))
                written += batch
                self.stopped.wait(max(0.0, began + written / EVENTS_PER_SECOND - time.monotonic()))


def key_latencies(running: TerminalApp) -> list[float]:
    """Seconds from a key sent to its echo read, typing in the log's filter."""
    running.type("/")
    running.drain(0.5)
    latencies = []
    for index in range(KEYS):
        letter = RARE[index % len(RARE)]
        sent = running.type(letter)
        latencies.append(running.read_until(letter.encode(), 5.0) - sent)
        running.drain(0.02 + (index % 7) * 0.006)
        running.type("\x7f")
        running.drain(0.03)
    return latencies


def main() -> None:
    with tempfile.TemporaryDirectory() as root:
        folder = make_run(Path(root), 0, finished=False)
        writer = Writer(folder, first_seq=3)
        with monitor(root) as running:
            running.drain(2.0)
            writer.start()
            running.drain(3.0)
            pid = running.process.pid
            cpu, waited, before = cpu_seconds(pid), waited_seconds(pid), len(running.chunks)
            began = time.monotonic()
            running.drain(SECONDS)
            wall = time.monotonic() - began
            cpu, waited = cpu_seconds(pid) - cpu, waited_seconds(pid) - waited
            written = sum(len(chunk.data) for chunk in running.chunks[before:])
            keys = key_latencies(running)
            writer.stopped.set()
        report(
            bench="live",
            events_per_second=EVENTS_PER_SECOND,
            cpu_percent=round(100 * cpu / wall, 2),
            target_cpu_percent=10,
            kib_per_second_to_terminal=round(written / wall / 1024, 1),
            run_queue_wait_percent=round(100 * waited / wall, 2),
            keys=len(keys),
            key_p50_milliseconds=round(percentile(keys, 0.5) * 1e3, 2),
            key_p99_milliseconds=round(percentile(keys, 0.99) * 1e3, 2),
            target_key_milliseconds={"p50": 3, "p99": 30},
        )


if __name__ == "__main__":
    main()
