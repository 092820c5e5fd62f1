"""What an app's containers print, as lines.

Text is as its container wrote it: whoever shows it cleans it.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec

from composer_tui.cloud.containers import find_app, list_containers
from composer_tui.cloud.modal_cli import ModalCli
from composer_tui.cloud.modal_thread import within
from composer_tui.cloud.problems import CloudProblem, problem, problem_of, problem_of_text
from composer_tui.cloud.transfer import run, unstalled
from composer_tui.cloud.wire import Problem

if TYPE_CHECKING:
    from modal import App
    from modal.types import LogEntry

MOST_ENTRIES = 20_000  # Modal's own limit
_FETCH_SECONDS = 60.0
_FIRST_SECONDS = 8.0  # to be told that Modal cannot be reached: its client tries for a minute
_TRIES = 8  # without an entry between them
_MOST_WAIT_SECONDS = 10.0
_REMEMBERED = 50_000
_LONGEST_LINE = 1 << 16  # characters; what has no end is cut there
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_WORTH_A_TRY = frozenset({"no_network", "server", "timeout", "rate_limit"})

OnTrouble = Callable[[Problem], object]


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line without its end. ``time`` is unix seconds, 0 where Modal does not say."""

    time: float
    source: str
    container_id: str
    text: str


OnLine = Callable[[LogLine], object]


class Lines:
    """Chunks to lines: what one container writes to one stream is joined until its line ends."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], LogLine] = {}

    def feed(self, chunk: LogLine) -> Iterator[LogLine]:
        """The lines that the chunk completes."""
        key = (chunk.container_id, chunk.source)
        before = self._open.pop(key, None)
        first_time = before.time if before else chunk.time
        text = (before.text if before else "") + chunk.text
        *whole, rest = text.split("\n")
        for line in whole:
            yield msgspec.structs.replace(chunk, text=line, time=first_time)
            first_time = chunk.time
        while len(rest) > _LONGEST_LINE:
            yield msgspec.structs.replace(chunk, text=rest[:_LONGEST_LINE], time=first_time)
            rest = rest[_LONGEST_LINE:]
        if rest:
            self._open[key] = msgspec.structs.replace(chunk, text=rest, time=first_time)

    def flush(self) -> Iterator[LogLine]:
        """Lines that never ended."""
        lines, self._open = list(self._open.values()), {}
        yield from lines


def parse_since(text: str, now: float) -> float:
    """Unix seconds of ``90s``, ``30m``, ``2h``, ``1d`` ago, or of an ISO 8601 time (local if it has
    no zone). Raises ValueError.
    """
    number, unit = text[:-1], text[-1:]
    if number.isdecimal() and len(number) < 10 and unit in _UNITS:  # noqa: PLR2004  # 31 years
        return now - int(number) * _UNITS[unit]
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise ValueError("give a time such as 30m, 2h, 1d or 2026-03-01T12:00") from None


def read_logs(which: str, on_line: OnLine, *, since: float | None = None, tail: int = 100) -> None:
    """The lines since a time, or the last ``tail`` entries, of an app (id or name) or a container.

    Raises `CloudProblem`.
    """
    app_id, container_id = _resolve(which)
    if not app_id:
        _read_finished(container_id, on_line, since, tail)
        return
    _reach(app_id)
    run(_read(app_id, container_id, on_line, since, tail))


def follow_logs(which: str, on_line: OnLine, on_trouble: OnTrouble, *, tail: int = 100) -> None:
    """The last entries, then every line as it comes, until the app is over. Ctrl-C ends it.

    A connection that breaks is made anew and the gap filled; ``on_trouble`` is told of each.
    Raises `CloudProblem`.
    """
    app_id, container_id = _resolve(which)
    if not app_id:
        hint = f"composer-tui logs {which}"
        raise CloudProblem(problem("refused", f"{which} does not run", hint))
    _reach(app_id)
    run(_follow(app_id, container_id, on_line, on_trouble, tail))


def _resolve(which: str) -> tuple[str, str]:
    """(app id, container id or ""); the app is "" for a container that does not run any more."""
    if not which.startswith("ta-"):
        return find_app(which, _FIRST_SECONDS), ""
    rows = list_containers(call_seconds=_FIRST_SECONDS)
    found = [row.app_id for row in rows if row.container_id == which]
    return (found[0] if found else ""), which


def _reach(app_id: str) -> None:
    """The first contact, which is to fail soon. Raises `CloudProblem`."""
    import modal  # noqa: F401  # not part of the time

    within(_FIRST_SECONDS, _app(app_id), "the first contact with Modal")


def _read_finished(container_id: str, on_line: OnLine, since: float | None, tail: int) -> None:
    """By the command line: the library finds a container's logs by its app, which is not known."""
    wanted = ["--tail", str(tail)]
    if since is not None:
        wanted = ["--since", datetime.fromtimestamp(since, UTC).isoformat()]
    done = ModalCli(call_seconds=_FETCH_SECONDS).run("container", "logs", container_id, *wanted)
    if done.status:
        raise CloudProblem(problem_of_text(done.said))
    for text in done.output.decode("utf-8", "replace").splitlines():
        on_line(LogLine(time=0.0, source="", container_id=container_id, text=text))


async def _read(
    app_id: str, container_id: str, on_line: OnLine, since: float | None, tail: int
) -> None:
    lines = Lines()
    app = await _app(app_id)
    async for entry in unstalled(_past(app, since, tail), _FETCH_SECONDS):
        _tell(entry, container_id, lines, on_line)
    for line in lines.flush():
        on_line(line)


async def _follow(
    app_id: str, container_id: str, on_line: OnLine, on_trouble: OnTrouble, tail: int
) -> None:
    lines, seen = Lines(), _Seen()
    tries = 0
    while True:
        try:
            app = await _app(app_id)
            async for entry in _past(app, seen.newest, tail):
                if seen.is_new(entry):
                    tries = 0
                    _tell(entry, container_id, lines, on_line)
            async for entry in app.logs.stream.aio():
                if seen.is_new(entry):
                    tries = 0
                    _tell(entry, container_id, lines, on_line)
        except Exception as error:  # the border: `problem_of` says whether trying again helps
            found = problem_of(error)
            tries += 1
            if found is None or found.kind not in _WORTH_A_TRY or tries > _TRIES:
                raise
            on_trouble(found)
            await asyncio.sleep(min(2.0 ** (tries - 2), _MOST_WAIT_SECONDS))
        else:
            break
    for line in lines.flush():
        on_line(line)


class _Seen:
    """Which entries were told: a stream begins again somewhere before it broke off."""

    def __init__(self) -> None:
        self.newest: float | None = None
        self._oldest: datetime | None = None
        self._keys: OrderedDict[tuple[object, ...], None] = OrderedDict()

    def is_new(self, entry: "LogEntry") -> bool:
        """Whether it was not asked about before, and is not older than all that was."""
        key = (entry.timestamp, entry.source, entry.message, *entry.context_ids)
        self._oldest = self._oldest or entry.timestamp
        if key in self._keys or entry.timestamp < self._oldest:
            return False
        self._keys[key] = None
        if len(self._keys) > _REMEMBERED:
            self._keys.popitem(last=False)
        self.newest = max(self.newest or 0.0, entry.timestamp.timestamp())
        return True


async def _app(app_id: str) -> "App":
    import modal

    async with asyncio.timeout(_FETCH_SECONDS):
        return await modal.App.lookup.aio(app_id)


def _past(app: "App", since: float | None, tail: int) -> "AsyncIterator[LogEntry]":
    if since is None:
        return aiter(app.logs.tail.aio(min(tail, MOST_ENTRIES)))
    moment = datetime.fromtimestamp(since, UTC) - timedelta(seconds=1)
    return aiter(app.logs.fetch.aio(since=moment))


def _tell(entry: "LogEntry", container_id: str, lines: Lines, on_line: OnLine) -> None:
    where = next((one for one in entry.context_ids if one.startswith("ta-")), "")
    if container_id and where != container_id:
        return
    chunk = LogLine(
        time=entry.timestamp.timestamp(),
        source=entry.source,
        container_id=where,
        text=entry.message,
    )
    for line in lines.feed(chunk):
        on_line(line)
