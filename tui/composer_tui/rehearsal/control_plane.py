"""The control plane: its folder, its areas, and the one service they are composed into."""

import asyncio
import hmac
import importlib
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import grpclib.const
from grpclib import GRPCError, Status
from grpclib.server import Server
from modal._utils.grpc_utils import custom_detail_codec
from modal_proto.api_grpc import ModalClientBase

from composer_tui.rehearsal.area import SECRET_HEADER, TASK_HEADER, Area
from composer_tui.rehearsal.chaos import Chaos
from composer_tui.rehearsal.connection import Connection

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
_AreaT = TypeVar("_AreaT", bound=Area)
_Method = Callable[[Any], Awaitable[None]]

# In the order in which they are restored and started; closed in the reverse order.
_AREAS: tuple[tuple[str, str], ...] = (
    ("workspace", "Workspace"),
    ("blobs", "Blobs"),
    ("mounts", "Mounts"),
    ("images", "Images"),
    ("secrets", "Secrets"),
    ("dicts", "Dicts"),
    ("queues", "Queues"),
    ("volumes", "Volumes"),
    ("logs", "Logs"),
    ("hello", "Hello"),
    ("apps", "Apps"),
    ("functions", "Functions"),
    ("calls", "Calls"),
    ("containers", "Containers"),
)


class Settings(NamedTuple):
    """How long the control plane waits for things, in seconds."""

    attached_expiry_seconds: float = 60.0  # from an attached client's last heartbeat to its end
    detached_linger_seconds: float = 1.0  # from a detached app's last output to its end
    stop_grace_seconds: float = 2.0  # from SIGINT to SIGKILL of a container
    container_heartbeat_seconds: float = 5.0
    container_expiry_seconds: float = 30.0  # from a container's last heartbeat to its end
    preempt_grace_seconds: float = 5.0  # from SIGINT to SIGKILL of a preempted container
    most_containers: int = 16  # of one function, whatever it asks for
    isolated: bool = True  # whether containers have mount namespaces


class ControlPlane:
    """One rehearsal: everything it knows lives under ``root`` and in its areas.

    Listens on 127.0.0.1 only. ``connection`` is complete (its url known) once `start` returned.
    """

    def __init__(
        self,
        root: Path,
        token_id: str,
        token_secret: str,
        settings: Settings | None = None,
        chaos: Chaos | None = None,
    ) -> None:
        self.root = root
        self.settings = settings or Settings()
        self.chaos = chaos or Chaos()
        self.connection = Connection("", token_id, token_secret)
        self.requests = 0  # how many a client has made: tells that somebody is there
        self._areas: dict[type[Area], Area] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._container_secrets: dict[str, str] = {}
        self._server: Server | None = None
        for kind in _area_kinds():
            self._areas[kind] = kind(self)

    def area(self, kind: type[_AreaT]) -> _AreaT:
        """The area of that class: ``plane.area(Volumes)``."""
        found = self._areas[kind]
        assert isinstance(found, kind)  # noqa: S101  # what the line above put there
        return found

    def now(self) -> float:
        """Unix seconds, as this control plane tells the time."""
        return time.time() + self.chaos.skew_seconds

    def spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Runs it beside everything else, until it ends or the control plane does."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def admit_container(self, task_id: str, secret: str) -> None:
        """From now on requests with this secret are that container's."""
        self._container_secrets[task_id] = secret

    def dismiss_container(self, task_id: str) -> None:
        """The container is gone: nobody may speak for it any more."""
        self._container_secrets.pop(task_id, None)

    async def start(self, port: int = 0) -> Connection:
        """Restores the areas and serves on 127.0.0.1. Raises OSError (the port is taken)."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        areas = list(self._areas.values())
        for area in areas:
            area.restore()
        listener = socket.create_server((LOOPBACK, port))
        self.connection = self.connection._replace(
            url=f"http://{LOOPBACK}:{listener.getsockname()[1]}"
        )
        for area in areas:
            await area.start()
        self._server = Server([_Service(self, areas)], status_details_codec=custom_detail_codec)
        await self._server.start(sock=listener, backlog=1024)
        return self.connection

    async def stop(self) -> None:
        """Closes the areas (containers first), then ends the listening."""
        for area in reversed(list(self._areas.values())):
            await area.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    async def answer(self, rpc: str, method: _Method, stream: Any) -> None:
        """One request: who asks, what goes wrong on purpose, then the area's own answer."""
        self._authenticate(stream.metadata or {})
        await self.chaos.before(rpc)
        await method(stream)

    def _authenticate(self, metadata: Mapping[str, str | bytes]) -> None:
        """Raises UNAUTHENTICATED. Secrets are compared in constant time."""
        if TASK_HEADER in metadata:
            ours = self._container_secrets.get(str(metadata[TASK_HEADER]))
            if ours is None or not _same(ours, metadata.get(SECRET_HEADER)):
                raise GRPCError(Status.UNAUTHENTICATED, "Unknown container.")
            return
        self.requests += 1
        token_id, token_secret = (
            metadata.get("x-modal-token-id"),
            metadata.get("x-modal-token-secret"),
        )
        if not token_id or not token_secret:
            raise GRPCError(Status.UNAUTHENTICATED, "Token missing. Could not authenticate client.")
        # Both are compared whatever the first says.
        if not (
            _same(self.connection.token_id, token_id)
            & _same(self.connection.token_secret, token_secret)
        ):
            raise GRPCError(
                Status.UNAUTHENTICATED,
                "Token validation failed: this is not the token of this rehearsal.",
            )

    def _reap(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a background task failed", exc_info=error)


class _Service:
    """Every RPC of Modal's service: an area's method where one has it, else a refusal."""

    def __init__(self, plane: ControlPlane, areas: list[Area]) -> None:
        self._plane = plane
        self._methods: dict[str, _Method] = {}
        for area in areas:
            for rpc in sorted(_RPCS & set(dir(area))):
                if rpc in self._methods:
                    raise TypeError(f"two areas answer {rpc}")
                self._methods[rpc] = getattr(area, rpc)

    def __mapping__(self) -> dict[str, grpclib.const.Handler]:
        return {
            path: handler._replace(func=self._guarded(path.rpartition("/")[2]))
            for path, handler in _Refusals().__mapping__().items()
        }

    def _guarded(self, rpc: str) -> _Method:
        method = self._methods.get(rpc) or getattr(_REFUSALS, rpc)
        return partial(self._plane.answer, rpc, method)


_RPCS = frozenset(ModalClientBase.__abstractmethods__)


def _refusal(rpc: str) -> Callable[[object, Any], Awaitable[None]]:
    async def refuse(_self: object, _stream: Any) -> None:
        raise GRPCError(Status.UNIMPLEMENTED, f"the rehearsal does not imitate {rpc}")

    return refuse


_Refusals = type("_Refusals", (ModalClientBase,), {rpc: _refusal(rpc) for rpc in _RPCS})
_REFUSALS = _Refusals()


def _same(ours: str, theirs: str | bytes | None) -> bool:
    given = theirs if isinstance(theirs, bytes) else (theirs or "").encode()
    return hmac.compare_digest(ours.encode(), given)


def _area_kinds() -> Iterator[type[Area]]:
    """The areas import this module's neighbours in a circle, so they are imported late."""
    for module, kind in _AREAS:
        yield getattr(importlib.import_module(f"composer_tui.rehearsal.{module}"), kind)
