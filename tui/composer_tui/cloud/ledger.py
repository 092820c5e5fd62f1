"""What this machine knows of its runs on Modal: one small file in each run's folder.

It is on disk before Modal is asked for anything, and it names the app as Modal will: whatever
interrupts a launch, an app that came to be is found again by its name.
"""

from collections.abc import Iterator

import msgspec

from composer_tui.runs.folder import DamagedFolder, RunFolder, read_json, write_whole
from composer_tui.runs.store import RunStore


class CloudRef(msgspec.Struct, frozen=True, kw_only=True):
    """One run on Modal. Ids are "" until they are known.

    ``connection`` is the path of a rehearsal's connection file, "" for Modal itself;
    ``launched_at`` is unix seconds, 0 until the call was spawned. ``usd_per_hour`` (a decimal
    number) is one container's at the launch, by ``rates_source``. ``ended`` is set when the app
    was seen stopped with no container left, and by nothing else.
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


def read_ref(folder: RunFolder) -> CloudRef:
    """Raises `DamagedFolder`."""
    return read_json(folder.cloud_path, CloudRef)


def write_ref(folder: RunFolder, ref: CloudRef) -> None:
    """Replaces it whole, and on disk when this returns. Raises OSError."""
    write_whole(folder.cloud_path, msgspec.json.format(msgspec.json.encode(ref)))


def cloud_runs(store: RunStore) -> Iterator[tuple[RunFolder, CloudRef]]:
    """Every run that was, or was about to be, on Modal. A damaged one is passed over."""
    for run_id in store.run_ids():
        folder = RunFolder(store.root / run_id)
        if not folder.cloud_path.exists():
            continue
        try:
            yield folder, read_ref(folder)
        except DamagedFolder:
            continue
