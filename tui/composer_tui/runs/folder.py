"""A run on disk: where its files are, and the two small ones that say what and who it is."""

import contextlib
import fcntl
import os
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec

from composer_engine.config import RunConfig, remembered
from composer_engine.contract import EVENTS_FILE, PROCESS_FILE, STOP_FILE

RECORD_VERSION = 1
Target = Literal["local", "modal", "rehearsal", "replay"]
_T = TypeVar("_T")


Pid = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]


class DamagedFolder(ValueError):  # noqa: N818  # says what the folder is
    """A run folder whose files cannot be read; the message is one line and names the file."""


class ProcessRef(msgspec.Struct, frozen=True, kw_only=True):
    """One process, for as long as this machine is up: a pid alone may be used again.

    ``start_time`` is unix seconds, as `psutil.Process.create_time` tells it.
    """

    pid: Pid
    start_time: float
    pgid: Pid


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for, by whom and where; written before anything is launched.

    ``created_at`` is unix seconds; ``host`` is the machine on which the process ids mean
    something; ``launcher`` is the program that launched the run.
    """

    version: int = RECORD_VERSION
    run_id: str
    created_at: float
    target: Target
    config: RunConfig
    config_hash: str
    engine_version: str
    cwd: str
    host: str = ""
    launcher: ProcessRef | None = None


def this_host() -> str:
    return platform.node()


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run's folder. Only `write_record` and `lock` write; the rest are names and readings."""

    path: Path

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def record_path(self) -> Path:
        return self.path / "run.json"

    @property
    def config_path(self) -> Path:
        return self.path / "config.toml"

    @property
    def process_path(self) -> Path:
        return self.path / PROCESS_FILE

    @property
    def events_path(self) -> Path:
        return self.path / EVENTS_FILE

    @property
    def log_path(self) -> Path:
        return self.path / "log.txt"

    @property
    def stop_path(self) -> Path:
        """A file that asks the engine for a graceful stop, by being there."""
        return self.path / STOP_FILE

    @property
    def cloud_path(self) -> Path:
        """Which app on Modal the run is; see `composer_tui.cloud.ledger`."""
        return self.path / "cloud.json"

    @property
    def stopping_path(self) -> Path:
        """There while somebody waits for the run's graceful end."""
        return self.path / ".stopping"

    def read_record(self) -> RunRecord:
        """Raises `DamagedFolder`. A configuration of another version is read as far as it goes."""
        tree = read_json(self.record_path, dict[str, object])
        config = remembered(tree.pop("config", None))
        try:
            record = msgspec.convert({**tree, "config": msgspec.to_builtins(config)}, RunRecord)
        except msgspec.ValidationError as error:
            raise DamagedFolder(f"{self.record_path.name} is damaged: {error}") from None
        return record

    def write_record(self, record: RunRecord) -> None:
        """Replaces the record whole: a reader sees the old one or the new one."""
        write_whole(self.record_path, msgspec.json.format(msgspec.json.encode(record)))

    def read_process(self) -> ProcessRef | None:
        """Who the engine says it is; ``None`` before it has said so, or when it cannot be read."""
        try:
            return read_json(self.process_path, ProcessRef)
        except DamagedFolder:
            return None

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """Held by one process (and one thread of it) at a time; yields False when it is taken."""
        fd = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(fd)


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that is either not there (or as it was), or whole, even after a power cut."""
    fd, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read_json(path: Path, kind: type[_T]) -> _T:
    """One of the folder's small files. Raises `DamagedFolder`."""
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for its writer
            raise DamagedFolder(f"{path.name} is not a file")
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        raise DamagedFolder(f"{path.name} is missing") from None
    except OSError as error:
        raise DamagedFolder(f"{path.name} cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedFolder(f"{path.name} is damaged: {error}") from None
