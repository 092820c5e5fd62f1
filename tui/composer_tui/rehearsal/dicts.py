"""Dictionaries that clients and containers share."""

import sqlite3
from typing import TYPE_CHECKING

from google.protobuf.empty_pb2 import Empty
from grpclib.server import Stream
from modal_proto import api_pb2

from composer_tui.rehearsal.area import Area
from composer_tui.rehearsal.registry import Record, Registry
from composer_tui.rehearsal.rpc import received, unary
from composer_tui.rehearsal.store import open_store
from composer_tui.rehearsal.workspace import Workspace

if TYPE_CHECKING:
    from composer_tui.rehearsal.control_plane import ControlPlane

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    dict_id TEXT, key BLOB, value BLOB, PRIMARY KEY (dict_id, key)
) WITHOUT ROWID;
"""
LENGTH_LIMIT = 100_000  # the length is not counted further


class Dicts(Area):
    """All dictionaries. Entries do not expire: a rehearsal is over before a week is."""

    def __init__(self, plane: "ControlPlane") -> None:
        super().__init__(plane)
        self._registry = Registry("Dict", "di", Record, plane.root / "dicts.json", plane.now)
        self._store: sqlite3.Connection | None = None

    def restore(self) -> None:
        self._registry.restore()
        self._store = open_store(self.plane.root / "dicts.sqlite", _SCHEMA)
        known = {record.object_id for record in self._registry}
        for (dict_id,) in self._execute("SELECT DISTINCT dict_id FROM entries").fetchall():
            if dict_id not in known:  # an ephemeral one's, of a process that is gone
                self._execute("DELETE FROM entries WHERE dict_id = ?", dict_id)

    async def close(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def metadata(self, dict_id: str) -> api_pb2.DictMetadata:
        return _metadata(self._registry.get(dict_id))

    def forget_environment(self, environment: str) -> None:
        """Deletes all dictionaries of an environment that is being deleted."""
        for record in self._registry:
            if record.environment == environment:
                self._delete(record.object_id)

    @unary
    async def DictGetOrCreate(
        self, request: api_pb2.DictGetOrCreateRequest
    ) -> api_pb2.DictGetOrCreateResponse:
        for dict_id in self._registry.expired():
            self._delete(dict_id)
        environment = self.plane.area(Workspace).environment_name(request.environment_name)
        record, new = self._registry.get_or_create(
            request.deployment_name, environment, request.object_creation_type
        )
        if new:
            for entry in request.data:
                self._put(record.object_id, entry)
        return api_pb2.DictGetOrCreateResponse(dict_id=record.object_id, metadata=_metadata(record))

    @unary
    async def DictGetById(self, request: api_pb2.DictGetByIdRequest) -> api_pb2.DictGetByIdResponse:
        return api_pb2.DictGetByIdResponse(
            dict_id=request.dict_id, metadata=self.metadata(request.dict_id)
        )

    @unary
    async def DictList(self, request: api_pb2.DictListRequest) -> api_pb2.DictListResponse:
        environment = self.plane.area(Workspace).environment_name(request.environment_name)
        return api_pb2.DictListResponse(
            environment_name=environment,
            dicts=[
                api_pb2.DictListResponse.DictInfo(
                    name=record.name,
                    created_at=record.created_at,
                    dict_id=record.object_id,
                    metadata=_metadata(record),
                )
                for record in self._registry.page(environment, request.pagination)
            ],
        )

    @unary
    async def DictDelete(self, request: api_pb2.DictDeleteRequest) -> Empty:
        self._delete(request.dict_id)
        return Empty()

    @unary
    async def DictHeartbeat(self, request: api_pb2.DictHeartbeatRequest) -> Empty:
        self._registry.beat(request.dict_id)
        return Empty()

    @unary
    async def DictUpdate(self, request: api_pb2.DictUpdateRequest) -> api_pb2.DictUpdateResponse:
        self._registry.get(request.dict_id)
        created = True
        for entry in request.updates:
            if request.if_not_exists and self._get(request.dict_id, entry.key) is not None:
                created = False
            else:
                self._put(request.dict_id, entry)
        return api_pb2.DictUpdateResponse(created=created)

    @unary
    async def DictGet(self, request: api_pb2.DictGetRequest) -> api_pb2.DictGetResponse:
        value = self._get(request.dict_id, request.key)
        if value is None:
            return api_pb2.DictGetResponse(found=False)
        return api_pb2.DictGetResponse(found=True, value=value)

    @unary
    async def DictPop(self, request: api_pb2.DictPopRequest) -> api_pb2.DictPopResponse:
        value = self._get(request.dict_id, request.key)
        if value is None:
            return api_pb2.DictPopResponse(found=False)
        self._execute(
            "DELETE FROM entries WHERE dict_id = ? AND key = ?", request.dict_id, request.key
        )
        return api_pb2.DictPopResponse(found=True, value=value)

    @unary
    async def DictContains(
        self, request: api_pb2.DictContainsRequest
    ) -> api_pb2.DictContainsResponse:
        return api_pb2.DictContainsResponse(
            found=self._get(request.dict_id, request.key) is not None
        )

    @unary
    async def DictLen(self, request: api_pb2.DictLenRequest) -> api_pb2.DictLenResponse:
        self._registry.get(request.dict_id)
        [(length,)] = self._execute(
            "SELECT count(*) FROM entries WHERE dict_id = ?", request.dict_id
        )
        return api_pb2.DictLenResponse(len=min(length, LENGTH_LIMIT))

    @unary
    async def DictClear(self, request: api_pb2.DictClearRequest) -> Empty:
        self._registry.get(request.dict_id)
        self._execute("DELETE FROM entries WHERE dict_id = ?", request.dict_id)
        return Empty()

    async def DictContents(
        self, stream: Stream[api_pb2.DictContentsRequest, api_pb2.DictEntry]
    ) -> None:
        request = await received(stream)
        self._registry.get(request.dict_id)
        entries = self._execute(
            "SELECT key, value FROM entries WHERE dict_id = ?", request.dict_id
        ).fetchall()
        for key, value in entries:
            # The client tells its user which entry cannot be read, so the key always goes along.
            await stream.send_message(
                api_pb2.DictEntry(key=key, value=value if request.values else b"")
            )

    def _execute(self, statement: str, *parameters: object) -> sqlite3.Cursor:
        assert self._store is not None  # noqa: S101  # open from restore to close
        return self._store.execute(statement, parameters)

    def _get(self, dict_id: str, key: bytes) -> bytes | None:
        """Raises NOT_FOUND when there is no such dictionary."""
        self._registry.get(dict_id)
        row = self._execute(
            "SELECT value FROM entries WHERE dict_id = ? AND key = ?", dict_id, key
        ).fetchone()
        return None if row is None else bytes(row[0])

    def _put(self, dict_id: str, entry: api_pb2.DictEntry) -> None:
        self._execute(
            "INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", dict_id, entry.key, entry.value
        )

    def _delete(self, dict_id: str) -> None:
        self._registry.remove(dict_id)
        self._execute("DELETE FROM entries WHERE dict_id = ?", dict_id)


def _metadata(record: Record) -> api_pb2.DictMetadata:
    return api_pb2.DictMetadata(name=record.name, creation_info=record.creation_info())
