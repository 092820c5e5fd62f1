"""What the areas of the control plane have in common.

An area answers the RPCs it has methods for: async methods named exactly like the RPC, which take
the grpclib stream. It refuses by raising `grpclib.GRPCError` with one clear line. Everything runs
on one event loop, so an area's state changes only between awaits and needs no lock.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from composer_tui.rehearsal.control_plane import ControlPlane

TASK_HEADER = "x-composer-task"  # what a container sends with each request: its id,
SECRET_HEADER = "x-composer-task-secret"  # noqa: S105  # and a secret that only it was given


class Area:
    """One subject of the control plane: its state and the RPCs about it."""

    def __init__(self, plane: "ControlPlane") -> None:
        self.plane = plane

    def restore(self) -> None:
        """Reads back from ``plane.root`` what outlived the last process. Runs before serving."""

    async def start(self) -> None:
        """Starts what needs the event loop. Runs after every area's `restore`, before serving."""

    async def close(self) -> None:
        """Ends what `start` started. Areas are closed in the reverse of their order."""


def task_of(stream: Any) -> str | None:
    """The container's task id where a container calls, None where a client does.

    The control plane has checked the secret before an area sees the request.
    """
    metadata = stream.metadata or {}
    task_id = metadata.get(TASK_HEADER)
    return str(task_id) if task_id else None
