"""What downloads and uploads have in common: how they are run, timed, and told of.

A transfer may take hours, so nothing limits all of it; what limits it is that something must move.
Imports no modal.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import Any, Literal, TypeVar

import msgspec

from composer_tui.cloud.modal_thread import quiet_asyncio
from composer_tui.cloud.problems import CloudProblem, problem, problem_of
from composer_tui.cloud.wire import Problem

OnBytes = Callable[[str, int], object]
"""Called with a file's path on the volume and how many bytes more of it have moved."""

Outcome = Literal["downloaded", "uploaded", "kept", "left_out"]
_T = TypeVar("_T")


class Moved(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one file. ``remote`` is its path on the volume, ``local`` the one here.

    ``sha256`` is of the bytes that came, "" where none were read. ``verified``: the volume was read
    once more, and its bytes are those here. ``why`` says why it was left out.
    """

    remote: str
    local: str
    outcome: Outcome
    size_bytes: int = 0
    sha256: str = ""
    verified: bool = False
    why: str = ""


def run(work: Coroutine[Any, Any, _T]) -> _T:
    """What it returns. Ctrl-C cancels it, and it cleans up. For threads without an event loop.

    Raises `CloudProblem`, and what is not about Modal as it is.
    """
    quiet_asyncio()
    try:
        return asyncio.run(work)
    except Exception as error:  # the border: what this means is decided by `problem_of`
        found = problem_of(error) or _of_http(error)
        if found is None or isinstance(error, CloudProblem):
            raise
        raise CloudProblem(found) from None  # the foreign text may hold a token


def _of_http(error: BaseException) -> Problem | None:
    """Modal's client lets through what its HTTP library raises while bytes come."""
    kinds = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return problem("no_network") if "aiohttp" in kinds else None


async def unstalled(stream: AsyncIterator[_T], seconds: float) -> AsyncIterator[_T]:
    """The same items. Raises TimeoutError when the next one takes longer than that."""
    while True:
        async with asyncio.timeout(seconds):
            try:
                item = await anext(stream)
            except StopAsyncIteration:
                return
        yield item


async def together(jobs: Iterable[Coroutine[Any, Any, None]]) -> None:
    """The first error of any ends the others; all have ended when this returns."""
    tasks = [asyncio.create_task(job) for job in jobs]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
