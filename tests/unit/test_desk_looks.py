"""How often Modal is asked what lives there."""

from pathlib import Path

from composer_tui.cloud.accounts import Accounts
from composer_tui.runs.store import RunStore
from composer_tui.screens.cloud_desk import GLANCE_SECONDS, LOOK_SECONDS, CloudDesk


class Counting(CloudDesk):
    """Counts when it would ask."""

    def __init__(self, store: RunStore) -> None:
        super().__init__(store, Accounts(store), lambda _: None, has_account=False)
        self.asked: list[float] = []

    def look(self, now: float, every_seconds: float) -> None:
        before = self._looked_at
        super().look(now, every_seconds)
        if self._looked_at != before and self._looked_at == now:
            self.asked.append(now)


def test_who_wants_the_news_more_often_gets_some_at_once(tmp_path: Path) -> None:
    desk = Counting(RunStore(tmp_path))
    for now, every in (
        (1000.0, GLANCE_SECONDS),
        (1025.0, GLANCE_SECONDS),
        (1026.0, LOOK_SECONDS),
        (1027.0, LOOK_SECONDS),
        (1031.0, LOOK_SECONDS),
        (1032.0, GLANCE_SECONDS),
        (1033.0, LOOK_SECONDS),
    ):
        desk.look(now, every)
    assert desk.asked == [1000.0, 1026.0, 1031.0, 1033.0]
