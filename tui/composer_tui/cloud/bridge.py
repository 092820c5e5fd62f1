"""The helper process: ``python -m composer_tui.cloud.bridge --runs-dir DIR``.

It imports modal so that the interface need not, and each ask has a thread of its own, so that one
that hangs holds up no other. When its stdin ends the interface is gone: what was being stopped is
still carried through, and then it ends.
"""

import argparse
import os
import sys
import threading
import traceback
from pathlib import Path

import msgspec

from composer_tui.cloud.direct import DirectCloud
from composer_tui.cloud.problems import CloudProblem, problem, problem_of, redact
from composer_tui.cloud.speech import (
    Answer,
    Ask,
    AskApps,
    AskLease,
    AskStop,
    AskTend,
    Say,
    Told,
    line,
    read_ask,
)
from composer_tui.runs.folder import RunFolder
from composer_tui.runs.store import RunStore


class Bridge:
    """Answers asks, in any order, on one descriptor."""

    def __init__(self, cloud: DirectCloud, out: int) -> None:
        self._cloud, self._out = cloud, out
        self._lock = threading.Lock()
        self._stops: list[threading.Thread] = []

    def take(self, ask: Ask) -> None:
        """Begin what is asked; its answer comes when it is there."""
        thread = threading.Thread(
            target=self._answer, args=(ask,), name=type(ask).__name__, daemon=True
        )
        if isinstance(ask, AskStop):
            self._stops = [stop for stop in self._stops if stop.is_alive()]
            self._stops.append(thread)
        thread.start()

    def finish(self) -> None:
        """Carry the stops through."""
        for thread in self._stops:
            thread.join()
        self._cloud.close()

    def _answer(self, ask: Ask) -> None:
        try:
            answer = self._do(ask)
        except CloudProblem as error:
            answer = Answer(number=ask.number, problem=error.problem)
        except Exception as error:  # noqa: BLE001  # the border: whoever asks waits for an answer
            print(redact(traceback.format_exc()), file=sys.stderr)  # noqa: T201  # stderr is our log
            found = problem_of(error) or problem("server", f"{type(error).__name__}: {error}")
            answer = Answer(number=ask.number, problem=found)
        self._say(answer)

    def _do(self, ask: Ask) -> Answer:
        number, cloud = ask.number, self._cloud
        match ask:
            case AskApps():
                return Answer(number=number, apps=cloud.apps())
            case AskTend():
                cloud.tend(RunFolder(Path(ask.folder)), launch=ask.launch)
                return Answer(number=number)
            case AskLease():
                until = cloud.extend_lease(ask.app_id, ask.minutes)
                return Answer(number=number, lease_until=until)
            case AskStop():
                result = cloud.stop(
                    ask.app_ids,
                    ask.mode,
                    ask.grace_seconds,
                    lambda progress: self._say(Told(number=number, progress=progress)),
                )
                return Answer(number=number, result=result)

    def _say(self, message: Say) -> None:
        rest = memoryview(line(message))
        with self._lock:
            try:
                while rest:
                    rest = rest[os.write(self._out, rest) :]
            except BrokenPipeError:
                return  # the interface is gone; what was begun goes on


def main() -> int:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser(prog="python -m composer_tui.cloud.bridge")
    parser.add_argument("--runs-dir", type=Path, required=True)
    options = parser.parse_args()
    out = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints is not an answer
    bridge = Bridge(DirectCloud(RunStore(options.runs_dir)), out)
    for text in sys.stdin.buffer:
        try:
            bridge.take(read_ask(text))
        except msgspec.DecodeError as error:
            print(f"not an ask: {error}", file=sys.stderr)  # noqa: T201  # stderr is our log
    bridge.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
