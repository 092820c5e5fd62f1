"""An app's log as it comes, through every cut of the connection.

Modal's own stream gives up at the first refused connection, and where it begins again is not
promised. So each connection first fetches what came since some time before the last piece that is
known, and pieces that were told before are told again by it: whoever takes them knows them by
`Chunk.key`, and how often it has been told in one pass.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from composer_tui.cloud.notebook import Chunk
from composer_tui.cloud.problems import problem_of
from composer_tui.cloud.wire import Problem

if TYPE_CHECKING:
    from modal import App
    from modal.types import LogEntry

OVERLAP_SECONDS = 15.0
LOOKUP_SECONDS = 20.0
FETCH_SECONDS = 60.0
FIRST_WAIT_SECONDS = 0.1
MOST_WAIT_SECONDS = 15.0
_LOOKED_THROUGH = 1000  # entries, for the id of a call
# Modal's clock and ours need not agree; what is further away than this is another run's.
_SLACK = timedelta(days=1)

OnLost = Callable[[Problem], object]
OnCurrent = Callable[[], object]
Put = Callable[[Chunk], object]


class Sieve:
    """Lets each piece through once, and two equal ones twice. ``newest`` is the latest time."""

    def __init__(self, known: Counter[int], newest: float) -> None:
        self.newest = newest
        self._told = known
        self._recent: dict[int, float] = dict.fromkeys(known, newest)

    def is_new(self, chunk: Chunk, in_pass: Counter[int]) -> bool:
        """``in_pass`` counts what one reading of the log has told: begin each with an empty one."""
        key = chunk.key
        in_pass[key] += 1
        self.newest = max(self.newest, chunk.time)
        if in_pass[key] <= self._told[key]:
            return False
        self._told[key] += 1
        self._recent[key] = chunk.time
        return True

    def recent(self) -> list[int]:
        """Keys, each as often as it was told, of what the next connection tells again."""
        first = self.newest - 2 * OVERLAP_SECONDS
        self._recent = {key: time for key, time in self._recent.items() if time >= first}
        return [key for key in self._recent for _ in range(self._told[key])]


class LogStream:
    """The log of one app from a moment on; ``since`` is unix seconds, 0 for its beginning."""

    def __init__(self, app_id: str, sieve: Sieve, since: float) -> None:
        self.app_id = app_id
        self._sieve, self._since = sieve, since

    async def run(self, put: Put, on_lost: OnLost, on_current: OnCurrent) -> None:
        """Until the app is over. Raises what is not about the way to Modal.

        ``on_current`` is called when all that there was has been put, and what comes is heard.
        """
        wait = 0.0
        while True:
            try:
                app = await find_app(self.app_id)
                await self._fetch(app, put)
                on_current()
                wait = 0.0
                told: Counter[int] = Counter()
                async for entry in app.logs.stream.aio():
                    self._take(entry, put, told)
                await self._fetch(app, put)
            except Exception as error:  # the border: `problem_of` says what may be tried again
                found = problem_of(error)
                if found is None or found.kind == "refused":
                    raise
                on_lost(found)
                await asyncio.sleep(wait)
                wait = min(max(2 * wait, FIRST_WAIT_SECONDS), MOST_WAIT_SECONDS)
            else:
                return

    async def fetch_all(self, put: Put) -> None:
        """The whole log once more, for what was told late. Raises whatever Modal does."""
        app = await find_app(self.app_id)
        await self._fetch(app, put, since=self._since)

    async def _fetch(self, app: "App", put: Put, since: float | None = None) -> None:
        if since is None:
            since = max(self._since, self._sieve.newest - OVERLAP_SECONDS)
        told: Counter[int] = Counter()
        first = datetime.fromtimestamp(since, UTC) if since else datetime.now(UTC) - 2 * _SLACK
        last = max(datetime.now(UTC), datetime.fromtimestamp(self._sieve.newest, UTC)) + _SLACK
        async for entry in _unstalled(app.logs.fetch.aio(since=first, until=last)):
            self._take(entry, put, told)

    def _take(self, entry: "LogEntry", put: Put, told: Counter[int]) -> None:
        container = next((one for one in entry.context_ids if one.startswith("ta-")), "")
        chunk = Chunk(
            time=entry.timestamp.timestamp(),
            source=entry.source,
            container=container,
            text=entry.message,
        )
        if self._sieve.is_new(chunk, told):
            put(chunk)


async def find_app(app_id: str) -> "App":
    """The handle. Raises whatever Modal does."""
    import modal

    async with asyncio.timeout(LOOKUP_SECONDS):
        return await modal.App.lookup.aio(app_id)


async def call_in_log(app: "App") -> str:
    """The id of the call that its log tells of; "" for none. Raises whatever Modal does."""
    async with asyncio.timeout(FETCH_SECONDS):
        async for entry in app.logs.tail.aio(_LOOKED_THROUGH):
            for one in entry.context_ids:
                if one.startswith("fc-"):
                    return str(one)
    return ""


async def _unstalled(entries: "AsyncIterator[LogEntry]") -> "AsyncIterator[LogEntry]":
    while True:
        async with asyncio.timeout(FETCH_SECONDS):
            try:
                entry = await anext(entries)
            except StopAsyncIteration:
                return
        yield entry
