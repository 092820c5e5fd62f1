"""What this machine knows of its runs on Modal: one small file in each run's folder.

It is on disk before Modal is asked for anything, and it names the app as Modal will: whatever
interrupts a launch, an app that came to be is found again by its name.
"""

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path

import msgspec
import platformdirs

from composer_engine.cloud_spec import app_name
from composer_tui.runs.folder import DamagedFolder, RunFolder, read_json, write_whole
from composer_tui.runs.journal import read_end
from composer_tui.runs.store import RunStore


class CloudRef(msgspec.Struct, frozen=True, kw_only=True):
    """One run on Modal. Ids are "" until they are known.

    ``connection`` is the path of a rehearsal's connection file, "" for Modal itself;
    ``launched_at`` is unix seconds, 0 until the call was spawned. ``usd_per_hour`` (a decimal
    number) is one container's at the launch, by ``rates_source``. ``ended`` is set when the app
    was seen stopped with no container left, or when Modal had forgotten a run that is over.
    ``rebuilt``: it was damaged, and the app is to be found by its name. ``account`` is how this
    machine named the account at the launch, ``workspace`` what Modal calls it; "" when not known.
    """

    app_name: str
    environment: str = ""
    connection: str = ""
    app_id: str = ""
    function_id: str = ""
    call_id: str = ""
    usd_per_hour: str = ""
    rates_source: str = ""
    rates_as_of: float = 0.0
    cap_usd: str = ""
    lease_until: float = 0.0
    launched_at: float = 0.0
    ended: bool = False
    rebuilt: bool = False
    account: str = ""
    workspace: str = ""


def read_ref(folder: RunFolder) -> CloudRef:
    """Raises `DamagedFolder`."""
    return read_json(folder.cloud_path, CloudRef)


def write_ref(folder: RunFolder, ref: CloudRef) -> None:
    """Replaces it whole, and on disk when this returns. Raises OSError.

    A damaged one is kept beside it, as cloud.json.damaged.
    """
    if _is_damaged(folder):
        damaged = folder.cloud_path.with_name(f"{folder.cloud_path.name}.damaged")
        if folder.cloud_path.is_file():
            write_whole(damaged, folder.cloud_path.read_bytes())
        else:
            folder.cloud_path.replace(damaged)
    write_whole(folder.cloud_path, msgspec.json.format(msgspec.json.encode(ref)))


def known_ref(folder: RunFolder) -> CloudRef:
    """What is written, or, for a damaged file, what the run's record says. Raises `DamagedFolder`.

    When it was launched is then not known: it was after the run's folder was made. A file that is
    missing was there once when the run has said anything, and has not ended.
    """
    try:
        return read_ref(folder)
    except DamagedFolder:
        if not folder.cloud_path.exists() and not _is_under_way(folder):
            raise
        record = None
        with contextlib.suppress(DamagedFolder):
            record = folder.read_record()
        if record is None or record.target not in ("modal", "rehearsal"):
            raise
    is_rehearsal = record.target == "rehearsal"
    modal = record.config.modal
    return CloudRef(
        app_name=app_name(folder.run_id),
        environment=modal.environment,
        connection=str(connection_file(folder.run_id)) if is_rehearsal else "",
        cap_usd=f"{modal.cap_usd:g}",
        launched_at=record.created_at,
        rebuilt=True,
    )


def _is_under_way(folder: RunFolder) -> bool:
    try:
        end = read_end(folder.events_path)
    except OSError:
        return False
    return end.next_seq > 0 and not end.ended


def connection_file(run_id: str) -> Path:
    """Where a rehearsal's token is: not in the run's folder, which people share."""
    return platformdirs.user_state_path("composer-tui") / "rehearsals" / f"{run_id}.json"


def cloud_runs(store: RunStore) -> Iterator[tuple[RunFolder, CloudRef]]:
    """Every run that was, or was about to be, on Modal, as `known_ref` has it.

    One of which nothing can be read is passed over.
    """
    for run_id in store.run_ids():
        folder = RunFolder(store.root / run_id)
        if not folder.cloud_path.exists():
            continue
        try:
            ref = known_ref(folder)
        except DamagedFolder:
            continue
        yield folder, ref


def mark_gone(store: RunStore, app_ids: Collection[str]) -> None:
    """Of these apps no container is left, as verified: their runs are over. Raises OSError."""
    for folder, ref in cloud_runs(store):
        if ref.app_id in app_ids and ref.app_id and not ref.ended:
            write_ref(folder, msgspec.structs.replace(ref, ended=True))


def _is_damaged(folder: RunFolder) -> bool:
    if not folder.cloud_path.exists():
        return False
    try:
        read_ref(folder)
    except DamagedFolder:
        return True
    return False
