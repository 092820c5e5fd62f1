"""What it takes to start a container: its files, its environment and its arguments."""

import os
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modal_proto import api_pb2

from composer_tui.rehearsal.area import SECRET_HEADER, TASK_HEADER
from composer_tui.rehearsal.images import Images
from composer_tui.rehearsal.mounts import Mounts
from composer_tui.rehearsal.sandbox import HOME, SCRATCH, Bind
from composer_tui.rehearsal.secrets import Secrets
from composer_tui.rehearsal.volumes import Volumes

if TYPE_CHECKING:
    from composer_tui.rehearsal.containers import Container
    from composer_tui.rehearsal.control_plane import ControlPlane
    from composer_tui.rehearsal.functions import Function

ARGUMENTS = "arguments.pb"
_INHERITED = (  # what a container may know of the machine; never a token or a setting of ours
    "PATH",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "TZ",
    "LD_LIBRARY_PATH",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "TMPDIR",
)
_INHERITED_PREFIXES = ("CUDA_", "NVIDIA_", "ROCR_", "HIP_")


class Launch:
    """The files of one container, below ``folder``, which is its own and goes with it."""

    def __init__(self, plane: "ControlPlane", container: "Container", folder: Path) -> None:
        self._plane = plane
        self._container = container
        self._folder = folder
        self._files = folder / "files"  # the client's files, at their paths in the container

    async def order(
        self, function: "Function", layout: api_pb2.AppLayout, environment: str, *, isolated: bool
    ) -> dict[str, Any]:
        """What the supervisor is told. Raises OSError or GRPCError (something is not there)."""
        spec = function.spec
        await self._lay_out(spec)
        volumes = await self._volumes(spec)
        arguments = api_pb2.ContainerArguments(
            task_id=self._container.task_id,
            function_id=function.function_id,
            app_id=function.app_id,
            function_def=spec,
            serialized_params=function.params,
            environment_name=environment,
            app_layout=layout,
        )
        own = self._folder / "own"
        own.mkdir()
        (own / ARGUMENTS).write_bytes(arguments.SerializeToString())
        home = self._files / HOME.lstrip("/")
        home.mkdir(parents=True, exist_ok=True)
        scaffold = self._folder / "root"
        scaffold.mkdir()
        images = self._plane.area(Images)
        workdir = images.workdir(spec.image_id) or HOME
        interpreter = images.interpreter(spec.image_id)
        if isolated:
            binds = [*_system_binds(interpreter, home), *_overlays(self._files), *volumes]
            binds.append(Bind(str(own), SCRATCH))
            see = {HOME: HOME, SCRATCH: SCRATCH}
        else:
            binds = [
                _moved(bind, home)
                for bind in [*_overlays(self._files), *volumes]
                if bind.target != HOME
            ]
            see = {HOME: str(home), SCRATCH: str(own)}
            workdir = str(home) if workdir == HOME else workdir
        return {
            "argv": [interpreter, "-u", "-m", "modal._container_entrypoint"],
            "env": self._environ(spec, see, environment),
            "cwd": workdir,
            "isolated": isolated,
            "scaffold": str(scaffold),
            "binds": binds,
        }

    async def _lay_out(self, spec: api_pb2.Function) -> None:
        """The image's own files first, then the function's."""
        mounts = self._plane.area(Mounts)
        self._files.mkdir(parents=True)
        await self._plane.area(Images).unpack(spec.image_id, self._files)
        for mount_id in spec.mount_ids:
            await mounts.unpack(mount_id, self._files)

    async def _volumes(self, spec: api_pb2.Function) -> list[Bind]:
        volumes = self._plane.area(Volumes)
        binds = []
        for mount in spec.volume_mounts:
            source = await volumes.open_mount(
                mount.volume_id, self._container.task_id, mount.read_only, mount.sub_path
            )
            binds.append(Bind(str(source), mount.mount_path, mount.read_only))
        return sorted(binds, key=lambda bind: len(Path(bind.target).parts))

    def _environ(
        self, spec: api_pb2.Function, see: Mapping[str, str], environment: str
    ) -> dict[str, str]:
        container = self._container
        inherited = {
            name: value
            for name, value in os.environ.items()
            if name in _INHERITED or name.startswith(_INHERITED_PREFIXES)
        }
        headers = f"{TASK_HEADER}:{container.task_id},{SECRET_HEADER}:{container.secret}"
        return (
            inherited
            | self._plane.area(Images).environ(spec.image_id)
            | self._plane.area(Secrets).environ(list(spec.secret_ids))
            | {
                "HOME": see[HOME],
                "PYTHONPATH": see[HOME],
                "PYTHONUNBUFFERED": "1",
                "MODAL_IS_REMOTE": "1",
                "MODAL_SERVER_URL": self._plane.connection.url,
                "MODAL_TASK_ID": container.task_id,
                "MODAL_IMAGE_ID": spec.image_id,
                "MODAL_ENVIRONMENT": environment,
                "MODAL_CONTAINER_ARGUMENTS_PATH": f"{see[SCRATCH]}/{ARGUMENTS}",
                "MODAL_HEARTBEAT_INTERVAL": str(self._plane.settings.container_heartbeat_seconds),
                "MODAL_OVERRIDE_HEADERS": headers,
                "MODAL_DISABLE_API_PROXY": "1",
            }
        )


def _system_binds(interpreter: str, home: Path) -> list[Bind]:
    """The container's home, with what Python needs of the folder which it covers."""
    needed = {sys.prefix, sys.base_prefix, str(Path(interpreter).parent.parent), *sys.path}
    needed |= set(sysconfig.get_paths().values())
    hidden = sorted(path for path in needed if path.startswith(HOME + "/") and Path(path).exists())
    binds = [Bind(str(home), HOME)]
    for path in hidden:
        if not any(Path(path).is_relative_to(bind.target) for bind in binds[1:]):
            binds.append(Bind(path, path))
    return binds


def _overlays(files: Path) -> list[Bind]:
    """How the client's files outside of the home folder come to their places.

    A folder that this machine does not have is bound as a whole; where both have one, what is in
    it is looked at in the same way.
    """
    binds: list[Bind] = []
    todo = [Path("/")]
    while todo:
        folder = todo.pop()
        for entry in _entries(files / folder.relative_to("/")):
            path = folder / entry
            source = files / path.relative_to("/")
            if str(path) == HOME:
                continue
            if source.is_dir() and path.is_dir():
                todo.append(path)
            else:
                binds.append(Bind(str(source), str(path)))
    return binds


def _entries(folder: Path) -> Iterable[str]:
    return sorted(entry.name for entry in folder.iterdir())


def _moved(bind: Bind, home: Path) -> Bind:
    """Where there is no root of its own: paths in the home folder are in the private one."""
    target = Path(bind.target)
    if target.is_relative_to(HOME):
        target = home / target.relative_to(HOME)
        target.parent.mkdir(parents=True, exist_ok=True)
    return bind._replace(target=str(target))
