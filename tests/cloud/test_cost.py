"""What a run's containers cost, by the follower, by the volume's book and by Modal's bill."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from composer_engine.cloud_spec import CloudSpec, ContainerTime, app_name
from composer_engine.protocol import RunFinished, StepCompleted
from composer_engine.watchdog import cost_usd
from composer_tui.cloud.ledger import CloudRef, write_ref
from composer_tui.pricing.rates import dearest_usd_per_hour, snapshot_rates
from composer_tui.rehearsal.chaos import ChaosSpec
from composer_tui.rehearsal.containers import Containers
from composer_tui.runs.cost import AttemptCost, read_costs
from composer_tui.runs.folder import RunFolder
from composer_tui.runs.store import RunStore
from tests.cloud.runs_fixtures import PATIENCE_SECONDS, events, lawful_events, small_config
from tests.rehearsal.planes import RunningPlane, running
from tests.rehearsal.rehearsal import wait_until

HERE = Path(__file__).parent
HOUR = 3600.0
SLACK_SECONDS = 6.0  # a container boots and leaves beyond its own word
CENT_SHARE = Decimal("0.000002")  # of a dollar: two roundings

COST = """
import sys
from pathlib import Path
from composer_tui.headless.costs import print_cost
from composer_tui.runs.store import RunStore
root, *asked = sys.argv[1:]
for words in asked:
    now, by, *rest = words.split()
    status = print_cost(RunStore(Path(root)), "12h", by, as_json="json" in rest, now=float(now))
    print(end=f"\\0{status}\\0", flush=True)
"""


class Paid(NamedTuple):
    """A run whose first container was taken away, and that finished in a second one."""

    plane: RunningPlane
    store: RunStore
    folder: RunFolder
    usd_per_hour: Decimal

    def cost(self, *asked: str, **environ: str) -> list[str]:
        """What the command prints, each time that it is asked: ``<now> gpu json``..."""
        done = subprocess.run(
            [sys.executable, "-c", COST, str(self.store.root), *asked],
            env=self.plane.environ() | environ,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        *told, rest = done.stdout.split("\0")
        assert set(told[1::2]) == {"0"}
        assert rest == ""
        assert "as-wrong" not in done.stdout + done.stderr
        return told[::2]

    def book(self) -> list[ContainerTime]:
        root = self.plane.plane.root / "volumes" / "composer-runs" / self.folder.run_id
        data = (root / "spending.json").read_bytes()
        return msgspec.json.decode(data, type=list[ContainerTime])


@pytest.fixture(scope="module")
def paid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paid]:
    root = tmp_path_factory.mktemp("paid")
    store = RunStore(root / "runs")
    config = small_config(gpu=("T4",))
    price = dearest_usd_per_hour(snapshot_rates(), config.modal)
    assert price is not None
    with running(root / "plane") as plane:
        folder = store.create(config, "modal", time.time())
        spec = CloudSpec(run_id=folder.run_id, config=config, usd_per_hour=str(price))
        ids = json.loads(said(plane, str(HERE / "paid.py"), spec_text(spec), "runs"))
        ref = CloudRef(
            app_name=app_name(folder.run_id),
            usd_per_hour=str(price),
            rates_source="snapshot",
            launched_at=time.time(),
            **ids,
        )
        write_ref(folder, ref)
        follower = subprocess.Popen(
            [sys.executable, str(HERE / "tender.py"), str(folder.path)], env=plane.environ()
        )
        wait_until(lambda: any(isinstance(e, StepCompleted) for e in events(folder)), "a step")
        (first,) = read_costs(folder)
        assert (first.ended_at, first.outcome) == (None, "")
        plane.get(preempt, plane, first.container_id)
        assert follower.wait(PATIENCE_SECONDS) == 0
        assert isinstance(lawful_events(folder)[-1], RunFinished)
        yield Paid(plane, store, folder, price)


def preempt(plane: RunningPlane, container_id: str) -> None:
    """As chaos does it."""
    containers = plane.plane.area(Containers)
    containers._preempt(containers.get(container_id))


def spec_text(spec: CloudSpec) -> str:
    return msgspec.json.encode(spec).decode()


def said(plane: RunningPlane, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        env=plane.environ(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def show(paid: Paid, *words: str) -> str:
    arguments = ("--runs-dir", str(paid.store.root), "show", paid.folder.run_id, *words)
    return said(paid.plane, "-m", "composer_tui", *arguments)


def test_a_run_that_lost_its_container_has_two_attempts_that_each_cost(paid: Paid) -> None:
    first, second = read_costs(paid.folder)
    assert [first.attempt, second.attempt] == [1, 2]
    assert first.container_id != second.container_id
    for one in (first, second):
        assert one.ended_at is not None
        assert one.ended_at > one.started_at
        assert one.usd == cost_usd(paid.usd_per_hour, one.seconds).quantize(Decimal("0.000001"))
        assert one.usd > 0
        assert (one.gpu, one.gpus, one.device) == ("T4", 1, "a stand-in")
        assert Decimal(one.usd_per_hour) == paid.usd_per_hour
        assert one.rates_source == "snapshot"
    assert first.ended_at is not None
    assert first.ended_at <= second.started_at
    assert (first.outcome, first.worth_retrying) == ("preempted", True)
    assert (second.outcome, second.worth_retrying) == ("finished", False)


def test_the_volumes_book_and_the_folders_agree(paid: Paid) -> None:
    book, ours = paid.book(), read_costs(paid.folder)
    assert [kept.container_id for kept in book] == [one.container_id for one in ours]
    for kept, one in zip(book, ours, strict=True):
        usd = cost_usd(Decimal(kept.usd_per_hour), kept.seen_at - kept.started_at)
        assert one.usd is not None
        assert abs(usd - one.usd) < CENT_SHARE


def test_the_file_only_grew_by_whole_lines(paid: Paid) -> None:
    lines = (paid.folder.path / "cost.jsonl").read_bytes().split(b"\n")
    assert lines[-1] == b""
    told = [msgspec.json.decode(line, type=AttemptCost) for line in lines[:-1]]
    assert next(one.ended_at for one in told if one.attempt == 1) is None
    assert len({one.container_id for one in told}) == 2


def test_show_says_where_the_money_went(paid: Paid) -> None:
    facts = json.loads(show(paid, "--json"))
    attempts = {one["attempt"]: Decimal(one["usd"]) for one in facts["attempts"]}
    assert Decimal(facts["usd"]) == sum(attempts.values())
    for number, usd in attempts.items():
        of_it = [Decimal(row["usd"]) for row in facts["timeline"] if row["attempt"] == number]
        assert sum(of_it) == usd
    assert all(Decimal(row["usd"]) == 0 for row in facts["timeline"] if not row["attempt"])
    assert facts["timeline"][0]["phase"] in ("starting", "queued")
    assert list(facts["gpu_seconds"]) == ["T4"]
    table = show(paid)
    for word in ("preempted", "worth it", "over 2 attempts", "snapshot of", "starting", "free"):
        assert word in table


def test_the_bill_and_our_meter_agree_when_the_hour_has_closed(paid: Paid) -> None:
    ended_at = read_costs(paid.folder)[-1].until
    now = time.time() + HOUR
    chaos = paid.plane.plane.chaos
    paid.plane.get(setattr, chaos, "spec", ChaosSpec(skew_seconds=HOUR))
    try:
        asked = (f"{ended_at} run json", f"{now} run json", f"{now} gpu json", f"{now} run")
        early, closed, gpus, table = paid.cost(*asked)
    finally:
        paid.plane.get(setattr, chaos, "spec", ChaosSpec())
    (row,) = json.loads(early)["rows"]
    assert Decimal(row["usd"]) > 0
    if ended_at // HOUR == read_costs(paid.folder)[0].started_at // HOUR:
        assert (row["billed_usd"], row["why"]) == (None, "hour not closed")
    report, by_gpu = json.loads(closed), json.loads(gpus)
    assert report["problem"] is None
    (row,) = report["rows"]
    usd, billed = Decimal(row["usd"]), Decimal(row["billed_usd"])
    assert 0 <= billed - usd < 2 * cost_usd(paid.usd_per_hour, SLACK_SECONDS)
    assert Decimal(row["difference_usd"]) == billed - usd
    assert (row["attempts"], row["gpu"], row["why"]) == (2, "T4", "")
    assert [other["name"] for other in by_gpu["rows"]] == ["T4"]
    assert by_gpu["rows"][0]["billed_usd"] == row["billed_usd"]
    assert row["gpu_seconds"] == pytest.approx(sum(a.seconds for a in read_costs(paid.folder)))
    assert paid.folder.run_id in table
    assert "BILLED" in table


@pytest.mark.parametrize(
    ("environ", "word"),
    [
        ({"MODAL_SERVER_URL": "http://127.0.0.1:9"}, "did not answer"),
        ({"MODAL_TOKEN_SECRET": "as-wrong0000000000000000"}, "token"),
    ],
    ids=["no network", "a wrong token"],
)
def test_without_the_bill_our_meter_is_shown_and_one_line_says_why(
    paid: Paid, environ: dict[str, str], word: str
) -> None:
    (table,) = paid.cost(f"{time.time()} run", **environ)
    assert paid.folder.run_id in table
    (line,) = [line for line in table.splitlines() if line.startswith("billed is not known")]
    assert word in line


def test_a_follower_that_comes_late_tells_the_same(paid: Paid, tmp_path: Path) -> None:
    before = read_costs(paid.folder)
    facts: Any = json.loads((paid.folder.path / "run.json").read_text())
    late = RunFolder(tmp_path / paid.folder.run_id)
    late.path.mkdir()
    (late.path / "run.json").write_text(json.dumps(facts))
    ref = json.loads((paid.folder.path / "cloud.json").read_text())
    (late.path / "cloud.json").write_text(json.dumps({**ref, "ended": False}))
    said(paid.plane, str(HERE / "tender.py"), str(late.path))
    assert read_costs(late) == before
