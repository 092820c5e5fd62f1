"""Secrets: environment variables that containers get.

Values are in memory and in ``root/secrets.json``, mode 0600: a deployed app needs its secrets
after a restart. Those of a client alone (ephemeral ones) are never written. No value is ever part
of a message or a log line.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import msgspec
from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from composer_tui.rehearsal.area import Area
from composer_tui.rehearsal.registry import Record, Registry
from composer_tui.rehearsal.rpc import refuse, unary
from composer_tui.rehearsal.workspace import Workspace

if TYPE_CHECKING:
    from composer_tui.rehearsal.control_plane import ControlPlane


class SecretRecord(Record):
    """A secret. ``values`` must not be shown; ``last_used_at`` is unix seconds, 0 for never."""

    values: dict[str, str] = msgspec.field(default_factory=dict)
    last_used_at: float = 0.0

    def __repr__(self) -> str:
        return f"SecretRecord(object_id={self.object_id!r}, name={self.name!r})"


class Secrets(Area):
    """All secrets of the rehearsal."""

    def __init__(self, plane: "ControlPlane") -> None:
        super().__init__(plane)
        self._registry = Registry(
            "Secret", "st", SecretRecord, plane.root / "secrets.json", plane.now
        )

    def restore(self) -> None:
        self._registry.restore()

    async def start(self) -> None:
        from composer_tui.rehearsal.apps import Apps

        apps = self.plane.area(Apps)
        for app_id in {record.app_id for record in self._registry if record.app_id}:
            try:
                is_over = apps.get(app_id).is_over
            except GRPCError:
                is_over = True
            if is_over:  # it was live when the last process was killed
                self.forget_app(app_id)

    def environ(self, secret_ids: Iterable[str]) -> dict[str, str]:
        """The variables of these secrets; of two values the later secret's. Raises NOT_FOUND."""
        variables: dict[str, str] = {}
        for secret_id in secret_ids:
            record = self._registry.get(secret_id)
            record.last_used_at = self.plane.now()
            variables |= record.values
        return variables

    def metadata(self, secret_id: str) -> api_pb2.SecretMetadata:
        return _metadata(self._registry.get(secret_id))

    def forget_app(self, app_id: str) -> None:
        """Drops what belonged to an app that is gone for good."""
        for record in self._registry:
            if app_id and record.app_id == app_id:
                self._registry.remove(record.object_id)

    def forget_environment(self, environment: str) -> None:
        """Drops all secrets of an environment that is being deleted."""
        for record in self._registry:
            if record.environment == environment:
                self._registry.remove(record.object_id)

    @unary
    async def SecretGetOrCreate(
        self, request: api_pb2.SecretGetOrCreateRequest
    ) -> api_pb2.SecretGetOrCreateResponse:
        for secret_id in self._registry.expired():
            self._registry.remove(secret_id)
        _check(request.env_dict)
        environment = self.plane.area(Workspace).environment_name(request.environment_name)
        record, new = self._registry.get_or_create(
            request.deployment_name, environment, request.object_creation_type, request.app_id
        )
        overwrites = (
            request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_CREATE_OVERWRITE_IF_EXISTS
        )
        if new or overwrites:
            record.values = dict(request.env_dict)
            self._registry.save()
        missing = [key for key in request.required_keys if key not in record.values]
        if missing:
            refuse(Status.NOT_FOUND, f"Secret is missing key(s): {', '.join(missing)}")
        return api_pb2.SecretGetOrCreateResponse(
            secret_id=record.object_id, metadata=_metadata(record)
        )

    @unary
    async def SecretGetInfo(
        self, request: api_pb2.SecretGetInfoRequest
    ) -> api_pb2.SecretGetInfoResponse:
        return api_pb2.SecretGetInfoResponse(metadata=self.metadata(request.secret_id))

    @unary
    async def SecretUpdate(self, request: api_pb2.SecretUpdateRequest) -> Empty:
        record = self._registry.get(request.secret_id)
        changed = dict(record.values)
        for update in request.updates:
            if update.HasField("value"):
                changed[update.key] = update.value
            else:
                changed.pop(update.key, None)
        _check(changed)
        record.values = changed
        self._registry.save()
        return Empty()

    @unary
    async def SecretList(self, request: api_pb2.SecretListRequest) -> api_pb2.SecretListResponse:
        environment = self.plane.area(Workspace).environment_name(request.environment_name)
        return api_pb2.SecretListResponse(
            environment_name=environment,
            items=[
                api_pb2.SecretListItem(
                    label=record.name,
                    created_at=record.created_at,
                    last_used_at=record.last_used_at,
                    environment_name=environment,
                    secret_id=record.object_id,
                    metadata=_metadata(record),
                )
                for record in self._registry.page(environment, request.pagination)
            ],
        )

    @unary
    async def SecretDelete(self, request: api_pb2.SecretDeleteRequest) -> Empty:
        self._registry.remove(request.secret_id)
        return Empty()


def _metadata(record: SecretRecord) -> api_pb2.SecretMetadata:
    return api_pb2.SecretMetadata(
        name=record.name,
        creation_info=record.creation_info(),
        keys=sorted(record.values),
        environment_name=record.environment,
        last_used_at=record.last_used_at,
    )


def _check(values: Mapping[str, str]) -> None:
    """Raises INVALID_ARGUMENT for what no process could get as its environment."""
    for key, value in values.items():
        if not key or "=" in key or "\0" in key:
            refuse(Status.INVALID_ARGUMENT, f"not a name of an environment variable: {key!r}")
        if "\0" in value:
            refuse(Status.INVALID_ARGUMENT, f"the value of {key} has a NUL in it")
