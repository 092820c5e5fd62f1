"""Runs on Modal that nobody follows, brought up to date before they are told of."""

import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from composer_tui.cloud.account_check import BadAccount, read_account
from composer_tui.cloud.accounts import OWN, for_commands, has_own_account
from composer_tui.cloud.notebook import current_as_of, is_followed
from composer_tui.cloud.reach import obstacle, way_to
from composer_tui.numbers import duration
from composer_tui.rehearsal import process
from composer_tui.runners.cloud import CloudRun
from composer_tui.runs.folder import RunFolder
from composer_tui.runs.store import RunStore

CATCH_UP_SECONDS = 4.0
_LEAVE_SECONDS = 1.0  # of those, for what is being written
_REACH_SECONDS = 1.5
_LOOK_SECONDS = 0.05
YOUNG_SECONDS = 30.0  # from its launch until its follower hears its log
_FRESH_SECONDS = 10.0  # a follower marks its run every second, or with a slow link every few


class Standing(NamedTuple):
    """How current the folder of a run on Modal is, that is not over.

    ``as_of`` is unix seconds, None when no follower has said; ``why`` says why it could not be
    brought up to date. ``followed`` is None for a run that is over or on this machine;
    ``is_young``: it is only being launched, and there is nothing yet to be behind of.
    """

    followed: bool | None = None
    as_of: float | None = None
    why: str = ""
    is_young: bool = False

    def facts(self) -> dict[str, bool | float | None]:
        """For JSON."""
        return {"followed": self.followed, "as_of": self.as_of}

    def words(self, now: float) -> str:
        """Empty for what is current."""
        if self.followed is None or self.is_young:
            return ""
        if self.as_of is not None and now - self.as_of < _FRESH_SECONDS and not self.why:
            return ""
        if self.as_of is None:
            past = "as of its launch, or of some time since"
        else:
            past = f"as of {duration(max(0.0, now - self.as_of))} ago"
        if self.followed:
            return f"{past}: its follower cannot hear it"
        return f"{past}, not followed" + (f": {self.why}" if self.why else "")


NOT_ON_MODAL = Standing()


def standing_of(folder: RunFolder) -> Standing:
    """One run, caught up with if nobody follows it."""
    return catch_up(RunStore(folder.path.parent), [folder]).get(folder.run_id, NOT_ON_MODAL)


def catch_up(
    store: RunStore, folders: Iterable[RunFolder], seconds: float = CATCH_UP_SECONDS
) -> dict[str, Standing]:
    """How current those runs are, by id, that are on Modal and not over.

    Those that nobody follows are followed, all at once, until they are current or the time is up.
    """
    began = time.time()
    accounts = for_commands(store)
    runs = (CloudRun(folder, accounts) for folder in folders if folder.cloud_path.exists())
    live = [run for run in runs if _is_open(run)]
    followed = {run.folder.run_id: is_followed(run.folder) for run in live}
    left = [run for run in live if run.is_launched and not followed[run.folder.run_id]]
    why = _reasons(left)
    left = [run for run in left if run.folder.run_id not in why]
    deadline = time.monotonic() + seconds - _LEAVE_SECONDS - (time.time() - began)
    while left and time.monotonic() < deadline:
        left = [run for run in left if not run.settle() and not _is_since(run.folder, began)]
        time.sleep(_LOOK_SECONDS)
    for run in left:
        why[run.folder.run_id] = "Modal did not answer in time"
    closing = threading.Thread(target=accounts.close, daemon=True)
    closing.start()
    closing.join(_LEAVE_SECONDS)
    return {
        run.folder.run_id: Standing(
            followed[run.folder.run_id],
            current_as_of(run.folder),
            why.get(run.folder.run_id, ""),
            is_young(run, began),
        )
        for run in live
        if _is_open(run)
    }


def _is_open(run: CloudRun) -> bool:
    """Some of it may run, or be about to, or its last word is not here."""
    return run.alive() or run.lacks_word()


def is_young(run: CloudRun, now: float) -> bool:
    """Somebody is at its launch, or follows it and may not have heard anything yet.

    ``now`` is unix seconds.
    """
    ref = run.ref
    if ref is None or ref.rebuilt or not (run.is_being_launched() or is_followed(run.folder)):
        return False
    if not ref.launched_at:
        return True
    return current_as_of(run.folder) is None and now - ref.launched_at < YOUNG_SECONDS


def _is_since(folder: RunFolder, moment: float) -> bool:
    as_of = current_as_of(folder)
    return as_of is not None and as_of >= moment


def _reasons(runs: Iterable[CloudRun]) -> dict[str, str]:
    """Why some of them cannot be followed, as far as that is known at once."""
    connections = {run.folder.run_id: run.ref.connection if run.ref else OWN for run in runs}
    known = {connection: _reason(connection) for connection in set(connections.values())}
    return {run_id: known[one] for run_id, one in connections.items() if known[one]}


def _reason(connection: str) -> str:
    if connection:
        is_there = process.find(Path(connection)) is not None
        return "" if is_there else "its rehearsal has ended; watch reads what it left"
    if not has_own_account(os.environ):
        return "this machine has no Modal token"
    try:
        way = way_to(read_account().server_url)
    except BadAccount as error:
        return str(error)
    found = obstacle(way, _REACH_SECONDS) if way is not None else None
    return "" if found is None else found.message
