"""``composer-tui``: the app in a terminal, and a command for everything it can do."""

import os
import sys


def main() -> None:
    """Run the command line and leave with its exit status."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    try:
        status = _open() if len(sys.argv) == 1 else _command()
    except KeyboardInterrupt:
        status = 130
    if "modal" in sys.modules:
        _leave_modal(status)
    sys.exit(status)


def _leave_modal(status: int) -> None:
    """At the end of a process modal's client waits for its event loop, which may stand still, and
    whatever is still asked of it prints a traceback. All that counts is written by now.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # nobody reads it any more
            continue
    os._exit(status)


def _open() -> int:
    """The app, past all that parses arguments: what is typed most should show first."""
    from composer_tui.open_app import NoTerminal, open_app

    try:
        return open_app()
    except NoTerminal as problem:
        print(f"composer-tui: {problem}", file=sys.stderr)  # noqa: T201  there is no app to say it
        return 2


def _command() -> int:
    from composer_tui.cli import run_command_line

    return run_command_line(sys.argv[1:])


if __name__ == "__main__":
    main()
