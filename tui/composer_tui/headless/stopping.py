"""`stop`: end a run and say, once it is verified, how it ended."""

import sys

import msgspec

from composer_tui.runners.base import RunHandle, StopMode


def stop_run(handle: RunHandle, mode: StopMode, grace: float | None, *, as_json: bool) -> int:
    """0 only when no process of the run is left."""
    run_id = handle.folder.run_id
    if not as_json and handle.alive():
        verb = "stopping at once" if mode == "now" else "saving and stopping"
        print(f"{run_id}: {verb}...", file=sys.stderr)
    report = handle.stop(mode, grace)
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode({"run_id": run_id} | report._asdict()) + b"\n")
    else:
        left = f"; still alive: {', '.join(map(str, report.left))}" if report.left else ""
        print(f"{run_id}: {report.how} ({report.seconds:.1f} s){left}")
    return 0 if report.ended else 1
