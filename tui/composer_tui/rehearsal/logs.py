"""What containers print and what happens to them: kept per app, on disk, in order."""

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from composer_tui.rehearsal.area import Area, task_of
from composer_tui.rehearsal.journal import Lines, read_lines
from composer_tui.rehearsal.pulse import Pulse
from composer_tui.rehearsal.rpc import unary

STDOUT = api_pb2.FILE_DESCRIPTOR_STDOUT
STDERR = api_pb2.FILE_DESCRIPTOR_STDERR
SYSTEM = api_pb2.FILE_DESCRIPTOR_INFO
_BATCH_ITEMS = 500
_FETCH_LIMIT = 20_000
_STREAM_SECONDS = 55.0
_RANGE_SECONDS = 35 * 86400


class LogLine(msgspec.Struct, frozen=True, array_like=True):
    """One chunk of output, or one change of a container's state (then ``data`` is empty)."""

    time_ns: int
    data: str = ""
    source: int = 0  # a FileDescriptor
    state: int = 0  # a TaskState
    task_id: str = ""
    function_id: str = ""
    call_id: str = ""
    input_id: str = ""


class _Filter(NamedTuple):
    source: int
    function_id: str
    call_id: str
    task_id: str
    input_id: str
    search_text: str

    def takes(self, line: LogLine) -> bool:
        return (
            self.source in (0, line.source)
            and self.function_id in ("", line.function_id)
            and self.call_id in ("", line.call_id)
            and self.task_id in ("", line.task_id)
            and self.input_id in ("", line.input_id)
            and (not self.search_text or self.search_text in line.data)
        )


class _AppLog:
    """The lines of one app. The file holds exactly what the list does."""

    def __init__(self, path: Path) -> None:
        self.file = Lines(path)
        self.lines = list(_decoded(read_lines(path)))
        self.pulse = Pulse()

    def add(self, line: LogLine) -> None:
        self.file.append(msgspec.json.encode(line) + b"\n")
        self.lines.append(line)
        self.pulse.beat()


_LINE = msgspec.json.Decoder(LogLine)


def _decoded(lines: Iterable[bytes]) -> Iterator[LogLine]:
    """Without those that a full disk has cut."""
    for line in lines:
        with contextlib.suppress(msgspec.DecodeError):
            yield _LINE.decode(line)


class Logs(Area):
    """The logs of every app, of this process and of those before it."""

    def __init__(self, plane: Any) -> None:
        super().__init__(plane)
        self._logs: dict[str, _AppLog] = {}

    async def close(self) -> None:
        for log in self._logs.values():
            log.file.close()

    def add(
        self,
        app_id: str,
        data: str,
        source: int = SYSTEM,
        task_id: str = "",
        function_id: str = "",
        call_id: str = "",
        input_id: str = "",
    ) -> None:
        """Text of a container, or of the control plane itself (`SYSTEM`)."""
        now_ns = self._now_ns()
        line = LogLine(now_ns, data, source, 0, task_id, function_id, call_id, input_id)
        self._log(app_id).add(line)

    def add_state(self, app_id: str, state: int, task_id: str, function_id: str) -> None:
        """A container has come into this state."""
        line = LogLine(self._now_ns(), "", SYSTEM, state, task_id, function_id)
        self._log(app_id).add(line)

    def finish(self, app_id: str) -> None:
        """Nothing more will come: whoever follows is told so."""
        log = self._log(app_id)
        log.file.close()
        log.pulse.beat()

    async def AppGetLogs(self, stream: Any) -> None:
        request = await stream.recv_message()
        app_id = self._app_of(request)
        log, wanted = self._log(app_id), _wanted(request)
        position = _position(request.last_entry_id, len(log.lines))
        deadline = time.monotonic() + min(request.timeout, _STREAM_SECONDS)
        while True:
            # The end is asked for before the lines are read: nothing can come in between.
            over = self._is_over(app_id, request.task_id)
            while position < len(log.lines):
                chunk = log.lines[position : position + _BATCH_ITEMS]
                for size, batch in _batches(chunk, wanted):
                    batch.entry_id = str(position + size)
                    if self.plane.chaos.happens(self.plane.chaos.spec.drop_logs):
                        _reset(stream)
                        return
                    await stream.send_message(batch)
                position += len(chunk)
            if over:
                await stream.send_message(api_pb2.TaskLogsBatch(app_done=True))
                return
            left = deadline - time.monotonic()
            if left <= 0:
                return
            await log.pulse.wait(left)

    @unary
    async def AppFetchLogs(
        self, request: api_pb2.AppFetchLogsRequest
    ) -> api_pb2.AppFetchLogsResponse:
        found = self._between(request)
        newest = found[-min(request.limit or _FETCH_LIMIT, _FETCH_LIMIT) :]
        batches = [batch for _, batch in _batches(newest, None)]
        return api_pb2.AppFetchLogsResponse(batches=batches)

    @unary
    async def AppCountLogs(
        self, request: api_pb2.AppCountLogsRequest
    ) -> api_pb2.AppCountLogsResponse:
        bucket_ns = max(1, request.bucket_secs) * 1_000_000_000
        counts: dict[int, list[int]] = {}
        for line in self._between(request):
            count = counts.setdefault(line.time_ns // bucket_ns, [0, 0, 0])
            count[(STDOUT, STDERR, SYSTEM).index(line.source)] += 1
        response = api_pb2.AppCountLogsResponse(app_id=request.app_id)
        for bucket, (stdout, stderr, system) in sorted(counts.items()):
            start = Timestamp(seconds=bucket * bucket_ns // 1_000_000_000)
            response.buckets.add(
                bucket_start_at=start, stdout_logs=stdout, stderr_logs=stderr, system_logs=system
            )
        return response

    async def ContainerLog(self, stream: Any) -> None:
        from composer_tui.rehearsal.containers import Containers

        request = await stream.recv_message()
        container = self.plane.area(Containers).get(task_of(stream) or "")
        for item in request.logs:
            if item.data:
                self.add(
                    container.app_id,
                    item.data,
                    item.file_descriptor or SYSTEM,
                    container.task_id,
                    container.root_function_id,
                )
        await stream.send_message(Empty())

    def _between(self, request: Any) -> list[LogLine]:
        since_ns, until_ns = request.since.ToNanoseconds(), request.until.ToNanoseconds()
        until_ns = until_ns or self._now_ns()
        if until_ns - since_ns > (_RANGE_SECONDS + 60) * 1_000_000_000:
            raise GRPCError(Status.INVALID_ARGUMENT, "The time range cannot exceed 35 days.")
        wanted = _wanted(request)
        return [
            line
            for line in self._log(self._app_of(request)).lines
            if line.data and since_ns <= line.time_ns < until_ns and wanted.takes(line)
        ]

    def _app_of(self, request: Any) -> str:
        from composer_tui.rehearsal.apps import Apps
        from composer_tui.rehearsal.containers import Containers

        if request.app_id:
            return self.plane.area(Apps).get(request.app_id).app_id
        if request.task_id:
            return self.plane.area(Containers).get(request.task_id).app_id
        raise GRPCError(Status.INVALID_ARGUMENT, "Logs are of an app or of a container.")

    def _is_over(self, app_id: str, task_id: str) -> bool:
        from composer_tui.rehearsal.apps import Apps
        from composer_tui.rehearsal.containers import Containers

        if self.plane.area(Apps).get(app_id).is_over:
            return True
        return bool(task_id) and self.plane.area(Containers).get(task_id).is_gone

    def _log(self, app_id: str) -> _AppLog:
        log = self._logs.get(app_id)
        if log is None:
            path = self.plane.root / "apps" / app_id / "logs.jsonl"
            log = self._logs[app_id] = _AppLog(path)
        return log

    def _now_ns(self) -> int:
        return time.time_ns() + int(self.plane.chaos.skew_seconds * 1_000_000_000)


def _wanted(request: Any) -> _Filter:
    source = getattr(request, "source", 0) or getattr(request, "file_descriptor", 0)
    return _Filter(
        source,
        request.function_id,
        request.function_call_id,
        request.task_id,
        getattr(request, "input_id", ""),
        request.search_text,
    )


def _position(entry_id: str, count: int) -> int:
    """Where to go on after that entry; an id that is not ours starts from the beginning."""
    return min(int(entry_id), count) if entry_id.isascii() and entry_id.isdigit() else 0


def _batches(
    lines: Sequence[LogLine], wanted: _Filter | None
) -> Iterator[tuple[int, api_pb2.TaskLogsBatch]]:
    """The lines in order, in batches of one container; with how many lines are behind by then."""
    numbered = [
        (number, line)
        for number, line in enumerate(lines, 1)
        if wanted is None or wanted.takes(line)
    ]
    for (task_id, function_id), group in groupby(
        numbered, lambda pair: (pair[1].task_id, pair[1].function_id)
    ):
        batch = api_pb2.TaskLogsBatch(
            task_id=task_id, function_id=function_id, root_function_id=function_id
        )
        number = 0
        for number, line in group:  # noqa: B007  # the last number is wanted
            batch.items.append(_item(line))
        yield number, batch


def _item(line: LogLine) -> api_pb2.TaskLogs:
    return api_pb2.TaskLogs(
        data=line.data,
        task_state=line.state,  # type: ignore[arg-type]
        timestamp=line.time_ns / 1e9,
        timestamp_ns=line.time_ns,
        file_descriptor=line.source,  # type: ignore[arg-type]
        function_call_id=line.call_id,
        input_id=line.input_id,
        container_id=line.task_id,
    )


def _reset(stream: Any) -> None:
    """Cuts the client's connection, as a network does."""
    stream._stream._transport.abort()  # noqa: SLF001  # grpclib offers nothing gentler or ruder
