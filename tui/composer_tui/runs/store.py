"""All the runs there are: the folder of run folders."""

import os
import secrets
import shutil
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from composer_engine.config import RunConfig, config_hash, to_toml
from composer_engine.config_file import expanded
from composer_engine.protocol import EndedBy, StepCompleted
from composer_tui.runs.folder import (
    DamagedFolder,
    ProcessRef,
    RunFolder,
    RunRecord,
    Target,
    this_host,
    write_whole,
)
from composer_tui.runs.journal import read_head, read_tail
from composer_tui.runs.sanitise import clean, clean_event
from composer_tui.runs.state import Life, RunState, advance_all

LAST = "last"
_MAX_NAMED = 5
_HEAD_BYTES, _TAIL_BYTES = 1 << 14, 1 << 15
_STALE_SECONDS = 24 * 3600.0
_UNBORN = ".new-"


class RunNotFound(LookupError):  # noqa: N818  # says what happened
    """No run has that id; the message says what to do."""


class AmbiguousRun(LookupError):  # noqa: N818  # says what the text is
    """Several runs begin with that text; the message names some."""


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a list of runs.

    ``created_at`` and ``ended_at`` are unix seconds. ``life`` is what the stream says; whether
    the process behind it still lives is for its runner to say. ``ended_by`` is the guard rail that
    stopped it or the kind of its failure, and ``guard_rail`` says the former in a few words.
    ``is_taken_away``: its machine was, and a new attempt is expected. ``damage`` is empty, or one
    line about what of the folder cannot be read.
    """

    run_id: str
    name: str
    created_at: float
    life: Life
    steps: int = 0
    total_steps: int = 0
    reward_mean: float | None = None
    model: str = ""
    target: str = ""
    ended_at: float | None = None
    failure: str = ""
    ended_by: EndedBy = ""
    guard_rail: str = ""
    is_taken_away: bool = False
    damage: str = ""


class _Seen(NamedTuple):
    """A reading, and the (size, mtime) of the files that it was taken from."""

    stamp: tuple[tuple[int, int], ...]
    summary: RunSummary


def default_runs_dir() -> Path:
    """``COMPOSER_RUNS_DIR``, or "runs" in the platform's folder for this program's data."""
    named = os.environ.get("COMPOSER_RUNS_DIR")
    if named:
        return expanded(named)
    import platformdirs

    return platformdirs.user_data_path("composer-tui") / "runs"


class RunStore:
    """The runs under one folder, which need not exist yet. Names that begin with "." are no runs.

    A run is there whole or not at all, and one that is damaged is listed with its damage.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._seen: dict[str, _Seen] = {}
        self._created: dict[str, float] = {}

    def create(
        self, config: RunConfig, target: Target, now: float, launcher: ProcessRef | None = None
    ) -> RunFolder:
        """A new run folder with its record and config, in one step. Raises OSError."""
        from importlib import metadata  # 20 ms that nothing before a launch needs

        stamp = datetime.fromtimestamp(now, UTC).astimezone().strftime("%Y%m%d-%H%M%S")
        while True:
            run_id = f"{config.name}-{stamp}-{secrets.token_hex(2)}"
            record = RunRecord(
                run_id=run_id,
                created_at=now,
                target=target,
                config=config,
                config_hash=config_hash(config),
                engine_version=metadata.version("composer-tui"),
                cwd=str(Path.cwd()),
                host=this_host(),
                launcher=launcher,
            )
            try:
                return self.adopt(record)
            except FileExistsError:
                continue

    def adopt(self, record: RunRecord) -> RunFolder:
        """A folder for a run that has its record and its id already, in one step.

        Raises FileExistsError when there is one, and OSError.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        self._sweep(record.created_at)
        unborn = RunFolder(Path(tempfile.mkdtemp(prefix=_UNBORN, dir=self.root)))
        try:
            unborn.write_record(record)
            write_whole(unborn.config_path, to_toml(record.config).encode())
            try:
                unborn.path.rename(self.root / record.run_id)
            except OSError as error:
                if (self.root / record.run_id).exists():  # some systems say ENOTEMPTY
                    raise FileExistsError(record.run_id) from error
                raise
        except OSError:
            shutil.rmtree(unborn.path, ignore_errors=True)
            raise
        _sync_folder(self.root)
        return RunFolder(self.root / record.run_id)

    def folders(self) -> list[RunFolder]:
        """Every run's folder, newest first. Cheaper than `summaries`: events are not read."""
        folders = [RunFolder(self.root / name) for name in self.run_ids()]
        return sorted(folders, key=lambda f: (self._created_at(f), f.run_id), reverse=True)

    def find(self, text: str) -> RunFolder:
        """The run of that id, the only one that begins so, or the newest for "last".

        Raises `RunNotFound` or `AmbiguousRun`.
        """
        folders = self.folders()
        if not folders:
            raise RunNotFound(f"there are no runs in {self.root}")
        if text == LAST:
            return folders[0]
        exact = [folder for folder in folders if folder.run_id == text]
        matches = exact or [folder for folder in folders if text and folder.run_id.startswith(text)]
        if not matches:
            raise RunNotFound(f"no run is called {text!r}; the newest is {folders[0].run_id}")
        if len(matches) > 1:
            names = ", ".join(folder.run_id for folder in matches[:_MAX_NAMED])
            more = f" and {len(matches) - _MAX_NAMED} more" if len(matches) > _MAX_NAMED else ""
            raise AmbiguousRun(f"{text!r} begins {len(matches)} runs: {names}{more}")
        return matches[0]

    def summaries(self) -> list[RunSummary]:
        """One line a run, newest first. A run whose files have not changed is not read again."""
        self._seen = {name: self._look(RunFolder(self.root / name)) for name in self.run_ids()}
        summaries = [seen.summary for seen in self._seen.values()]
        return sorted(summaries, key=lambda s: (s.created_at, s.run_id), reverse=True)

    def run_ids(self) -> list[str]:
        """Every run's id, in no order. The cheapest look there is: no file is read."""
        try:
            return [entry.name for entry in os.scandir(self.root) if _is_run(entry)]
        except OSError:
            return []

    def _created_at(self, folder: RunFolder) -> float:
        created = self._created.get(folder.run_id)
        if created is None:
            try:
                created = folder.read_record().created_at
            except DamagedFolder:
                return _changed_at(folder)
            self._created[folder.run_id] = created
        return created

    def _look(self, folder: RunFolder) -> _Seen:
        stamp = (_stamp(folder.record_path), _stamp(folder.events_path))
        seen = self._seen.get(folder.run_id)
        if seen and seen.stamp == stamp:
            return seen
        return _Seen(stamp, _summarise(folder))

    def _sweep(self, now: float) -> None:
        """Removes what runs left that were never born, because their program died."""
        for path in self.root.glob(_UNBORN + "*"):
            try:
                stale = now - path.stat().st_mtime > _STALE_SECONDS
            except OSError:
                continue
            if stale:
                shutil.rmtree(path, ignore_errors=True)


def _is_run(entry: "os.DirEntry[str]") -> bool:
    try:
        return not entry.name.startswith(".") and entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _stamp(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return (-1, -1)
    return (stat.st_size, stat.st_mtime_ns)


def _summarise(folder: RunFolder) -> RunSummary:
    damage: list[str] = []
    record: RunRecord | None = None
    state = RunState()
    try:
        record = folder.read_record()
    except DamagedFolder as error:
        damage.append(str(error))
    try:
        state = _read_state(folder.events_path)
    except FileNotFoundError:
        pass  # it has not begun to speak
    except OSError as error:
        damage.append(f"{folder.events_path.name} cannot be read: {error.strerror}")
    failure = state.failure
    return RunSummary(
        run_id=folder.run_id,
        name=record.config.name if record else clean(folder.run_id),
        created_at=record.created_at if record else _changed_at(folder),
        life=state.life,
        steps=state.last.step if state.last else 0,
        total_steps=state.total_steps or (record.config.optimizer.steps if record else 0),
        reward_mean=state.last.reward_mean if state.last else None,
        model=state.model or (clean(record.config.model.path) if record else ""),
        target=record.target if record else "",
        ended_at=state.ended_at,
        failure=failure.message if failure else "",
        ended_by=state.ended_by,
        guard_rail=state.guard_rail,
        is_taken_away=state.is_taken_away,
        damage="; ".join(damage),
    )


def _read_state(path: Path) -> RunState:
    """Its beginning and its end tell what a list shows; the middle is a hole.

    The end reaches back to a step, since long rollouts may stand after the last one.
    """
    limit, size = _TAIL_BYTES, path.stat().st_size
    tail = read_tail(path, limit)
    while limit < size and not any(isinstance(event, StepCompleted) for event in tail):
        limit *= 8
        tail = read_tail(path, limit)
    state = advance_all(RunState(), map(clean_event, read_head(path, _HEAD_BYTES)))
    return advance_all(state, map(clean_event, tail))


def _changed_at(folder: RunFolder) -> float:
    try:
        return folder.path.stat().st_mtime
    except OSError:
        return time.time()


def _sync_folder(path: Path) -> None:
    """Makes a rename outlive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
