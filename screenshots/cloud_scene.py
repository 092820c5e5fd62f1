"""What is live on Modal in the pictures: made up, at the prices that the program ships."""

import random
import string
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import msgspec
from textual.message import Message

from composer_engine.cloud_spec import app_name
from composer_engine.config import load
from composer_engine.protocol import Event, encode
from composer_tui.cloud.ledger import CloudRef, write_ref
from composer_tui.cloud.rates_cache import current_rates
from composer_tui.cloud.wire import App, Apps, Container, StopProgress
from composer_tui.messages import AppsListed, AppStopTold
from composer_tui.presets import Presets
from composer_tui.pricing.catalog import catalog, parse_gpu
from composer_tui.pricing.rates import container_usd_per_hour, snapshot_rates
from composer_tui.runs.folder import RunFolder
from composer_tui.runs.store import RunStore

OWNER = "me-at-desk"
HOUR_SECONDS = 3600.0
STARTING_SECONDS = 40.0  # from an app to its container
RATES_AGE_SECONDS = 1300.0
CORES, MEMORY_MIB = 4.0, 16384
_ID_CHARACTERS = 22


def made_up_id(kind: str, name: str) -> str:
    """``ap-...`` as Modal spells ids, the same for the same name."""
    dice = random.Random(name)
    return f"{kind}-{''.join(dice.choices(string.ascii_letters + string.digits, k=_ID_CHARACTERS))}"


def price(gpu: str) -> Decimal:
    """One container's, as shipped, dollars an hour."""
    request = parse_gpu(gpu)
    usd = container_usd_per_hour(snapshot_rates(), request.name, request.gpus, CORES, MEMORY_MIB)
    if usd is None:
        raise KeyError(gpu)
    return usd


def app(name: str, gpu: str, up_seconds: float, now: float, **facts: object) -> App:
    """An app with one container, and what that has cost."""
    usd, working = price(gpu), up_seconds - STARTING_SECONDS
    plain = App(
        app_id=made_up_id("ap", name),
        name=name,
        state="detached",
        created_at=now - up_seconds,
        containers=(Container(container_id=made_up_id("ta", name), started_at=now - working),),
        gpu=gpu,
        usd_per_hour=usd,
        spent_usd=usd * Decimal(working) / Decimal(HOUR_SECONDS),
    )
    return msgspec.structs.replace(plain, **facts)


def run(name: str, gpu: str, up_seconds: float, now: float, **facts: object) -> App:
    """A run of this program."""
    ours = {"owner": OWNER, "run_id": name, "cap_usd": Decimal(25), "total_steps": 1200}
    return app(name, gpu, up_seconds, now, **{**ours, **facts})


def listed(now: float) -> Apps:
    """One run that goes well, orphans of several classes, one app of somebody else."""
    return Apps(
        apps=(
            run(
                "qwen-gsm-20261120-130142-4f1a",
                "H100:2",
                4224.0,
                now,
                lease_until=now + 2976,
                step=612,
                last_step_at=now - 4,
                checkpoint_step=600,
            ),
            run(
                "sdpo-half-20261120-041907-b2c7",
                "A100-80GB",
                35_580.0,
                now,
                lease_until=now + 1620,
                step=431,
                last_step_at=now - 6 * HOUR_SECONDS,
                checkpoint_step=400,
                orphan="NO_HEARTBEAT",
                orphan_why="no metrics for 6h00m",
            ),
            run(
                "replay-only-20261120-113518-09de",
                "L40S",
                9402.0,
                now,
                lease_until=now - 760,
                step=1140,
                last_step_at=now - 770,
                checkpoint_step=1100,
                orphan="LEASE_EXPIRED",
                orphan_why="its lease ended 12m40s ago",
            ),
            app(
                "reward-judge",
                "L4",
                52_000.0,
                now,
                state="deployed",
                orphan="DEPLOYED_IDLE",
                orphan_why="deployed, 0 inputs for 3h10m",
            ),
            run(
                "smoke-20261120-141131-e350",
                "T4",
                29.0,
                now,
                state="initializing",
                containers=(),
                spent_usd=Decimal(0),
                lease_until=now + 7171,
                total_steps=150,
                cap_usd=Decimal(5),
            ),
            app(
                "nightly-eval",
                "A10",
                1310.0,
                now,
                state="deployed",
                orphan="UNTAGGED",
                orphan_why="not launched by this program",
            ),
        ),
        as_of=now,
        environment="main",
        rates_source="modal",
        rates_as_of=now - RATES_AGE_SECONDS,
    )


def live_apps(now: float) -> Sequence[Message]:
    """Modal answered, and told its prices a while ago."""
    current_rates(lambda: catalog().rates, now - RATES_AGE_SECONDS)
    return [AppsListed(listed(now))]


def alarm(now: float) -> Sequence[Message]:
    """One app does not end, another one does."""
    apps = listed(now)
    stuck, ending = apps.apps[1], apps.apps[2]
    return [
        AppsListed(apps),
        AppStopTold(_stop(stuck, "alarm", 134.0)),
        AppStopTold(_stop(ending, "stopping", 2.6)),
    ]


def _stop(app: App, stage: str, seconds: float) -> StopProgress:
    return msgspec.convert(
        {
            "app_id": app.app_id,
            "name": app.name,
            "stage": stage,
            "seconds": seconds,
            "containers": [container.container_id for container in app.containers],
        },
        StopProgress,
    )


def save_preset(folder: Path) -> None:
    """A person's own preset, for the launch form."""
    settings = (
        "name=qwen-gsm",
        "model.path=/models/Qwen2.5-0.5B-Instruct",
        "model.dtype=bfloat16",
        "model.device=auto",
        "data.path=train.jsonl",
        "rollout.prompts_per_step=8",
        "rollout.max_completion_tokens=256",
        "optimizer.steps=1200",
        "optimizer.learning_rate=1e-6",
        "modal.gpu=H100:2",
        "modal.cap_usd=25",
        "modal.timeout_seconds=7200",
    )
    Presets(folder).save("qwen-gsm", load("smoke", settings=settings))


def make_cloud_run(store: RunStore, events: Sequence[Event], now: float) -> RunFolder:
    """A run on Modal that goes on, with these events, the last of them at ``now``."""
    config = load("smoke", settings=("name=smoke", "modal.gpu=T4", "model.device=auto"))
    shift = now - events[-1].time
    launched_at = events[0].time + shift - STARTING_SECONDS
    folder = store.create(config, "modal", launched_at)
    moved = [msgspec.structs.replace(event, time=event.time + shift) for event in events]
    folder.events_path.write_bytes(b"".join(map(encode, moved)))
    write_ref(
        folder,
        CloudRef(
            app_name=app_name(folder.run_id),
            app_id=made_up_id("ap", "smoke"),
            usd_per_hour=str(price("T4")),
            rates_source="modal",
            rates_as_of=now - RATES_AGE_SECONDS,
            cap_usd="5",
            lease_until=now + 7100,
            launched_at=launched_at,
        ),
    )
    return folder
