"""Live apps for the tests of what shows them, and an app that notes what it is asked."""

from decimal import Decimal
from pathlib import Path

import msgspec
from textual import on
from textual.message import Message

import composer_tui.app
from composer_tui.app import ComposerApp
from composer_tui.cloud.owner import owner_tag
from composer_tui.cloud.wire import App, Apps, Container
from composer_tui.messages import (
    AppsListed,
    AppsRefreshAsked,
    AppsStopAsked,
    AppStopTold,
    LaunchAsked,
    LeaseAsked,
)
from tests.screens.conftest import Stage

NOW = 1_790_000_000.0


def app(name: str, now: float = NOW, **facts: object) -> App:
    """A healthy run on one H100 since a thousand seconds, at step 612 of which 600 are saved."""
    healthy = App(
        app_id=f"ap-{name}",
        name=name,
        state="detached",
        created_at=now - 1080,
        containers=(Container(container_id=f"ta-{name}", started_at=now - 1000),),
        gpu="H100",
        usd_per_hour=Decimal("4.12"),
        spent_usd=Decimal("1.20"),
        owner=owner_tag(),
        run_id=name,
        lease_until=now + 3000,
        cap_usd=Decimal(5),
        step=612,
        total_steps=1200,
        last_step_at=now - 4,
        checkpoint_step=600,
    )
    return msgspec.structs.replace(healthy, **facts)


def orphan(name: str, now: float = NOW, **facts: object) -> App:
    """A run that has not said anything for hours."""
    silent = {"orphan": "NO_HEARTBEAT", "orphan_why": "no sign of life for 6h52m"}
    return app(name, now, **{**silent, **facts})


def foreign(name: str, now: float = NOW, **facts: object) -> App:
    """An app that this program did not launch."""
    unknown = {
        "orphan": "UNTAGGED",
        "orphan_why": "not launched by this program",
        "run_id": "",
        "owner": "",
        "lease_until": 0.0,
        "cap_usd": None,
        "step": 0,
        "checkpoint_step": 0,
        "state": "deployed",
    }
    return app(name, now, **{**unknown, **facts})


def listed(*apps: App, now: float = NOW, **facts: object) -> Apps:
    """What a list of these apps says."""
    return msgspec.structs.replace(Apps(apps=apps, as_of=now, environment="main"), **facts)


class Noting(ComposerApp):
    """Notes what its screens ask of the cloud, and what they launch."""

    CSS_PATH = str(Path(composer_tui.app.__file__).with_name("app.tcss"))
    asked: list[Message]

    def on_load(self) -> None:
        self.asked = []

    @on(AppsStopAsked)
    @on(LeaseAsked)
    @on(AppsRefreshAsked)
    @on(LaunchAsked)
    def _note(self, message: Message) -> None:
        self.asked.append(message)
        message.prevent_default()  # noted, and not carried out


def asked_of(stage: Stage) -> list[Message]:
    assert isinstance(stage.app, Noting)
    return stage.app.asked


def tell(stage: Stage, *messages: AppsListed | AppStopTold) -> None:
    """What a worker would tell the app."""
    for message in messages:
        stage.app.post_message(message)
