"""Who the token is, environments, and the bill in play money."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import get_type_hints

import modal
import pytest
from grpclib import GRPCError, Status
from hypothesis import given
from hypothesis import strategies as st
from modal_proto import api_pb2

from composer_tui.pricing.catalog import catalog
from composer_tui.rehearsal import billing, chaos, control_plane
from composer_tui.rehearsal.area import Area
from composer_tui.rehearsal.containers import Containers
from composer_tui.rehearsal.metering import Usage
from tests.rehearsal.planes import TOKEN_ID, TOKEN_SECRET, RunningPlane, running

HOUR = 3600.0
NOON = datetime(2026, 9, 10, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlane]:
    with running(tmp_path_factory.mktemp("rehearsal")) as plane:
        yield plane


@pytest.fixture(scope="module")
def client(plane: RunningPlane) -> Iterator[modal.Client]:
    with plane.client() as client:
        yield client


@pytest.fixture
def workspace(client: modal.Client) -> modal.Workspace:
    return modal.Workspace.from_context(client=client)


def usage(start: datetime, hours: float, **changes: object) -> Usage:
    started_at = start.timestamp()
    found = Usage(
        "ta-1", "ap-1", "train", "main", {"run": "7"}, started_at, started_at + hours * HOUR
    )
    return found._replace(**changes)  # type: ignore[arg-type]


def test_the_command_line_knows_who_it_is(plane: RunningPlane) -> None:
    assert plane.cli("profile", "current").stdout.strip() == "default"
    told = plane.cli("token", "info")
    assert told.returncode == 0, told.stderr
    assert TOKEN_ID in told.stdout
    assert "rehearsal" in told.stdout
    assert TOKEN_SECRET not in told.stdout


def test_rates_are_those_that_ship_with_the_program(
    plane: RunningPlane, workspace: modal.Workspace
) -> None:
    rates = workspace.billing.rates()
    assert dict(rates) == catalog().rates
    assert rates["gpu_hour_cost_h100"] == Decimal("3.95")
    assert "gpu_hour_cost_h100: $3.95" in str(rates)
    listed = json.loads(plane.cli("billing", "rates", "--json").stdout)
    assert {key: Decimal(rate) for key, rate in listed.items()} == catalog().rates


def test_rates_can_be_overridden(plane: RunningPlane, workspace: modal.Workspace) -> None:
    path = plane.plane.root / "rates.json"
    path.write_text('{"gpu_hour_cost_h100": "5.5", "gpu_hour_cost_x9": "0.1"}')
    try:
        rates = workspace.billing.rates()
        assert rates["gpu_hour_cost_h100"] == Decimal("5.5")
        assert rates["gpu_hour_cost_x9"] == Decimal("0.1")
        assert rates["cpu_hour_cost"] == catalog().rates["cpu_hour_cost"]
    finally:
        path.unlink()


def test_rates_can_be_missing_on_purpose(tmp_path: Path) -> None:
    spec = chaos.parse("rates-missing")
    with running(tmp_path, chaos.Chaos(spec)) as plane, plane.client() as client:
        workspace = modal.Workspace.from_context(client=client)
        with pytest.raises(modal.exception.UnimplementedError):
            workspace.billing.rates()


def test_a_report_has_each_apps_whole_hours(
    plane: RunningPlane, workspace: modal.Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    usages = [
        usage(NOON + timedelta(minutes=30), 1.0, gpu="H100", gpu_count=2),
        usage(NOON, 0.5, task_id="ta-2"),
        usage(NOON, 0.5, task_id="ta-3", app_id="ap-2", tags={}),
    ]
    monkeypatch.setattr(plane.plane.area(Containers), "usage", lambda: usages)
    rows = workspace.billing.report(
        start=NOON + timedelta(minutes=59),
        end=NOON + timedelta(hours=9),
        resolution="h",
        tag_names=["run"],
    )
    assert [(row.object_id, row.interval_start) for row in rows] == [
        ("ap-1", NOON),
        ("ap-2", NOON),
        ("ap-1", NOON + timedelta(hours=1)),
    ]
    assert rows[0].cost_by_resource["H100"] == Decimal("3.95")  # two for half an hour
    assert rows[0].tags == {"run": "7"}
    assert rows[1].tags == {}
    assert sum(rows[0].cost_by_resource.values()) == rows[0].cost
    [day] = [
        row
        for row in workspace.billing.report(start=NOON, end=NOON + timedelta(days=2))
        if row.object_id == "ap-1"
    ]
    assert day.interval_start == NOON.replace(hour=0)
    assert day.cost == rows[0].cost + rows[2].cost


def test_a_summary_is_of_its_month_and_billed_at_nothing(
    plane: RunningPlane,
    client: modal.Client,
    workspace: modal.Workspace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usages = [
        usage(datetime(2026, 8, 31, 23, tzinfo=UTC), 2.0, gpu="T4", gpu_count=1),
        usage(NOON, 1.0, environment="side"),
    ]
    monkeypatch.setattr(plane.plane.area(Containers), "usage", lambda: usages)
    summary = workspace.billing.summary("2026-09")
    per_hour = billing.usd_per_hour(usages[0], catalog().rates)
    other = billing.usd_per_hour(usages[1], catalog().rates)
    assert summary.metered_cost == sum(per_hour.values()) + sum(other.values())
    assert summary.billed_cost == 0
    assert sum(summary.adjustments.values()) == -summary.metered_cost
    assert (summary.start, summary.end) == (
        datetime(2026, 9, 1, tzinfo=UTC),
        datetime(2026, 10, 1, tzinfo=UTC),
    )
    main = modal.Environment.from_name("main", client=client).billing
    assert main.summary("2026-09").metered_cost == sum(per_hour.values())


def test_the_hour_that_goes_on_is_not_reported() -> None:
    running_on = usage(NOON, 0)._replace(finished_at=None)
    now = (NOON + timedelta(minutes=90)).timestamp()
    rows = billing.report([running_on], catalog().rates, NOON.timestamp(), now, 3600, now)
    assert [row.interval_start for row in rows] == [NOON.timestamp()]
    assert rows[0].usd == sum(billing.usd_per_hour(running_on, catalog().rates).values())


usages = st.lists(
    st.builds(
        lambda start, length, gpu, app: Usage(
            "ta", app, "", "main", {}, float(start), float(start + length), gpu, int(bool(gpu))
        ),
        st.integers(0, 200_000),
        st.integers(0, 100_000),
        st.sampled_from(["", "T4", "H100!", "A100-80GB", "B200+"]),
        st.sampled_from(["ap-1", "ap-2"]),
    ),
    max_size=6,
)


@given(usages=usages, interval_seconds=st.sampled_from([3600, 86400]))
def test_intervals_add_up_to_the_whole(usages: list[Usage], interval_seconds: int) -> None:
    end = 864_000.0  # ten days: all is over
    rates = catalog().rates
    rows = billing.report(usages, rates, 0, end, interval_seconds, end)
    whole = billing.metered(usages, rates, 0, end, end)
    assert abs(sum((row.usd for row in rows), Decimal(0)) - whole) < Decimal("1e-12")
    assert len({(row.app_id, row.interval_start) for row in rows}) == len(rows)
    assert all(row.interval_start % interval_seconds == 0 for row in rows)


def test_environments_come_and_go(plane: RunningPlane, client: modal.Client) -> None:
    def names() -> list[str | None]:
        return [each.name for each in modal.Environment.objects.list(client=client)]

    assert names() == ["main"]
    modal.Environment.objects.create("dev", client=client)
    assert names() == ["main", "dev"]
    with pytest.raises(modal.exception.AlreadyExistsError):
        modal.Environment.objects.create("dev", client=client)
    modal.Environment.from_name("made", create_if_missing=True, client=client).hydrate()
    with pytest.raises(modal.exception.NotFoundError, match="Environment 'none' not found"):
        modal.Environment.from_name("none", client=client).hydrate()
    with pytest.raises(modal.exception.NotFoundError, match="Environment 'none' not found"):
        modal.Volume.objects.list(environment_name="none", client=client)
    for name in ("dev", "made"):
        modal.Environment.objects.delete(name, client=client)
    with pytest.raises(modal.exception.Error, match="default"):
        modal.Environment.objects.delete("main", client=client)
    assert names() == ["main"]


def test_an_environment_is_updated(plane: RunningPlane) -> None:
    plane.rpc("EnvironmentCreate", api_pb2.EnvironmentCreateRequest(name="old"))
    request = api_pb2.EnvironmentUpdateRequest(current_name="old", image_builder_version="2024.10")
    plane.rpc("EnvironmentUpdate", request)
    found = plane.rpc(
        "EnvironmentGetOrCreate", api_pb2.EnvironmentGetOrCreateRequest(deployment_name="old")
    )
    assert found.metadata.settings.image_builder_version == "2024.10"
    plane.rpc("EnvironmentDelete", api_pb2.EnvironmentDeleteRequest(name="old"))


@pytest.mark.parametrize(
    ("rpc", "request_type"),
    [
        ("ProxyGet", api_pb2.ProxyGetRequest),
        ("TunnelStart", api_pb2.TunnelStartRequest),
        ("SandboxCreate", api_pb2.SandboxCreateRequest),
        ("SharedVolumeGetOrCreate", api_pb2.SharedVolumeGetOrCreateRequest),
        ("ContainerCheckpoint", api_pb2.ContainerCheckpointRequest),
    ],
)
def test_what_is_not_imitated_is_refused_by_name(
    plane: RunningPlane, rpc: str, request_type: type
) -> None:
    with pytest.raises(GRPCError) as caught:
        plane.rpc(rpc, request_type())
    assert caught.value.status is Status.UNIMPLEMENTED
    assert caught.value.message == f"the rehearsal does not imitate {rpc}"


@pytest.mark.parametrize("area", list(control_plane._area_kinds()))
def test_every_answer_is_of_the_type_that_its_rpc_has(area: type[Area]) -> None:
    types = control_plane._REFUSALS.__mapping__()
    for path, handler in types.items():
        answer = getattr(getattr(area, path.rpartition("/")[2], None), "__wrapped__", None)
        if answer is not None:  # made by `unary`
            assert list(get_type_hints(answer).values()) == [
                handler.request_type,
                handler.reply_type,
            ]


def test_environments_outlive_a_restart(tmp_path: Path) -> None:
    with running(tmp_path) as plane:
        plane.rpc("EnvironmentCreate", api_pb2.EnvironmentCreateRequest(name="kept"))
        before = plane.rpc("EnvironmentGetOrCreate", api_pb2.EnvironmentGetOrCreateRequest())
    with running(tmp_path) as plane:
        after = plane.rpc("EnvironmentGetOrCreate", api_pb2.EnvironmentGetOrCreateRequest())
        assert before.environment_id == after.environment_id
        assert after.metadata.name == "main"
        request = api_pb2.EnvironmentGetOrCreateRequest(deployment_name="kept")
        assert plane.rpc("EnvironmentGetOrCreate", request).metadata.name == "kept"
