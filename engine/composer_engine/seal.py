"""What makes a folder a checkpoint: ``complete.json``, written when everything else is on disk.

It names every file with its size and its SHA-256, the run that the files belong to, and what a run
that goes on from there has to know besides tensors. A folder without it, with a file that is
missing or of another size, or whose seal was altered, is torn: no checkpoint at all. So is one
with a file that holds something else, which only `check_sums` sees. No torch in here.
"""

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import msgspec

SEAL_FILE = "complete.json"
_VERSION = 1
_NO_SUCH_THING = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


class Torn(ValueError):  # noqa: N818  # says what the folder is
    """Not a whole checkpoint; the message is a clause that says why, without the folder's name."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Which run a checkpoint is of: what one that goes on from it must have in common with it.

    ``config`` is the whole `RunConfig` as plain tables; ``model``, ``tokenizer`` and ``rows`` are
    digests of what was loaded, and ``marks`` of what rows hold besides their texts ("" when that
    was not kept); ``processes`` is how many trained together.
    """

    engine_version: str = ""
    config_hash: str = ""
    config: dict[str, Any] = {}
    model: str = ""
    tokenizer: str = ""
    rows: str = ""
    marks: str = ""
    processes: int = 1


class Best(msgspec.Struct, frozen=True, kw_only=True):
    """The checkpoint before which rollouts were best: their mean reward since the one before."""

    step: int
    attempt: int
    reward: float


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """What a run remembers across an end, beside weights and random states."""

    best: Best | None = None
    non_finite_in_a_row: int = 0


class Seal(msgspec.Struct, frozen=True, kw_only=True):
    """The seal of one checkpoint.

    ``attempt`` and then ``step`` order the checkpoints of a run: an attempt may begin again below
    an earlier one's last step. ``saved_at`` is unix seconds. ``resumable`` is false for one taken
    between two updates on one rollout: a model like any other, but no place to go on from.
    ``files`` are sizes in bytes by path, the seal's own left out; ``sums`` are their SHA-256, or
    empty in a seal of an engine that kept none.
    """

    step: int
    attempt: int
    saved_at: float
    resumable: bool
    files: dict[str, int]
    sums: dict[str, str] = {}
    identity: Identity = Identity()
    standing: Standing = Standing()
    version: int = _VERSION
    digest: str = ""

    @property
    def order(self) -> tuple[int, int]:
        """Greater is newer."""
        return self.attempt, self.step


def file_sizes(folder: Path) -> dict[str, int]:
    """Every file below the folder but the seal: bytes by path."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / SEAL_FILE
    }


def write_seal(folder: Path, seal: Seal) -> int:
    """Seal a folder whose files are on disk; the seal's own size in bytes. Raises OSError."""
    plain = msgspec.to_builtins(msgspec.structs.replace(seal, digest=""))
    sealed = msgspec.structs.replace(seal, digest=_digest(plain))
    data = msgspec.json.format(msgspec.json.encode(sealed))
    temporary = folder / f".{SEAL_FILE}.new"
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / SEAL_FILE)
    sync(folder)
    return len(data)


def read_seal(folder: Path) -> Seal:
    """The seal of a whole checkpoint. Raises `Torn` for anything else, OSError for a bad disk."""
    if not folder.is_dir():
        raise Torn("it is not a folder")
    try:
        data = (folder / SEAL_FILE).read_bytes()
    except FileNotFoundError:
        raise Torn(f"it has no {SEAL_FILE}") from None
    try:
        seal = msgspec.json.decode(data, type=Seal)
        plain = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Torn(f"{SEAL_FILE} is damaged ({error})") from None
    if seal.version != _VERSION:
        raise Torn(f"{SEAL_FILE} is of version {seal.version}, and this engine knows {_VERSION}")
    if seal.digest != _digest(plain | {"digest": ""}):
        raise Torn(f"{SEAL_FILE} was altered")
    there = file_sizes(folder)
    for name, size in seal.files.items():
        if name not in there:
            raise Torn(f"{name} is missing")
        if there[name] != size:
            raise Torn(f"{name} has {there[name]:,} bytes of {size:,}")
    return seal


def sum_of(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sums(folder: Path, seal: Seal) -> None:
    """Reads every file, which takes a second or two a GB.

    Raises `Torn` for one that holds something else than was written, OSError for a bad disk.
    """
    for name, known in seal.sums.items():
        if sum_of(folder / name) != known:
            raise Torn(f"{name} holds something else than was written")


def sync(path: Path) -> None:
    """Have a file, or a folder's list of files, on disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems of volumes have no such thing for a folder; files they do sync.
        if error.errno not in _NO_SUCH_THING or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def _digest(plain: dict[str, Any]) -> str:
    """Of all that the file says, so that fields this engine does not know are part of it."""
    return hashlib.sha256(msgspec.json.encode(plain, order="sorted")).hexdigest()
