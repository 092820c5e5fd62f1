"""Sustained ingest: bytes of events.jsonl to state and series, and nothing lost by seq."""

import tempfile
import time
from pathlib import Path

from composer_tui.runs.feed import RunFeed
from tests.bench.harness import make_run, report

STEPS = 300_000


def main() -> None:
    with tempfile.TemporaryDirectory() as root:
        folder = make_run(Path(root), STEPS, finished=True)
        feed = RunFeed(folder)
        began, cpu = time.perf_counter(), time.process_time()
        while feed.poll() or not feed.caught_up:
            pass
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        feed.close()
        events = feed.state.next_seq
        report(
            bench="ingest",
            events=events,
            steps_stored=len(feed.table),
            lost=feed.state.missing + STEPS - len(feed.table),
            events_per_second=round(events / wall),
            events_per_cpu_second=round(events / cpu),
            target_events_per_second=100_000,
        )


if __name__ == "__main__":
    main()
