"""What goes wrong on purpose, and only then."""

import time
from pathlib import Path

import pytest
from grpclib import GRPCError, Status
from hypothesis import given
from hypothesis import strategies as st
from modal_proto import api_pb2

from composer_tui.rehearsal.chaos import BadSpec, Chaos, ChaosSpec, parse
from tests.rehearsal.conftest import Script
from tests.rehearsal.rehearsal import rehearsal, wait_until


def test_a_specification_is_read_word_by_word() -> None:
    spec = parse(
        "preempt=0.1,drop-logs=0.2,stuck-stop=30,list-fails=0.3,rates-missing,slow=0.5,seed=7,"
        "skew=-60,error=AppStop:RESOURCE_EXHAUSTED:0.5,error=TaskList:INTERNAL:1"
    )
    assert spec == ChaosSpec(
        preempt_per_second=0.1,
        drop_logs=0.2,
        stuck_stop_seconds=30,
        list_fails=0.3,
        rates_missing=True,
        slow_seconds=0.5,
        skew_seconds=-60,
        errors=(("AppStop", "RESOURCE_EXHAUSTED", 0.5), ("TaskList", "INTERNAL", 1.0)),
        seed=7,
    )
    assert parse("") == ChaosSpec()


@pytest.mark.parametrize(
    "text",
    [
        "preempt",
        "preempt=2",
        "preempt=-0.1",
        "slow=nan",
        "slow=inf",
        "seed=1.5",
        "rates-missing=1",
        "unheard-of=1",
        "error=NoSuchRpc:INTERNAL:1",
        "error=AppStop:OK:1",
        "error=AppStop:BOGUS:1",
        "error=AppStop:INTERNAL:x",
        "error=AppStop",
    ],
)
def test_a_bad_specification_is_one_clear_line(text: str) -> None:
    with pytest.raises(BadSpec) as caught:
        parse(text)
    assert str(caught.value).startswith("chaos: ")
    assert "\n" not in str(caught.value)


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        spec = parse(text)
    except BadSpec:
        return
    assert 0 <= spec.preempt_per_second <= 1


@given(st.integers(), st.lists(st.floats(0, 1), max_size=30))
def test_the_same_seed_throws_the_same_dice(seed: int, probabilities: list[float]) -> None:
    one, other = (Chaos(ChaosSpec(seed=seed)) for _ in range(2))
    assert [one.happens(p) for p in probabilities] == [other.happens(p) for p in probabilities]
    assert not one.happens(0.0)
    assert one.happens(1.0)


def test_a_preempted_container_hands_its_input_to_another(tmp_path: Path, script: Script) -> None:
    with rehearsal(tmp_path / "root", "preempt=1,seed=1", preempt_grace_seconds=0.5) as plane:
        app_id, _ = script.spawn(plane, "print('working', flush=True)\ntime.sleep(60)")
        wait_until(lambda: plane.text(app_id).count("working") == 2, "another container has it")
        assert api_pb2.TASK_STATE_PREEMPTED in plane.states(app_id)


def test_a_stop_that_is_stuck_ends_when_its_container_is_stopped(
    tmp_path: Path, script: Script
) -> None:
    with rehearsal(tmp_path / "root", "stuck-stop=60", stop_grace_seconds=0.5) as plane:
        app_id, _ = script.spawn(plane, "print('working', flush=True)\ntime.sleep(300)")
        wait_until(lambda: "working" in plane.text(app_id), "the function runs")
        plane.call("AppStop", api_pb2.AppStopRequest(app_id=app_id))
        time.sleep(1.0)  # it is meant to stay as it is
        assert plane.app(app_id).app_state == api_pb2.APP_STATE_STOPPING
        (task,) = plane.tasks(app_id)
        plane.call("ContainerStop", api_pb2.ContainerStopRequest(task_id=task.task_id))
        wait_until(
            lambda: plane.app(app_id).app_state == api_pb2.APP_STATE_STOPPED, "the app is stopped"
        )


def test_a_stop_that_is_stuck_ends_by_itself(tmp_path: Path) -> None:
    with rehearsal(tmp_path / "root", "stuck-stop=1.5") as plane:
        app_id = plane.call(
            "AppCreate", api_pb2.AppCreateRequest(app_state=api_pb2.APP_STATE_DETACHED)
        ).app_id
        begin = time.monotonic()
        plane.call("AppStop", api_pb2.AppStopRequest(app_id=app_id))
        assert plane.app(app_id).app_state == api_pb2.APP_STATE_STOPPING
        wait_until(lambda: plane.app(app_id).app_state == api_pb2.APP_STATE_STOPPED, "it ends")
        assert time.monotonic() - begin > 1.4


def test_faults_come_over_the_wire(tmp_path: Path, script: Script) -> None:
    chaos = "list-fails=1,rates-missing,slow=0.05,skew=3600,error=AppStop:RESOURCE_EXHAUSTED:1"
    with rehearsal(tmp_path / "root", f"{chaos},drop-logs=1") as plane:
        app_id = plane.call(
            "AppCreate", api_pb2.AppCreateRequest(app_state=api_pb2.APP_STATE_DETACHED)
        ).app_id
        assert plane.app(app_id).created_at > time.time() + 3500
        for rpc, request, status in (
            ("AppList", api_pb2.AppListRequest(), Status.UNAVAILABLE),
            ("TaskList", api_pb2.TaskListRequest(), Status.UNAVAILABLE),
            ("AppStop", api_pb2.AppStopRequest(app_id=app_id), Status.RESOURCE_EXHAUSTED),
            (
                "WorkspaceBillingRates",
                api_pb2.WorkspaceBillingRatesRequest(),
                Status.UNIMPLEMENTED,
            ),
        ):
            with pytest.raises(GRPCError) as caught:
                plane.call(rpc, request)
            assert caught.value.status is status
        begin = time.monotonic()
        plane.app(app_id)
        assert time.monotonic() - begin > 0.05


def test_a_log_stream_that_is_cut_goes_on_where_it_was(tmp_path: Path, script: Script) -> None:
    with rehearsal(tmp_path / "root", "drop-logs=0.4,seed=3") as plane:
        body = "for n in range(20):\n    print('line', n, flush=True)\n    time.sleep(0.02)"
        app_id, _ = script.spawn(plane, body)
        text = f"""
import modal
for entry in modal.App.lookup("{app_id}").logs.stream(timeout=20):
    if entry.source == "stdout":
        print(entry.message, end="")
"""
        assert plane.script(script(text)).splitlines() == [f"line {n}" for n in range(20)]
