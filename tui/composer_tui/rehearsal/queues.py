"""Queues that clients and containers share: partitions, each first in, first out."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING

from google.protobuf.empty_pb2 import Empty
from grpclib import Status
from modal_proto import api_pb2

from composer_tui.rehearsal.area import Area
from composer_tui.rehearsal.registry import Record, Registry
from composer_tui.rehearsal.rpc import refuse, unary
from composer_tui.rehearsal.store import open_store
from composer_tui.rehearsal.workspace import Workspace

if TYPE_CHECKING:
    from composer_tui.rehearsal.control_plane import ControlPlane

ITEMS_LIMIT = 5_000  # in a partition
ITEM_BYTES_LIMIT = 1 << 20
PARTITION_BYTES_LIMIT = 64 << 20
LIFETIME_SECONDS = 86_400  # of a partition after its last put, where the client gives none
_PAGE = 100  # items in one answer of an iteration
_SCHEMA = """
CREATE TABLE IF NOT EXISTS items (
    entry INTEGER PRIMARY KEY AUTOINCREMENT, queue_id TEXT, partition BLOB, value BLOB
);
CREATE INDEX IF NOT EXISTS in_order ON items (queue_id, partition, entry);
CREATE TABLE IF NOT EXISTS partitions (
    queue_id TEXT, partition BLOB, expires_at REAL, PRIMARY KEY (queue_id, partition)
);
"""


class Queues(Area):
    """All queues. A partition is cleared when its lifetime after the last put is over."""

    def __init__(self, plane: "ControlPlane") -> None:
        super().__init__(plane)
        self._registry = Registry("Queue", "qu", Record, plane.root / "queues.json", plane.now)
        self._store: sqlite3.Connection | None = None
        self._something_new = asyncio.Condition()

    def restore(self) -> None:
        self._registry.restore()
        self._store = open_store(self.plane.root / "queues.sqlite", _SCHEMA)
        known = {record.object_id for record in self._registry}
        for (queue_id,) in self._execute("SELECT DISTINCT queue_id FROM partitions").fetchall():
            if queue_id not in known:  # an ephemeral one's, of a process that is gone
                self._clear(queue_id)

    async def close(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def metadata(self, queue_id: str) -> api_pb2.QueueMetadata:
        return _metadata(self._registry.get(queue_id))

    def forget_environment(self, environment: str) -> None:
        """Deletes all queues of an environment that is being deleted."""
        for record in self._registry:
            if record.environment == environment:
                self._delete(record.object_id)

    @unary
    async def QueueGetOrCreate(
        self, request: api_pb2.QueueGetOrCreateRequest
    ) -> api_pb2.QueueGetOrCreateResponse:
        for queue_id in self._registry.expired():
            self._delete(queue_id)
        environment = self.plane.area(Workspace).environment_name(request.environment_name)
        record, _ = self._registry.get_or_create(
            request.deployment_name, environment, request.object_creation_type
        )
        return api_pb2.QueueGetOrCreateResponse(
            queue_id=record.object_id, metadata=_metadata(record)
        )

    @unary
    async def QueueGetById(
        self, request: api_pb2.QueueGetByIdRequest
    ) -> api_pb2.QueueGetByIdResponse:
        return api_pb2.QueueGetByIdResponse(
            queue_id=request.queue_id, metadata=self.metadata(request.queue_id)
        )

    @unary
    async def QueueList(self, request: api_pb2.QueueListRequest) -> api_pb2.QueueListResponse:
        environment = self.plane.area(Workspace).environment_name(request.environment_name)
        response = api_pb2.QueueListResponse(environment_name=environment)
        for record in self._registry.page(environment, request.pagination):
            self._expire(record.object_id)
            [(partitions, items)] = self._execute(
                "SELECT count(DISTINCT partition), count(*) FROM items WHERE queue_id = ?",
                record.object_id,
            )
            response.queues.add(
                name=record.name,
                created_at=record.created_at,
                num_partitions=partitions,
                total_size=min(items, request.total_size_limit or items),
                queue_id=record.object_id,
                metadata=_metadata(record),
            )
        return response

    @unary
    async def QueueDelete(self, request: api_pb2.QueueDeleteRequest) -> Empty:
        self._delete(request.queue_id)
        await self._tell()
        return Empty()

    @unary
    async def QueueHeartbeat(self, request: api_pb2.QueueHeartbeatRequest) -> Empty:
        self._registry.beat(request.queue_id)
        return Empty()

    @unary
    async def QueuePut(self, request: api_pb2.QueuePutRequest) -> Empty:
        queue_id, partition = request.queue_id, request.partition_key
        self._expire(queue_id)
        self._check_room(queue_id, partition, list(request.values))
        for value in request.values:
            self._execute(
                "INSERT INTO items (queue_id, partition, value) VALUES (?, ?, ?)",
                queue_id,
                partition,
                value,
            )
        lifetime_seconds = request.partition_ttl_seconds or LIFETIME_SECONDS
        self._execute(
            "INSERT OR REPLACE INTO partitions VALUES (?, ?, ?)",
            queue_id,
            partition,
            self.plane.now() + lifetime_seconds,
        )
        await self._tell()
        return Empty()

    @unary
    async def QueueGet(self, request: api_pb2.QueueGetRequest) -> api_pb2.QueueGetResponse:
        def take() -> list[tuple[int, bytes]]:
            items = self._items(request.queue_id, request.partition_key, 0, request.n_values)
            for entry, _ in items:
                self._execute("DELETE FROM items WHERE entry = ?", entry)
            return items

        items = await self._within(request.timeout, take)
        return api_pb2.QueueGetResponse(values=[value for _, value in items])

    @unary
    async def QueueNextItems(
        self, request: api_pb2.QueueNextItemsRequest
    ) -> api_pb2.QueueNextItemsResponse:
        def look() -> list[tuple[int, bytes]]:
            after = int(request.last_entry_id) if request.last_entry_id.isdecimal() else 0
            return self._items(request.queue_id, request.partition_key, after, _PAGE)

        items = await self._within(request.item_poll_timeout, look)
        return api_pb2.QueueNextItemsResponse(
            items=[api_pb2.QueueItem(value=value, entry_id=str(entry)) for entry, value in items]
        )

    @unary
    async def QueueLen(self, request: api_pb2.QueueLenRequest) -> api_pb2.QueueLenResponse:
        self._expire(request.queue_id)
        [(length,)] = self._execute(
            "SELECT count(*) FROM items WHERE queue_id = ? AND (? OR partition = ?)",
            request.queue_id,
            request.total,
            request.partition_key,
        )
        return api_pb2.QueueLenResponse(len=length)

    @unary
    async def QueueClear(self, request: api_pb2.QueueClearRequest) -> Empty:
        self._registry.get(request.queue_id)
        self._clear(request.queue_id, None if request.all_partitions else request.partition_key)
        return Empty()

    def _execute(self, statement: str, *parameters: object) -> sqlite3.Cursor:
        assert self._store is not None  # noqa: S101  # open from restore to close
        return self._store.execute(statement, parameters)

    async def _tell(self) -> None:
        async with self._something_new:
            self._something_new.notify_all()

    async def _within(
        self, seconds: float, look: Callable[[], list[tuple[int, bytes]]]
    ) -> list[tuple[int, bytes]]:
        """What ``look`` finds, as soon as it finds something; nothing when the time is over."""
        deadline = asyncio.get_running_loop().time() + seconds
        async with self._something_new:
            while not (found := look()):
                left = deadline - asyncio.get_running_loop().time()
                if left <= 0:
                    break
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._something_new.wait(), left)
        return found

    def _items(
        self, queue_id: str, partition: bytes, after: int, count: int
    ) -> list[tuple[int, bytes]]:
        """The next items of a partition. Raises NOT_FOUND when there is no such queue."""
        self._expire(queue_id)
        return self._execute(
            "SELECT entry, value FROM items"
            " WHERE queue_id = ? AND partition = ? AND entry > ? ORDER BY entry LIMIT ?",
            queue_id,
            partition,
            after,
            max(1, count),
        ).fetchall()

    def _check_room(self, queue_id: str, partition: bytes, values: list[bytes]) -> None:
        """Raises RESOURCE_EXHAUSTED, which the client raises as `queue.Full`."""
        if any(len(value) > ITEM_BYTES_LIMIT for value in values):
            refuse(Status.INVALID_ARGUMENT, "an item of a queue can be up to 1 MiB")
        [(items, size_bytes)] = self._execute(
            "SELECT count(*), coalesce(sum(length(value)), 0) FROM items"
            " WHERE queue_id = ? AND partition = ?",
            queue_id,
            partition,
        )
        if items + len(values) > ITEMS_LIMIT:
            refuse(Status.RESOURCE_EXHAUSTED, f"the partition is full: {ITEMS_LIMIT} items")
        if size_bytes + sum(map(len, values)) > PARTITION_BYTES_LIMIT:
            refuse(Status.RESOURCE_EXHAUSTED, "the partition is full: 64 MiB")

    def _expire(self, queue_id: str) -> None:
        """Clears the partitions whose time is over. Raises NOT_FOUND."""
        self._registry.get(queue_id)
        over = self._execute(
            "SELECT partition FROM partitions WHERE queue_id = ? AND expires_at <= ?",
            queue_id,
            self.plane.now(),
        ).fetchall()
        for (partition,) in over:
            self._clear(queue_id, partition)

    def _clear(self, queue_id: str, partition: bytes | None = None) -> None:
        """Drops the items of one partition, or of all when none is given."""
        for table in ("items", "partitions"):
            self._execute(
                f"DELETE FROM {table} WHERE queue_id = ? AND (? OR partition = ?)",  # noqa: S608  # ours
                queue_id,
                partition is None,
                partition,
            )

    def _delete(self, queue_id: str) -> None:
        self._registry.remove(queue_id)
        self._clear(queue_id)


def _metadata(record: Record) -> api_pb2.QueueMetadata:
    return api_pb2.QueueMetadata(name=record.name, creation_info=record.creation_info())
