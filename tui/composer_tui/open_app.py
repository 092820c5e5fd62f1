"""The app in this terminal."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from composer_tui.app import ComposerApp
    from composer_tui.runs.folder import RunFolder


class NoTerminal(RuntimeError):  # noqa: N818  # says what is the matter
    """The app cannot be shown here; the message says what can be done instead."""


def open_app(
    runs_dir: Path | None = None, *, run: RunFolder | None = None, replay_speed: float | None = None
) -> int:
    """Show the app until it is left; its exit status.

    Opens on ``run``, or on a replay of it at ``replay_speed`` (recorded seconds a second). Raises
    `NoTerminal`.
    """
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise NoTerminal("the app needs a terminal; see --help for the commands that need none")
    if os.environ.get("TERM", "") in {"", "dumb"}:
        raise NoTerminal(
            "this terminal (TERM is dumb or unset) cannot show the app; "
            "use the commands: composer-tui run, watch, runs"
        )
    # Read when Textual is imported. At its default of 60, a key waits 16 ms to be seen.
    os.environ.setdefault("TEXTUAL_FPS", "120")
    from composer_tui.app import ComposerApp
    from composer_tui.readonly import is_readonly
    from composer_tui.runners.local import LocalRunner
    from composer_tui.runs.store import RunStore, default_runs_dir

    store = RunStore(runs_dir or default_runs_dir())
    app = ComposerApp(
        store,
        runner=LocalRunner(store),
        run=run,
        replay_speed=replay_speed,
        readonly=is_readonly(os.environ),
    )
    app.run()
    status = _wait_for_stops(app)
    app.let_cloud_go()
    return status or app.return_code or 0


def _wait_for_stops(app: ComposerApp) -> int:
    """A stop that was asked for is carried through, though nobody looks any more."""
    status = 0
    for stop in app.stops_under_way():
        _say(f"still ending {stop.run_id}; ctrl+c leaves it")
        try:
            stop.wait()
        except KeyboardInterrupt:
            _say(f"NOT verified: {stop.run_id} may still run")
            return 1
        _say(f"{stop.run_id} {stop.words}" if stop.ended else stop.words)
        status = status or int(not stop.ended)
    return status


def _say(words: str) -> None:
    print(f"composer-tui: {words}", file=sys.stderr)  # noqa: T201  the app has left the terminal
