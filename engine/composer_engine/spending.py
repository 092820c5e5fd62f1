"""What a run's attempts have cost, and until when they may spend.

Two small files in the run's folder, so that every attempt knows.
"""

from decimal import Decimal
from pathlib import Path

import msgspec

from composer_engine.cloud_spec import ContainerTime
from composer_engine.complaints import Complaints
from composer_engine.contract import LEASE_FILE, SPENDING_FILE
from composer_engine.failures import complain
from composer_engine.watchdog import cost_usd


class Spending:
    """The attempts of one run, this one last. Only this object writes the file."""

    def __init__(
        self, folder: Path, started_at: float, usd_per_hour: str, container_id: str = ""
    ) -> None:
        self._path = folder / SPENDING_FILE
        self.earlier = _read(self._path)
        self._this = ContainerTime(
            started_at=started_at,
            seen_at=started_at,
            usd_per_hour=usd_per_hour,
            container_id=container_id,
        )

    @property
    def earlier_usd(self) -> Decimal:
        return sum(map(_usd, self.earlier), Decimal(0))

    @property
    def was_taken_away(self) -> bool:
        """Whether Modal interrupted the attempt before this one."""
        return bool(self.earlier) and self.earlier[-1].taken_away

    def note(self, now: float, *, taken_away: bool = False) -> None:
        """Write down that this attempt is still there. A full disk is a line on stderr."""
        self._this = msgspec.structs.replace(
            self._this, seen_at=now, taken_away=taken_away or self._this.taken_away
        )
        self._write()

    def mourn(self, outcome: str, reason: str, *, worth_retrying: bool) -> None:
        """How the attempt before this one ended, if it could not say so itself."""
        if self.earlier and not self.earlier[-1].outcome:
            last = msgspec.structs.replace(
                self.earlier[-1], outcome=outcome, reason=reason, worth_retrying=worth_retrying
            )
            self.earlier = (*self.earlier[:-1], last)
            self._write()

    def end(
        self,
        now: float,
        outcome: str,
        reason: str,
        *,
        worth_retrying: bool | None,
        taken_away: bool,
    ) -> None:
        """Write down that this attempt is over, and how; "" and None where that is not known."""
        self._this = msgspec.structs.replace(
            self._this,
            ended_at=now,
            outcome=outcome,
            reason=reason,
            worth_retrying=worth_retrying,
        )
        self.note(now, taken_away=taken_away)

    def _write(self) -> None:
        _replace(self._path, msgspec.json.encode([*self.earlier, self._this]))


class Lease:
    """The newest lease that this run was ever told of. Only this object writes the file."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LEASE_FILE
        self.until = _read_lease(self._path)

    def extend(self, until: float) -> bool:
        """Keep a later end, unix seconds; whether it is one. A full disk is a line on stderr."""
        if until <= self.until:
            return False
        self.until = until
        _replace(self._path, msgspec.json.encode(_KeptLease(lease_until=until)))
        return True


class _KeptLease(msgspec.Struct, frozen=True):
    lease_until: float


_complaints = Complaints()


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(path.name + ".new")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        if line := _complaints.line(path, f"{path.name}: {error.strerror}"):
            complain(line)


def _usd(time: ContainerTime) -> Decimal:
    return cost_usd(Decimal(time.usd_per_hour), time.seen_at - time.started_at)


def _read(path: Path) -> tuple[ContainerTime, ...]:
    """What is written there. A file that is damaged counts as nothing, and says so."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=tuple[ContainerTime, ...])
    except FileNotFoundError:
        return ()
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        complain(f"{path.name} cannot be read, earlier attempts are not counted: {error}")
        return ()


def _read_lease(path: Path) -> float:
    """0 for none. A file that is damaged counts as none, and says so."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=_KeptLease).lease_until
    except FileNotFoundError:
        return 0.0
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        complain(f"{path.name} cannot be read, an extended lease may be lost: {error}")
        return 0.0
