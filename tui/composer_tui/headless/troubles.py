"""What stands between a command and Modal: told in one line, and to the shell by one rule."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator

from composer_tui.cloud.account_check import BadAccount, read_account
from composer_tui.cloud.problems import CloudProblem, problem
from composer_tui.cloud.reach import obstacle, way_to
from composer_tui.cloud.wire import Problem, ProblemKind

UNREACHED, TO_MEND = 1, 2
_SILENCE_SECONDS = 1.0
_NOT_THE_USERS: frozenset[ProblemKind] = frozenset(
    {"no_network", "timeout", "server", "rate_limit"}
)
TOKEN_PROBLEMS: frozenset[ProblemKind] = frozenset({"no_token", "wrong_token"})


def status_of(found: Problem | None) -> int:
    """What the shell is told: 2 for what the user can mend, 1 for what Modal or the way has."""
    return UNREACHED if found is None or found.kind in _NOT_THE_USERS else TO_MEND


def print_problem(found: Problem) -> None:
    """One line on stderr, with what mends it where that is known."""
    from composer_tui.cloud.known_failures import diagnose

    known = None if found.hint else diagnose(found.message)
    fix = found.hint or (known.fix if known else "")
    hint = f" (try: {fix})" if fix else ""
    print(f"composer-tui: {found.message}{hint}", file=sys.stderr)


def check_account() -> str:
    """The server's address, where a token is there for it. Raises `CloudProblem`."""
    try:
        account = read_account()
    except BadAccount as error:
        raise CloudProblem(problem("no_token", str(error), error.fix)) from None
    if not account.has_token:
        raise CloudProblem(problem("no_token"))
    return account.server_url


def check_way() -> None:
    """Raises `CloudProblem` where there is no token, and where no connection can be made."""
    way = way_to(check_account())
    found = obstacle(way) if way is not None else None
    if found is not None:
        raise CloudProblem(found)


@contextlib.contextmanager
def asking_modal(*, quietly: bool = False) -> Iterator[Callable[[], None]]:
    """While Modal is asked for what a person waits for; call what it gives when something came.

    After a second of silence a person at a terminal is told that Modal is asked. Raises
    `CloudProblem` as `check_way` does, before anything else: modal's client would go on trying.
    """
    said = "composer-tui: asking Modal..."
    timer = threading.Timer(_SILENCE_SECONDS, print, [said], {"file": sys.stderr, "flush": True})
    timer.daemon = True
    if not quietly and sys.stderr.isatty():
        timer.start()
    try:
        check_way()
        yield timer.cancel
    finally:
        timer.cancel()
