"""Volumes: their names, the containers' working copies, commit and reload."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.empty_pb2 import Empty
from grpclib.server import Stream
from modal_proto import api_pb2

from composer_tui.rehearsal import files
from composer_tui.rehearsal.area import task_of
from composer_tui.rehearsal.registry import Record, Registry
from composer_tui.rehearsal.rpc import received, unary
from composer_tui.rehearsal.tree import Tree
from composer_tui.rehearsal.volume_files import SharedTree, VolumeFiles
from composer_tui.rehearsal.volume_mounts import VolumeMounts
from composer_tui.rehearsal.volume_uploads import VolumeUploads
from composer_tui.rehearsal.workspace import DEFAULT_ENVIRONMENT, Workspace

if TYPE_CHECKING:
    from composer_tui.rehearsal.control_plane import ControlPlane


_V2 = 2  # of Modal's volume file system: larger volumes, uploads in blocks


class VolumeRecord(Record):
    """A volume; ``version`` is that of Modal's volume file system, 1 or 2."""

    version: int = 1


class Volumes(VolumeFiles, VolumeUploads):
    """``root/volumes/NAME`` holds a volume's committed files as plain files.

    (Those of another environment than main are in ``NAME@ENVIRONMENT``.) A commit is whole for
    each file, not over all of them: a rehearsal killed in the middle of one has carried over some.
    """

    def __init__(self, plane: "ControlPlane") -> None:
        super().__init__(plane)
        self._registry = Registry(
            "Volume", "vo", VolumeRecord, plane.root / "volumes.json", plane.now
        )
        self._trees: dict[str, SharedTree] = {}
        self._working = plane.root / "working"
        self._mounts = VolumeMounts(self._working)
        self._staging = plane.root / "staging"

    def restore(self) -> None:
        super().restore()
        self._registry.restore()
        for left_over in (self._working, self._staging, self._ephemeral_folder):
            files.discard(left_over)
        self._staging.mkdir()
        for record in self._registry:
            self._folder_of(record).mkdir(parents=True, exist_ok=True)

    def tree(self, volume_id: str) -> SharedTree:
        """The volume's committed files. Raises NOT_FOUND."""
        record = self._registry.get(volume_id)
        if volume_id not in self._trees:
            tree = Tree(self._folder_of(record), self._staging)
            self._trees[volume_id] = SharedTree(tree, asyncio.Lock())
        return self._trees[volume_id]

    def metadata(self, volume_id: str) -> api_pb2.VolumeMetadata:
        return self._metadata(self._registry.get(volume_id))

    async def open_mount(
        self, volume_id: str, task_id: str, read_only: bool, sub_path: str = ""
    ) -> Path:
        """The container's own working copy, to be bound at the mount path.

        The same copy when the container mounts the volume a second time. A ``sub_path`` is made
        when it is not there. What is written to a read-only copy is never committed. Raises
        NOT_FOUND, INVALID_ARGUMENT or OSError.
        """
        shared = self.tree(volume_id)
        return await self._mounts.open(shared, volume_id, task_id, read_only, sub_path)

    async def drop_mounts(self, task_id: str) -> None:
        """The container is gone, and with it what it did not commit."""
        await self._mounts.drop(task_id)

    @unary
    async def VolumeGetOrCreate(
        self, request: api_pb2.VolumeGetOrCreateRequest
    ) -> api_pb2.VolumeGetOrCreateResponse:
        await self._drop_expired()
        environment = self.plane.area(Workspace).environment_name(request.environment_name)
        record, new = self._registry.get_or_create(
            request.deployment_name, environment, request.object_creation_type, request.app_id
        )
        if new:
            if request.version == api_pb2.VOLUME_FS_VERSION_V2:
                record.version = _V2
                self._registry.save()
            self._folder_of(record).mkdir(parents=True, exist_ok=True)
        metadata = self._metadata(record)
        return api_pb2.VolumeGetOrCreateResponse(
            volume_id=record.object_id, version=metadata.version, metadata=metadata
        )

    @unary
    async def VolumeGetById(
        self, request: api_pb2.VolumeGetByIdRequest
    ) -> api_pb2.VolumeGetByIdResponse:
        return api_pb2.VolumeGetByIdResponse(
            volume_id=request.volume_id, metadata=self.metadata(request.volume_id)
        )

    @unary
    async def VolumeList(self, request: api_pb2.VolumeListRequest) -> api_pb2.VolumeListResponse:
        environment = self.plane.area(Workspace).environment_name(request.environment_name)
        return api_pb2.VolumeListResponse(
            environment_name=environment,
            items=[
                api_pb2.VolumeListItem(
                    label=record.name,
                    volume_id=record.object_id,
                    created_at=record.created_at,
                    metadata=self._metadata(record),
                )
                for record in self._registry.page(environment, request.pagination)
            ],
        )

    @unary
    async def VolumeRename(self, request: api_pb2.VolumeRenameRequest) -> Empty:
        shared = self.tree(request.volume_id)
        record = self._registry.get(request.volume_id)
        async with shared.lock:
            before = self._folder_of(record)
            self._registry.rename(request.volume_id, request.name)
            shared.tree.top = before.rename(self._folder_of(record))
        return Empty()

    @unary
    async def VolumeDelete(self, request: api_pb2.VolumeDeleteRequest) -> Empty:
        await self._delete(request.volume_id)
        return Empty()

    @unary
    async def VolumeHeartbeat(self, request: api_pb2.VolumeHeartbeatRequest) -> Empty:
        self._registry.beat(request.volume_id)
        return Empty()

    async def VolumeCommit(
        self, stream: Stream[api_pb2.VolumeCommitRequest, api_pb2.VolumeCommitResponse]
    ) -> None:
        request = await received(stream)
        await self._mounts.commit(request.volume_id, task_of(stream) or "")
        # The commit has brought in what others committed: nothing is left for a reload.
        await stream.send_message(api_pb2.VolumeCommitResponse(skip_reload=True))

    async def VolumeReload(self, stream: Stream[api_pb2.VolumeReloadRequest, Empty]) -> None:
        request = await received(stream)
        await self._mounts.reload(request.volume_id, task_of(stream) or "")
        await stream.send_message(Empty())

    async def forget_environment(self, environment: str) -> None:
        """Deletes all volumes of an environment that is being deleted."""
        for record in self._registry:
            if record.environment == environment:
                await self._delete(record.object_id)

    @property
    def _ephemeral_folder(self) -> Path:
        return self.plane.root / "ephemeral-volumes"

    def _folder_of(self, record: VolumeRecord) -> Path:
        if not record.name:
            return self._ephemeral_folder / record.object_id
        suffix = "" if record.environment == DEFAULT_ENVIRONMENT else f"@{record.environment}"
        return self.plane.root / "volumes" / f"{record.name}{suffix}"

    def _metadata(self, record: VolumeRecord) -> api_pb2.VolumeMetadata:
        version = (
            api_pb2.VOLUME_FS_VERSION_V2 if record.version == _V2 else api_pb2.VOLUME_FS_VERSION_V1
        )
        return api_pb2.VolumeMetadata(
            version=version, name=record.name, creation_info=record.creation_info()
        )

    async def _delete(self, volume_id: str) -> None:
        shared = self.tree(volume_id)
        async with shared.lock:
            folder = self._folder_of(self._registry.remove(volume_id))
            del self._trees[volume_id]
            await asyncio.to_thread(files.discard, folder)

    async def _drop_expired(self) -> None:
        for volume_id in self._registry.expired():
            await self._delete(volume_id)
