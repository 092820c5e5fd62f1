"""`volumes`: what is stored on Modal, to it, from it."""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import msgspec

from composer_tui.cloud.downloads import get
from composer_tui.cloud.rates_cache import kept_rates
from composer_tui.cloud.transfer import Moved, OnBytes
from composer_tui.cloud.uploads import Plan, Upload, put
from composer_tui.cloud.volumes import (
    STORAGE_RATE,
    Entry,
    VolumeRow,
    container_path,
    list_entries,
    list_volumes,
    measured,
    remove,
)
from composer_tui.headless.tables import local_time, print_table
from composer_tui.numbers import DASH, dollars, memory
from composer_tui.runs.sanitise import clean

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_LISTED = 20  # files named one by one


def print_volumes(*, sizes: bool, as_json: bool) -> int:
    """All volumes; with ``sizes`` also how large they are and what that costs in a month."""
    rows = list_volumes()
    rates = kept_rates(time.time()).rates
    if sizes:
        rows = [measured(row, rates) for row in rows]
    if as_json:
        _write(rows)
        return 0
    if not rows:
        print("no volumes; a first run on Modal makes those it needs")
        return 0
    print_table(
        ("VOLUME", "CREATED", "BY", "SEEN AT", *(("FILES", "SIZE", "A MONTH") if sizes else ())),
        [_volume_cells(row, sizes=sizes) for row in rows],
        right="FILES SIZE MONTH",
    )
    price = rates.usd_per_hour.get(STORAGE_RATE)
    note = "" if sizes else "; --sizes lists every file and adds them up"
    print(f"storage costs {dollars(price)} per GiB and month ({rates.source} price){note}")
    return 0


def print_entries(volume: str, path: str, *, recursive: bool, as_json: bool) -> int:
    """What lies at a path of a volume."""
    entries = list_entries(volume, path, recursive=recursive)
    if as_json:
        _write(entries)
        return 0
    print_table(
        ("TYPE", "SIZE", "MODIFIED", "PATH"),
        [
            (entry.kind, _size(entry), local_time(entry.modified_at), entry.path)
            for entry in entries
        ],
        right="SIZE",
    )
    return 0


def put_files(
    volume: str,
    local: Path,
    plan: Plan,
    *,
    create: bool,
    force: bool,
    verify: bool,
    as_json: bool,
) -> int:
    """Sends a file or a folder; 1 when something was left out. Raises OSError."""
    with _progress([(upload.remote, upload.size_bytes) for upload in plan.uploads]) as on_bytes:
        moved = put(
            volume, plan.uploads, create=create, force=force, verify=verify, on_bytes=on_bytes
        )
    if not as_json and not plan.uploads and not plan.left_out:
        print(f"nothing to send: {clean(str(local))} holds no file")
    status = _report(moved + plan.left_out, as_json=as_json)
    if not as_json and plan.uploads:
        print(f"a container sees it as {clean(_as_seen(volume, local, plan.uploads))}")
    return status


def get_files(
    volume: str, remote: str, local: Path | None, *, force: bool, verify: bool, as_json: bool
) -> int:
    """Fetches a file or a folder; 1 when something was left out. Raises OSError."""
    with contextlib.ExitStack() as stack:
        bars: list[OnBytes] = []

        def on_start(entries: Sequence[Entry]) -> None:
            files = [(entry.path, entry.size_bytes) for entry in entries]
            bars.append(stack.enter_context(_progress(files)))

        def on_bytes(path: str, count: int) -> None:
            bars[0](path, count)

        moved = get(
            volume,
            remote,
            _target(volume, remote, local),
            verify=verify,
            force=force,
            on_start=on_start,
            on_bytes=on_bytes,
        )
    return _report(moved, as_json=as_json)


def describe(volume: str, path: str) -> tuple[str, bool]:
    """(what is to be removed, in words; whether it is a folder)."""
    entries = list_entries(volume, path, recursive=True)
    is_file = [(e.path.strip("/"), e.kind) for e in entries] == [(path.strip("/"), "file")]
    size = memory(sum(entry.size_bytes for entry in entries if entry.kind == "file"))
    if is_file:
        return f"{path} ({size}) on {volume}", False
    files = sum(entry.kind != "folder" for entry in entries)
    return f"the folder {path} on {volume}: {files} files, {size}", True


def remove_path(volume: str, path: str, *, recursive: bool) -> int:
    """Removes a file or a folder for good."""
    remove(volume, path, recursive=recursive)
    print(f"removed {clean(path)} from {clean(volume)}")
    return 0


def _volume_cells(row: VolumeRow, *, sizes: bool) -> tuple[str, ...]:
    cells = (row.name, local_time(row.created_at), row.created_by or DASH, row.mount or DASH)
    if not sizes:
        return cells
    return (*cells, str(row.files), memory(row.size_bytes), dollars(row.usd_per_month))


def _size(entry: Entry) -> str:
    return memory(entry.size_bytes) if entry.kind == "file" else DASH


def _target(volume: str, remote: str, local: Path | None) -> Path:
    """Without a target: its own name, here. In a folder that is there, a file keeps its name."""
    name = PurePosixPath(remote.strip("/")).name or volume
    if local is None:
        return Path(name)
    if not local.is_dir():
        return local
    entries = list_entries(volume, remote, recursive=False)
    single = len(entries) == 1 and entries[0].path.strip("/") == remote.strip("/")
    return local / name if single and entries[0].kind == "file" else local


def _as_seen(volume: str, local: Path, uploads: Sequence[Upload]) -> str:
    """The folder's place for a folder, the file's for a file."""
    first = uploads[0]
    if not local.is_dir():
        return container_path(volume, first.remote)
    below = len(first.local.relative_to(local).parts)
    parts = PurePosixPath(first.remote).parts
    return container_path(volume, "/".join(parts[: len(parts) - below])) or "/"


def _report(moved: Sequence[Moved], *, as_json: bool) -> int:
    left_out = [one for one in moved if one.outcome == "left_out"]
    if as_json:
        _write(
            [
                msgspec.structs.replace(one, local=_utf8(one.local), remote=_utf8(one.remote))
                for one in moved
            ]
        )
        return int(bool(left_out))
    done = [one for one in moved if one.outcome != "left_out"]
    for outcome in ("downloaded", "uploaded", "kept"):
        files = [one for one in done if one.outcome == outcome]
        if files:
            size = memory(sum(one.size_bytes for one in files))
            word = "was here already" if outcome == "kept" else outcome
            print(f"{word}: {_files(len(files))}, {size}")
    if any(one.verified for one in done):
        print(f"verified: {_files(sum(one.verified for one in done))} read again, sha256 equal")
    for one in left_out[:_LISTED]:
        print(f"left out: {clean(one.remote)}: {clean(one.why)}", file=sys.stderr)
    if len(left_out) > _LISTED:
        print(f"left out: {len(left_out) - _LISTED} more", file=sys.stderr)
    return int(bool(left_out))


def _utf8(name: str) -> str:
    """A name on this disk need not be UTF-8; JSON must be."""
    return name.encode("utf-8", "replace").decode()


def _files(number: int) -> str:
    return "1 file" if number == 1 else f"{number} files"


def _write(value: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")


@contextlib.contextmanager
def _progress(files: Sequence[tuple[str, int]]) -> Iterator[OnBytes]:
    """A bar on stderr while it is a terminal; otherwise nothing is shown."""
    if not sys.stderr.isatty():
        yield lambda _path, _count: None
        return
    bar, task = _bar(sum(size for _, size in files))

    def on_bytes(path: str, count: int) -> None:
        bar.update(task, advance=count, description=clean(path)[-40:])

    with bar:
        yield on_bytes


def _bar(total: int) -> "tuple[Progress, TaskID]":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    return bar, bar.add_task("", total=total)
