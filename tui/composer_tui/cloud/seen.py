"""What this process has seen of its account, so that it need not be asked again. No modal."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from composer_tui.cloud.spending import Meter
from composer_tui.cloud.wire import App, Container

if TYPE_CHECKING:
    from composer_tui.cloud.modal_api import Details


@dataclass(slots=True)
class Seen:
    """Memory of the lists so far, by app id. Times are unix seconds.

    ``apps`` is the last list; ``details`` was asked for when given; ``idle_since`` and
    ``stopping_since`` are when an app was first seen so, and only of those that still are.
    ``clock_ahead_seconds`` is how far this machine's clock was ahead of Modal's, 0 for not at all,
    when it was compared last: at ``clock_seen_at`` of a monotonic clock.
    """

    apps: dict[str, App] = field(default_factory=dict)
    as_of: float = 0.0
    environment: str = ""
    details: dict[str, tuple[float, "Details"]] = field(default_factory=dict)
    containers: dict[str, tuple[Container, ...]] | None = None
    idle_since: dict[str, float] = field(default_factory=dict)
    stopping_since: dict[str, float] = field(default_factory=dict)
    meters: dict[str, Meter] = field(default_factory=dict)
    clock_ahead_seconds: float = 0.0
    clock_seen_at: float | None = None

    def keep_only(self, app_ids: Iterable[str]) -> None:
        """Forgets the apps that are gone."""
        live = set(app_ids)
        for memory in (self.details, self.idle_since, self.stopping_since, self.meters):
            for app_id in memory.keys() - live:
                del memory[app_id]


SEEN = Seen()
"""This process's own: it has one account."""
