"""What a launcher and a container on Modal tell each other. No modal in here."""

import hashlib
from typing import Literal

import msgspec

from composer_engine.config import RunConfig

_NAME_CELLS = 63
_HASH_DIGITS = 16


def app_name(run_id: str) -> str:
    """The run's name on Modal: its id, shortened where Modal's 63 characters make it so."""
    if len(run_id) <= _NAME_CELLS:
        return run_id
    digest = hashlib.sha256(run_id.encode()).hexdigest()[:_HASH_DIGITS]
    return f"{run_id[: _NAME_CELLS - _HASH_DIGITS - 1]}-{digest}"


class CloudSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One run, as Modal is asked to run it.

    ``config`` names paths as the launching machine sees them; the container gets those that exist
    there under `contract.INPUTS_MOUNT`. ``usd_per_hour`` (a decimal number) is all that one
    container costs, at the dearest GPU of its list; ``lease_until`` is unix seconds;
    ``compute_capability`` is the newest of the GPUs asked for, 0 for none; ``secrets`` are those
    that exist.
    """

    run_id: str
    config: RunConfig
    tags: dict[str, str] = {}
    usd_per_hour: str = "0"
    lease_until: float = 0.0
    compute_capability: float = 0.0
    secrets: tuple[str, ...] = ()


class ContainerTime(msgspec.Struct, frozen=True, kw_only=True):
    """What one container of a run has been paid for; times are unix seconds by its own clock.

    A run's volume keeps one for each, in order. ``ended_at`` is None while it is at work, and for
    good when it ended without a word: then it lived to ``seen_at`` at the least. ``outcome`` is
    finished, stopped, or the kind of its failure; "" and None where nobody could say.
    ``taken_away``: Modal interrupted it.
    """

    started_at: float
    seen_at: float
    usd_per_hour: str
    taken_away: bool = False
    container_id: str = ""
    ended_at: float | None = None
    outcome: str = ""
    reason: str = ""
    worth_retrying: bool | None = None


class ControlAsk(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of a running container. A newer one replaces an older.

    ``stop`` is "" or why it should save and end; ``lease_until`` (unix seconds) extends the lease.
    """

    stop: str = ""
    lease_until: float = 0.0


class ControlBeat(msgspec.Struct, frozen=True, kw_only=True):
    """What a container last said of itself; times are unix seconds.

    ``spent_usd`` is a decimal number, over all attempts; ``last_step_at`` is 0 before the first
    step; ``state`` says whether its engine runs.
    """

    time: float
    run_id: str
    state: Literal["starting", "running", "ending", "ended"] = "running"
    attempt: int = 1
    attempt_started_at: float = 0.0
    device: str = ""
    step: int = 0
    total_steps: int = 0
    last_step_at: float = 0.0
    checkpoint_step: int = 0
    lease_until: float = 0.0
    spent_usd: str = "0"
