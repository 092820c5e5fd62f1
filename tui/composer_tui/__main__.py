"""``composer-tui``: the app in a terminal, and a command for everything it can do."""

import sys


def main() -> None:
    """Run the command line and leave with its exit status."""
    from composer_tui.cli import run_command_line

    sys.exit(run_command_line(sys.argv[1:]))


if __name__ == "__main__":
    main()
