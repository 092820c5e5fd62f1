"""Modal's client, called with a time limit that holds.

Calls run on an event loop in a daemon thread. One that does not come back is left behind: its
caller goes on, and neither `import modal` nor a wedged loop can hold up anything else.
"""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Coroutine, Mapping
from typing import Any, TypeVar

from composer_tui.cloud.problems import CloudProblem, problem, problem_of

_K = TypeVar("_K")
_T = TypeVar("_T")
_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def within(seconds: float, work: Coroutine[Any, Any, _T], doing: str = "") -> _T:
    """What ``work`` returns. Raises `CloudProblem`: for its failure, or that it took too long.

    An error that is not about Modal or the way to it is raised as it is.
    """
    future = asyncio.run_coroutine_threadsafe(work, _running_loop())
    try:
        return future.result(seconds)
    except TimeoutError:
        future.cancel()
        what = f" ({doing})" if doing else ""
        said = "" if future.done() else f"Modal did not answer within {round(seconds, 1):g} s{what}"
        raise CloudProblem(problem("timeout", said)) from None
    except Exception as error:
        found = problem_of(error)
        if found is None or isinstance(error, CloudProblem):
            raise
        raise CloudProblem(found) from None  # the foreign text may hold a token


async def each(
    seconds: float, work: Mapping[_K, Awaitable[_T]]
) -> AsyncIterator[tuple[_K, _T | Exception]]:
    """Every outcome as it comes; for what has not come after ``seconds``, a TimeoutError."""
    keys: dict[asyncio.Future[_T], _K] = {
        asyncio.ensure_future(awaitable): key for key, awaitable in work.items()
    }
    pending = set(keys)
    deadline = asyncio.get_running_loop().time() + seconds
    while pending:
        left = deadline - asyncio.get_running_loop().time()
        done, pending = await asyncio.wait(
            pending, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED
        )
        if not done:
            break
        for task in done:
            outcome = _outcome(task)
            yield keys[task], outcome
    for task in pending:
        task.cancel()  # not waited for: a wedged client would not let go
        yield keys[task], TimeoutError()


def quiet_asyncio() -> None:
    """Before modal is used: what becomes of calls that nobody waits for any more is told to nobody.

    Modal's client leaves such behind when it is given up, in loops of its own, and asyncio would
    print a traceback for each, at any time and at the exit of the process.
    """
    logging.getLogger("asyncio").disabled = True


def _outcome(task: "asyncio.Future[_T]") -> _T | Exception:
    if task.cancelled():
        return TimeoutError()
    error = task.exception()
    if error is None:
        return task.result()
    if isinstance(error, Exception):
        return error
    raise error


def _running_loop() -> asyncio.AbstractEventLoop:
    global _loop  # noqa: PLW0603  # one loop a process: modal's client is bound to a process, too
    with _lock:
        if _loop is None:
            quiet_asyncio()
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="modal calls", daemon=True).start()
        return _loop
