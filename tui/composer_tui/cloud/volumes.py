"""Modal volumes: list, browse, remove. Nothing here prints or asks.

Names are as the volume has them, chosen by whoever wrote it: whoever shows them cleans them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

import msgspec

from composer_engine.config import ModalConfig
from composer_engine.contract import CACHE_MOUNT, RUNS_MOUNT
from composer_tui.cloud.modal_thread import within
from composer_tui.cloud.problems import CloudProblem, problem
from composer_tui.cloud.transfer import run, unstalled
from composer_tui.pricing.rates import Rates

if TYPE_CHECKING:
    from modal import Volume
    from modal.types import FileEntry

CALL_SECONDS = 15.0
_GIB = 1 << 30
STORAGE_RATE = "volume_storage_gib_month_cost"

MOUNTS = {ModalConfig().runs_volume: RUNS_MOUNT, ModalConfig().cache_volume: CACHE_MOUNT}
"""Where the containers of a run see our own volumes."""

Kind = Literal["file", "folder", "link", "other"]
_KINDS: dict[str, Kind] = {"FILE": "file", "DIRECTORY": "folder", "SYMLINK": "link"}


class VolumeRow(msgspec.Struct, frozen=True, kw_only=True):
    """One volume. ``mount`` is where a run's container has it, "" for a volume that is not ours.

    ``files``, ``size_bytes`` and ``usd_per_month`` are None unless they were asked for: Modal does
    not say how large a volume is, so every file of it has to be listed.
    """

    name: str
    created_at: float
    created_by: str = ""
    mount: str = ""
    files: int | None = None
    size_bytes: int | None = None
    usd_per_month: Decimal | None = None


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a volume; ``path`` is relative to its root, ``modified_at`` unix seconds."""

    path: str
    kind: Kind
    size_bytes: int
    modified_at: float


def container_path(volume: str, remote: str) -> str:
    """A path of the volume's as a container sees it."""
    return f"{MOUNTS.get(volume, '<mount>')}/{remote.strip('/')}".rstrip("/")


def path_on(volume: str, path: str) -> str:
    """The path on the volume, also of one that is written as a container sees it."""
    mount = MOUNTS.get(volume)
    if mount is None or not f"{path}/".startswith(f"{mount}/"):
        return path
    return path.removeprefix(mount) or "/"


def usd_per_month(size_bytes: int, rates: Rates) -> Decimal | None:
    """What so many bytes cost in a month, before what Modal gives for free."""
    rate = rates.usd_per_hour.get(STORAGE_RATE)
    return None if rate is None else rate * Decimal(size_bytes) / _GIB


def list_volumes() -> list[VolumeRow]:
    """All volumes of the environment, the newest first. Raises `CloudProblem`."""
    import modal

    async def ask() -> list[VolumeRow]:
        rows = []
        for volume in await modal.Volume.objects.list.aio():
            info = await volume.info.aio()
            name = info.name or volume.object_id
            rows.append(
                VolumeRow(
                    name=name,
                    created_at=info.created_at.timestamp(),
                    created_by=info.created_by or "",
                    mount=MOUNTS.get(name, ""),
                )
            )
        return rows

    return within(CALL_SECONDS, ask(), "the list of volumes")


def measured(row: VolumeRow, rates: Rates) -> VolumeRow:
    """The row with its size and what that costs: lists every file. Raises `CloudProblem`."""
    sizes = [entry.size_bytes for entry in list_entries(row.name) if entry.kind == "file"]
    total = sum(sizes)
    return msgspec.structs.replace(
        row, files=len(sizes), size_bytes=total, usd_per_month=usd_per_month(total, rates)
    )


def list_entries(volume: str, path: str = "/", *, recursive: bool = True) -> list[Entry]:
    """What lies at a path; for a file's path, that file. Raises `CloudProblem`."""
    return run(entries_at(open_volume(volume), volume, path, recursive=recursive))


def remove(volume: str, path: str, *, recursive: bool) -> None:
    """Removes a file, or with ``recursive`` a folder. Raises `CloudProblem`."""

    async def ask() -> None:
        with missing(volume, path):
            await open_volume(volume).remove_file.aio(path, recursive=recursive)

    within(CALL_SECONDS, ask(), f"the removal of {path}")


# What downloads and uploads use, too. They run inside an event loop.


def open_volume(name: str, *, create: bool = False) -> "Volume":
    """A handle that has asked Modal nothing yet. Raises `CloudProblem` for an impossible name."""
    import modal

    try:
        return modal.Volume.from_name(name, create_if_missing=create)
    except modal.exception.InvalidError as error:
        raise CloudProblem(problem("refused", str(error))) from None


async def entries_at(handle: "Volume", volume: str, path: str, *, recursive: bool) -> list[Entry]:
    """As `list_entries`. Raises Modal's own errors beside `CloudProblem`."""
    with missing(volume, path):
        listing = aiter(handle.iterdir.aio(path or "/", recursive=recursive))
        return [_entry(entry) async for entry in unstalled(listing, CALL_SECONDS)]


@contextmanager
def missing(volume: str, path: str) -> Iterator[None]:
    """What Modal's client raises for a path that is not there becomes a `CloudProblem`."""
    try:
        yield
    except FileNotFoundError:
        message = f"{volume} has no {path}"
        raise CloudProblem(
            problem("refused", message, f"composer-tui volumes ls {volume}")
        ) from None


def _entry(entry: "FileEntry") -> Entry:
    return Entry(
        path=entry.path,
        kind=_KINDS.get(entry.type.name, "other"),
        size_bytes=entry.size,
        modified_at=float(entry.mtime),
    )
