"""Images: none is built. Their layers are read, checked and remembered."""

import os
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from google.protobuf.empty_pb2 import Empty
from grpclib import Status
from grpclib.server import Stream
from modal_proto import api_pb2

from composer_tui.rehearsal import dockerfile
from composer_tui.rehearsal.area import Area
from composer_tui.rehearsal.digests import id_of
from composer_tui.rehearsal.mounts import Mounts
from composer_tui.rehearsal.rpc import received, refuse, unary
from composer_tui.runs.folder import read_json, write_whole

if TYPE_CHECKING:
    from composer_tui.rehearsal.control_plane import ControlPlane

_ID = re.compile(r"im-[A-Za-z0-9]{22}")
_BASE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """One image: its own layer on top of others.

    ``commands`` are the Dockerfile lines; ``problems`` what a build would stumble over.
    ``environ`` and ``workdir`` are those of the whole image, ``packages`` this layer's own.
    """

    image_id: str
    base_ids: list[str]
    commands: list[str]
    environ: dict[str, str]
    workdir: str
    packages: frozenset[str]
    copies: list[tuple[tuple[str, ...], str, bool]]
    context_mount_id: str
    problems: list[str]
    builder_version: str


class Images(Area):
    """Every image that was asked for. The same definition is the same image.

    A container runs with this machine's interpreter and packages; what the image would have
    installed is remembered so that a missing import can be explained.
    """

    def __init__(self, plane: "ControlPlane") -> None:
        super().__init__(plane)
        self._folder = plane.root / "images"

    def restore(self) -> None:
        self._folder.mkdir(exist_ok=True)

    def interpreter(self, image_id: str) -> str:
        """The Python that runs containers of this image. Raises NOT_FOUND."""
        self._read(image_id)
        return sys.executable

    def packages(self, image_id: str) -> frozenset[str]:
        """Normalised names of the Python packages that the whole image installs."""
        return frozenset().union(*(layer.packages for layer in self._layers(image_id)))

    def environ(self, image_id: str) -> dict[str, str]:
        """The variables that ENV lines set, of all layers. Raises NOT_FOUND."""
        return dict(self._read(image_id).environ)

    def workdir(self, image_id: str) -> str:
        """The working folder of containers, "" where no WORKDIR line sets one."""
        return self._read(image_id).workdir

    def metadata(self, image_id: str) -> api_pb2.ImageMetadata:
        layer = self._read(image_id)
        return api_pb2.ImageMetadata(
            python_version_info=f"Python {platform.python_version()}",
            image_builder_version=layer.builder_version,
            workdir=layer.workdir,
        )

    async def unpack(self, image_id: str, into: Path) -> None:
        """Lays out below ``into`` what was copied into the image from the client's files."""
        mounts = self.plane.area(Mounts)
        for layer in self._layers(image_id):
            for sources, target, into_folder in layer.copies:
                if layer.context_mount_id:
                    copy = dockerfile.Copy(sources, target, into_folder)
                    await mounts.unpack(layer.context_mount_id, into, copy.place)

    @unary
    async def ImageGetOrCreate(
        self, request: api_pb2.ImageGetOrCreateRequest
    ) -> api_pb2.ImageGetOrCreateResponse:
        definition = request.image.SerializeToString(deterministic=True)
        image_id = id_of("im", definition + request.builder_version.encode())
        if not self._path(image_id).exists():
            layer = self._layer(image_id, request)
            write_whole(self._path(image_id), msgspec.json.encode(layer))
        return api_pb2.ImageGetOrCreateResponse(
            image_id=image_id, result=self._result(image_id), metadata=self.metadata(image_id)
        )

    async def ImageJoinStreaming(
        self,
        stream: Stream[api_pb2.ImageJoinStreamingRequest, api_pb2.ImageJoinStreamingResponse],
    ) -> None:
        request = await received(stream)
        layer = self._read(request.image_id)
        if request.include_logs_for_finished:
            await stream.send_message(
                api_pb2.ImageJoinStreamingResponse(
                    task_logs=[
                        api_pb2.TaskLogs(
                            data=f"not run in a rehearsal: {command}\n",
                            timestamp=self.plane.now(),
                            file_descriptor=api_pb2.FILE_DESCRIPTOR_STDOUT,
                        )
                        for command in layer.commands
                    ],
                    entry_id="1",
                )
            )
        await stream.send_message(
            api_pb2.ImageJoinStreamingResponse(
                result=self._result(request.image_id),
                metadata=self.metadata(request.image_id),
                eof=True,
            )
        )

    @unary
    async def ImageFromId(self, request: api_pb2.ImageFromIdRequest) -> api_pb2.ImageFromIdResponse:
        return api_pb2.ImageFromIdResponse(
            image_id=request.image_id, metadata=self.metadata(request.image_id)
        )

    @unary
    async def ImageDelete(self, request: api_pb2.ImageDeleteRequest) -> Empty:
        self._read(request.image_id)
        self._path(request.image_id).unlink()
        return Empty()

    def _layer(self, image_id: str, request: api_pb2.ImageGetOrCreateRequest) -> Layer:
        image = request.image
        bases = [self._read(base.image_id) for base in image.base_images]
        environ = {"PATH": os.environ.get("PATH", _BASE_PATH)}
        for base in bases:
            environ |= base.environ
        inherited = dict(environ)
        layer = dockerfile.read(
            list(image.dockerfile_commands),
            {file.filename: file.data for file in image.context_files},
            frozenset(base.docker_tag for base in image.base_images),
            environ,
            next((base.workdir for base in reversed(bases) if base.workdir), ""),
        )
        problems = list(layer.problems)
        if image.HasField("build_function"):
            problems.append("the rehearsal does not run build functions (Image.run_function)")
        elif not image.dockerfile_commands:
            problems.append("the image has no commands")
        own = dict(layer.environ)
        if own["PATH"] == inherited["PATH"] and not any("PATH" in base.environ for base in bases):
            del own["PATH"]  # nobody set it
        return Layer(
            image_id=image_id,
            base_ids=[base.image_id for base in bases],
            commands=list(image.dockerfile_commands),
            environ=own,
            workdir=layer.workdir,
            packages=layer.packages,
            copies=[(copy.sources, copy.target, copy.into_folder) for copy in layer.copies],
            context_mount_id=image.context_mount_id,
            problems=problems,
            builder_version=request.builder_version,
        )

    def _result(self, image_id: str) -> api_pb2.GenericResult:
        problems = self._read(image_id).problems
        if problems:
            return api_pb2.GenericResult(
                status=api_pb2.GenericResult.GENERIC_STATUS_FAILURE, exception="\n".join(problems)
            )
        return api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS)

    def _path(self, image_id: str) -> Path:
        return self._folder / f"{image_id}.json"

    def _read(self, image_id: str) -> Layer:
        if not _ID.fullmatch(image_id) or not self._path(image_id).is_file():
            refuse(Status.NOT_FOUND, f"Image with id '{image_id}' not found")
        return read_json(self._path(image_id), Layer)

    def _layers(self, image_id: str) -> Iterator[Layer]:
        """The image's layers, those below first."""
        layer = self._read(image_id)
        for base_id in layer.base_ids:
            yield from self._layers(base_id)
        yield layer
