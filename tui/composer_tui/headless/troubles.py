"""What stands between a command and Modal: told in one line, and to the shell by one rule."""

import contextlib
import difflib
import sys
import threading
import time
from collections.abc import Callable, Iterator

import msgspec

from composer_tui.cloud.account_check import BadAccount, reach, read_account
from composer_tui.cloud.problems import CloudProblem, problem
from composer_tui.cloud.reach import obstacle, way_to
from composer_tui.cloud.wire import Problem, ProblemKind
from composer_tui.runs.sanitise import clean

UNREACHED, TO_MEND = 1, 2
_SILENCE_SECONDS = 1.0
_TELL_SECONDS = 5.0
_FIRST_SECONDS = _ENVIRONMENTS_SECONDS = 8.0
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


def print_failure(found: Problem, *, as_json: bool) -> int:
    """The line on stderr, as JSON also ``{"problem": ...}`` on stdout, and the status."""
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode({"problem": found}) + b"\n")
    print_problem(found)
    return status_of(found)


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


def check_token() -> None:
    """Raises `CloudProblem` where Modal refuses the token, or does not answer at all."""
    check_account()
    try:
        reach(read_account(), _FIRST_SECONDS)
    except CloudProblem as failure:
        if failure.problem.kind in ("timeout", "no_network", *TOKEN_PROBLEMS):
            raise


def check_environment(name: str) -> None:
    """Raises `CloudProblem` where the account has no environment of that name.

    Modal itself answers for one that does not exist as for one in which nothing lives.
    """
    from composer_tui.cloud.modal_cli import ModalCli

    check_way()
    try:
        known = ModalCli(call_seconds=_ENVIRONMENTS_SECONDS).environment_names()
    except CloudProblem as failure:
        if failure.problem.kind in ("timeout", "no_network", *TOKEN_PROBLEMS):
            raise
        return  # what it is asked for will tell
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"-e {near[0]}" if near else "modal environment list"
        what = f"this account has no environment {clean(name)!r}; it has {', '.join(known)}"
        raise CloudProblem(problem("refused", what, hint))


@contextlib.contextmanager
def asking_modal(*, quietly: bool = False, to_all: bool = False) -> Iterator[Callable[[], None]]:
    """While Modal is asked for what a person waits for; call what it gives when something came.

    After a second of silence, and every five, a person at a terminal is told that Modal is asked,
    ``to_all``: also whoever reads stderr. Raises `CloudProblem` as `check_way` does, before
    anything else: modal's client would go on trying.
    """
    heard = threading.Event()
    if to_all or (not quietly and sys.stderr.isatty()):
        threading.Thread(target=_break_silence, args=(heard,), daemon=True).start()
    try:
        check_way()
        yield heard.set
    finally:
        heard.set()


def _break_silence(heard: threading.Event) -> None:
    began = time.monotonic()
    if not heard.wait(_SILENCE_SECONDS):
        print("composer-tui: asking Modal...", file=sys.stderr, flush=True)
        _go_on_telling("composer-tui: still asking", heard, began)


def _go_on_telling(words: str, done: threading.Event, began: float) -> None:
    due = _TELL_SECONDS
    while not done.wait(max(0.0, began + due - time.monotonic())):
        print(f"{words} ({due:g} s)", file=sys.stderr, flush=True)
        due += _TELL_SECONDS


@contextlib.contextmanager
def telling(words: str) -> Iterator[None]:
    """Says them on stderr every five seconds, with how long it has taken."""
    done = threading.Event()
    arguments = (words, done, time.monotonic())
    threading.Thread(target=_go_on_telling, args=arguments, daemon=True).start()
    try:
        yield
    finally:
        done.set()
