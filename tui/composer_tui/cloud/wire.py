"""What is said of Modal's apps: between the helper process and the interface, and as ``--json``.

Money is Decimal (a string in JSON), times are unix seconds. Nothing here imports modal.
"""

from decimal import Decimal
from typing import Literal

import msgspec

OrphanClass = Literal[
    "",
    "NO_HEARTBEAT",
    "OWNER_GONE",
    "LEASE_EXPIRED",
    "DEPLOYED_IDLE",
    "STUCK_STOPPING",
    "UNTAGGED",
]
ProblemKind = Literal[
    "no_token", "wrong_token", "no_network", "timeout", "server", "rate_limit", "clock", "refused"
]


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Why something could not be had from Modal: one line, and what to do about it."""

    kind: ProblemKind
    message: str
    hint: str = ""


class Container(msgspec.Struct, frozen=True, kw_only=True):
    """One container; ``started_at`` is None while it is pending."""

    container_id: str
    started_at: float | None = None


class App(msgspec.Struct, frozen=True, kw_only=True):
    """One live app of the environment.

    ``state`` is Modal's own word (ephemeral, detached, deployed, initializing, stopping, stopped).
    ``gpu`` is as it was asked for, "" for none; ``usd_per_hour`` is one container's (None: price
    not known), ``spent_usd`` what its containers have cost so far (of those that have ended,
    what is known).
    ``run_id``, ``owner``, ``lease_until``, ``step``... are known of runs that this program
    launched, from their tags and beats; ``orphan_why`` explains ``orphan`` in a few words.
    """

    app_id: str
    name: str
    state: str
    created_at: float
    containers: tuple[Container, ...] = ()
    gpu: str = ""
    usd_per_hour: Decimal | None = None
    spent_usd: Decimal | None = None
    owner: str = ""
    run_id: str = ""
    orphan: OrphanClass = ""
    orphan_why: str = ""
    lease_until: float = 0.0
    cap_usd: Decimal | None = None
    step: int = 0
    total_steps: int = 0
    last_step_at: float = 0.0
    checkpoint_step: int = 0
    stopping_since: float = 0.0

    @property
    def burn_usd_per_hour(self) -> Decimal | None:
        """What its live containers cost together."""
        return None if self.usd_per_hour is None else self.usd_per_hour * len(self.containers)


class Apps(msgspec.Struct, frozen=True, kw_only=True):
    """All live apps at the moment ``as_of``.

    With a ``problem`` it is what was last known, and ``as_of`` is when that was true (0: never).
    ``rates_as_of`` is 0 for the snapshot that shipped with the program.
    """

    apps: tuple[App, ...] = ()
    as_of: float = 0.0
    environment: str = ""
    rates_source: str = "snapshot"
    rates_as_of: float = 0.0
    problem: Problem | None = None

    @property
    def burn_usd_per_hour(self) -> Decimal:
        """What everything costs; an app whose price is not known counts as nothing."""
        return sum((app.burn_usd_per_hour or Decimal(0) for app in self.apps), Decimal(0))


StopStage = Literal[
    "asked",  # a graceful stop: told to save
    "stopping",  # the stop was accepted; "accepted" is not "stopped"
    "second_path",  # the first way failed or hung; the modal CLI does it
    "escalated",  # its containers are being stopped one by one
    "alarm",  # still there after two minutes
    "gone",  # verified: no container is left
    "failed",  # it could not even be asked; message says why
]


class StopProgress(msgspec.Struct, frozen=True, kw_only=True):
    """Where the stop of one app is. "gone" is only ever said of what was verified.

    ``kind`` is what the matter was where it "failed". ``usd_per_hour`` is what is left of it costs
    (None: not known), ``by_hand`` the command that stops it without this program.
    """

    app_id: str
    name: str
    stage: StopStage
    seconds: float
    containers: tuple[str, ...] = ()
    message: str = ""
    saved: bool = False
    final_usd: Decimal | None = None
    kind: ProblemKind | None = None
    usd_per_hour: Decimal | None = None
    by_hand: str = ""


class StopResult(msgspec.Struct, frozen=True, kw_only=True):
    """How it ended for every app that was to be stopped; ``zero`` only when all are gone."""

    apps: tuple[StopProgress, ...]
    seconds: float

    @property
    def zero(self) -> bool:
        return all(app.stage == "gone" for app in self.apps)
