"""Things that have an id and, where somebody gave it one, a name in an environment."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

import msgspec
from grpclib import Status
from modal_proto import api_pb2

from composer_tui.rehearsal.ids import new_id
from composer_tui.rehearsal.rpc import refuse
from composer_tui.runs.folder import read_json, write_whole

EPHEMERAL_EXPIRY_SECONDS = 900.0  # a client's heart beats every 300
CREATED_BY = "rehearsal"
_NAME_LENGTH = 64  # characters at most
_NAMELESS = (
    api_pb2.OBJECT_CREATION_TYPE_EPHEMERAL,
    api_pb2.OBJECT_CREATION_TYPE_ANONYMOUS_OWNED_BY_APP,
)
_MAKES_MISSING = (
    api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING,
    api_pb2.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS,
    api_pb2.OBJECT_CREATION_TYPE_CREATE_OVERWRITE_IF_EXISTS,
)


class Record(msgspec.Struct, kw_only=True):
    """One thing. ``name`` is empty where it has none; ``created_at`` is unix seconds.

    An ephemeral thing is its client's alone: it ends with the heartbeats and with this process.
    """

    object_id: str
    name: str
    environment: str
    created_at: float
    ephemeral: bool = False
    app_id: str = ""

    def creation_info(self) -> api_pb2.CreationInfo:
        return api_pb2.CreationInfo(created_at=self.created_at, created_by=CREATED_BY)


_RecordT = TypeVar("_RecordT", bound=Record)


class Registry(Generic[_RecordT]):
    """All things of one kind; the lasting ones are in the file ``path``, as JSON, mode 0600."""

    def __init__(
        self, noun: str, prefix: str, kind: type[_RecordT], path: Path, now: Callable[[], float]
    ) -> None:
        self._noun = noun
        self._prefix = prefix
        self._kind = kind
        self._path = path
        self._now = now
        self._records: dict[str, _RecordT] = {}
        self._heard_at: dict[str, float] = {}  # of the ephemeral ones

    def restore(self) -> None:
        """Raises `DamagedFolder` when the file is there and cannot be read."""
        if self._path.exists():
            records = read_json(self._path, list[self._kind])  # type: ignore[name-defined]
            self._records = {record.object_id: record for record in records}

    def save(self) -> None:
        """To be called after a record was changed in place."""
        lasting = [record for record in self._records.values() if not record.ephemeral]
        write_whole(self._path, msgspec.json.encode(lasting))

    def __iter__(self) -> Iterator[_RecordT]:
        return iter(list(self._records.values()))

    def get(self, object_id: str) -> _RecordT:
        """Raises NOT_FOUND."""
        record = self._records.get(object_id)
        if record is None:
            refuse(Status.NOT_FOUND, f"{self._noun} with id '{object_id}' not found")
        return record

    def find(self, name: str, environment: str) -> _RecordT | None:
        """The one of that name. An empty name is nobody's."""
        if not name:
            return None
        for record in self._records.values():
            if record.name == name and record.environment == environment:
                return record
        return None

    def get_or_create(
        self, name: str, environment: str, creation_type: int, app_id: str = ""
    ) -> tuple[_RecordT, bool]:
        """The thing, and whether it is new. Raises NOT_FOUND or ALREADY_EXISTS as asked for."""
        if creation_type in _NAMELESS:
            lasting = creation_type == api_pb2.OBJECT_CREATION_TYPE_ANONYMOUS_OWNED_BY_APP
            return self._add("", environment, ephemeral=not lasting, app_id=app_id), True
        found = self.find(name, environment)
        if found is None:
            if creation_type not in _MAKES_MISSING:
                refuse(
                    Status.NOT_FOUND,
                    f"{self._noun} '{name}' not found in environment '{environment}'",
                )
            self._check_name(name)
            return self._add(name, environment), True
        if creation_type == api_pb2.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS:
            self._refuse_taken(name, environment)
        return found, False

    def rename(self, object_id: str, name: str) -> None:
        """Raises NOT_FOUND, ALREADY_EXISTS or INVALID_ARGUMENT."""
        record = self.get(object_id)
        other = self.find(name, record.environment)
        if other is not None and other is not record:
            self._refuse_taken(name, record.environment)
        self._check_name(name)
        record.name = name
        self.save()

    def remove(self, object_id: str) -> _RecordT:
        """Raises NOT_FOUND."""
        record = self.get(object_id)
        del self._records[object_id]
        self._heard_at.pop(object_id, None)
        if not record.ephemeral:
            self.save()
        return record

    def beat(self, object_id: str) -> None:
        """A client says that it still wants its ephemeral thing. Raises NOT_FOUND."""
        if self.get(object_id).ephemeral:
            self._heard_at[object_id] = self._now()

    def expired(self) -> list[str]:
        """The ephemeral things whose clients have been silent for too long."""
        limit = self._now() - EPHEMERAL_EXPIRY_SECONDS
        return [object_id for object_id, heard_at in self._heard_at.items() if heard_at < limit]

    def page(self, environment: str, pagination: api_pb2.ListPagination) -> list[_RecordT]:
        """The named ones, newest first, made before a time: Modal's way of turning pages."""
        before = pagination.created_before or float("inf")
        named = [
            record
            for record in self._records.values()
            if record.name and record.environment == environment and record.created_at < before
        ]
        named.sort(key=lambda record: record.created_at, reverse=True)
        return named[: pagination.max_objects or 100]

    def _add(
        self, name: str, environment: str, *, ephemeral: bool = False, app_id: str = ""
    ) -> _RecordT:
        record = self._kind(
            object_id=new_id(self._prefix),
            name=name,
            environment=environment,
            created_at=self._now(),
            ephemeral=ephemeral,
            app_id=app_id,
        )
        self._records[record.object_id] = record
        if ephemeral:
            self._heard_at[record.object_id] = record.created_at
        else:
            self.save()
        return record

    def _check_name(self, name: str) -> None:
        allowed = all(letter.isascii() and (letter.isalnum() or letter in "-_.") for letter in name)
        if not allowed or not 0 < len(name) <= _NAME_LENGTH or name in (".", ".."):
            refuse(Status.INVALID_ARGUMENT, f"Invalid {self._noun} name: '{name}'.")

    def _refuse_taken(self, name: str, environment: str) -> None:
        refuse(
            Status.ALREADY_EXISTS,
            f"{self._noun} '{name}' already exists in environment '{environment}'",
        )
