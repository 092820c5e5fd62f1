"""The kill switch, against a real control plane, real containers and everything that goes wrong."""

import errno
import json
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composer_engine.cloud_spec import ControlBeat
from composer_tui.cloud import kill_rules as rules
from composer_tui.cloud.kill import stop_apps
from composer_tui.cloud.kill_rules import Limits, Look, Track
from composer_tui.cloud.wire import Container, Problem
from tests.cloud.apps_fixtures import Napping, napping, nowhere
from tests.rehearsal.rehearsal import wait_until

NOBODY = "ap-" + "0" * 22


# The rules.

LIMITS = Limits()
BOX = Container(container_id="ta-1")
_problems = st.sampled_from(
    [Problem(kind="no_network", message="no"), Problem(kind="wrong_token", message="no")]
)
_states: st.SearchStrategy[dict[str, str | None] | None] = st.one_of(
    st.none(),
    st.sampled_from(["detached", "deployed", "stopping", "stopped", "disabled", "unknown"]).map(
        lambda state: {"ap": state}
    ),
    st.just({}),
)
_looks = st.builds(
    Look,
    _states,
    st.one_of(st.none(), st.just({}), st.just({"ap": (BOX,)}), st.just({"other": (BOX,)})),
)
_facts = st.one_of(
    st.tuples(st.just("look"), _looks),
    st.tuples(st.just("no way"), _problems),
    st.tuples(st.sampled_from(["tick", "accepted", "send", "escalate", "deny"]), st.none()),
)


def after(track: Track, fact: tuple[str, object], now: float) -> Track:
    name, value = fact
    if isinstance(value, Look):
        return rules.saw(track, value, now, LIMITS)
    if isinstance(value, Problem):
        return rules.no_way(rules.first_way_failed(track, value), value, now, LIMITS)
    if name == "accepted":
        return rules.accepted(track)
    if name == "send":
        return rules.sending(track, now) if rules.to_send(track, now) else track
    if name == "escalate":
        return rules.escalated(track, now) if rules.to_escalate(track, now, LIMITS) else track
    if name == "deny":
        return rules.not_asked(track, now, "no")
    return rules.ticked(track, now, LIMITS)


@given(
    grace=st.one_of(st.none(), st.floats(0, 90)),
    facts=st.lists(st.tuples(_facts, st.floats(0, 40)), max_size=40),
)
def test_gone_is_only_ever_said_of_a_stopped_app_without_containers(
    grace: float | None, facts: list[tuple[tuple[str, object], float]]
) -> None:
    now = 0.0
    track = rules.begun("ap", "run", now, grace)
    for fact, seconds in facts:
        now += seconds
        before, track = track, after(track, fact, now)
        if not before.is_open:
            assert track == before, "an end is an end"
        if track.stage == "gone" and before.stage != "gone":
            look = fact[1]
            assert isinstance(look, Look)
            assert look.states is not None
            assert look.states["ap"] in ("stopped", "disabled")
            assert look.containers is not None
            assert not look.containers.get("ap")
        if track.stage == "alarm" and before.stage != "alarm":
            assert track.sent_at is not None
            assert now - track.sent_at >= LIMITS.alarm


@given(st.lists(st.tuples(_facts, st.floats(0, 5)), max_size=30), st.floats(0, 60))
def test_a_stop_is_always_sent_once_its_grace_is_over(
    facts: list[tuple[tuple[str, object], float]], grace: float
) -> None:
    now, track = 0.0, rules.begun("ap", "run", 0.0, grace)
    for fact, seconds in facts:
        now += seconds
        track = after(track, fact, now)
    now = max(now, grace) + LIMITS.retry
    track = rules.ticked(track, now, LIMITS)
    assert not track.is_open or track.sent_at is not None or rules.to_send(track, now)


def test_a_look_that_failed_proves_nothing() -> None:
    track = rules.sending(rules.begun("ap", "run", 0, None), 0)
    assert rules.saw(track, Look(None, {}), 1, LIMITS).is_open
    assert rules.saw(track, Look({"ap": "stopped"}, None), 1, LIMITS).is_open
    assert rules.saw(track, Look({}, {}), 1, LIMITS).is_open
    assert rules.saw(track, Look({"ap": "stopped"}, {"ap": (BOX,)}), 1, LIMITS).is_open
    assert rules.saw(track, Look({"ap": "stopped"}, {}), 1, LIMITS).stage == "gone"


def test_an_app_that_lives_on_though_its_stop_was_taken_is_stopped_again() -> None:
    track = rules.accepted(rules.sending(rules.begun("ap", "run", 0, None), 0))
    alive = Look({"ap": "detached"}, {"ap": (BOX,)})
    assert not rules.to_send(rules.saw(track, alive, 29, LIMITS), 29)
    assert rules.to_send(rules.saw(track, alive, 30, LIMITS), 30)


def test_what_has_saved_is_not_waited_for() -> None:
    track = rules.begun("ap", "run", 0, 60)
    beat = ControlBeat(time=0, run_id="run", state="running", step=7, checkpoint_step=4)
    assert rules.heard(track, 1, beat) == track
    ended = ControlBeat(time=0, run_id="run", state="ended", step=7, checkpoint_step=7)
    saved = rules.heard(track, 2, ended)
    assert saved.saved
    assert rules.to_send(saved, 2)


def test_what_could_not_be_asked_to_save_stays_said_when_the_stop_is_taken() -> None:
    track = rules.not_asked(rules.begun("ap", "run", 0, 60), 1, "nothing in it can be asked")
    track = rules.accepted(rules.sending(track, 1))
    assert track.message == rules.ACCEPTED
    assert track.note == "nothing in it can be asked"


def test_a_run_that_no_stop_ends_is_asked_once_to_end_itself() -> None:
    track = rules.sending(rules.begun("ap", "run", 0, None), 0)
    assert not rules.to_plead(track, LIMITS.plead - 1, LIMITS)
    assert rules.to_plead(track, LIMITS.plead, LIMITS)
    track = rules.pleading(track)
    assert not rules.to_plead(track, 99, LIMITS)
    assert rules.pleaded(track).note == rules.PLEADED


# The kill switch itself.


def test_apps_are_stopped_together_and_verified_to_have_no_container(nap: Napping) -> None:
    ids = nap.take(2)
    stopped = nap.stop(ids)
    assert stopped.zero
    for app_id in ids:
        assert stopped.stages(app_id) == ["stopping", "gone"]
        assert not nap.plane.tasks(app_id)
    lines = nap.audit_lines()
    assert [line["when"] for line in lines] == ["before"] * 2 + ["after"] * 2
    assert {line["result"] for line in lines[2:]} == {"gone"}
    again = nap.stop(ids)  # already stopped is success
    assert again.zero


@pytest.fixture(scope="module")
def savers(naps: Napping) -> list[str]:
    """Two apps that save when they are asked to, and have said that they can hear."""
    names = ("saver", "skewed")
    ids = naps.launch(*names, steps=900)

    def have_spoken() -> bool:
        said = naps.plane.modal("dict", "items", "composer-control").stdout
        return all(f"{name}/beat" in said for name in names)

    wait_until(have_spoken, "beats")
    return ids


def test_a_run_that_can_hear_is_asked_to_save_and_the_others_are_not_waited_for(
    nap: Napping, savers: list[str]
) -> None:
    saving, deaf = savers[0], nap.take()[0]
    stopped = nap.stop([saving, deaf], "graceful", grace=30)
    assert stopped.zero
    assert stopped.app(saving)["saved"]
    assert stopped.app(saving)["seconds"] < 20
    assert stopped.stages(saving) == ["asked", "stopping", "gone"]
    assert not stopped.app(deaf)["saved"]


def test_a_clock_that_is_ahead_takes_no_run_its_time_to_save(
    nap: Napping, savers: list[str]
) -> None:
    stopped = nap.stop([savers[1]], "graceful", grace=30, ahead=7200)
    assert stopped.app(savers[1])["saved"]


@pytest.fixture(scope="module")
def stuck(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Napping]:
    """Two apps that Modal does not end when they are stopped, only container by container."""
    with napping(tmp_path_factory.mktemp("stuck"), "stuck-stop=300") as nap:
        nap.running = nap.launch("one", "another")
        yield nap


def test_a_stop_that_was_killed_is_carried_through_by_the_next_and_escalates(
    stuck: Napping,
) -> None:
    ids = stuck.take()
    first = stuck.begin_stop(ids)
    assert first.stdout is not None
    while not json.loads(first.stdout.readline())["containers"]:
        pass  # it has seen them: its stop was sent
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert stuck.audit_lines()[-1]["when"] == "before"
    stopped = stuck.stop(ids, limits={"escalate": 1.0})
    assert stopped.zero
    assert not any(map(stuck.plane.tasks, ids))
    assert stopped.stages(ids[0]) == ["stopping", "escalated", "gone"]
    assert stuck.audit_lines()[-1]["result"] == "gone"


def test_what_does_not_end_raises_the_alarm_and_is_never_called_gone(stuck: Napping) -> None:
    (app_id,) = stuck.take()
    (task,) = stuck.plane.tasks(app_id)
    limits = {"escalate": 300.0, "alarm": 1.5, "tell": 0.4, "slow_poll": 0.5}
    stopped = stuck.stop([app_id], limits=limits, alarms=3)
    assert not stopped.zero
    last = stopped.app(app_id)
    assert last["stage"] == "alarm"
    assert last["containers"] == [task.task_id]
    assert task.task_id in last["message"]
    assert f"https://modal.com/id/{app_id}" in last["message"]
    assert last["by_hand"] == f"modal app stop {app_id} --yes -e main"
    assert last["by_hand"] in last["message"]
    assert stuck.audit_lines()[-1]["result"] == "alarm"


def test_a_wedged_client_leaves_the_stop_to_a_fresh_process(nap: Napping) -> None:
    (app_id,) = nap.take()
    stopped = nap.stop([app_id], wedge=True, limits={"api": 0.7})
    assert stopped.zero
    assert "second_path" in stopped.stages(app_id)
    assert not nap.plane.tasks(app_id)


def test_what_fails_at_random_delays_the_verdict_and_does_not_change_it(tmp_path: Path) -> None:
    # AppGetOrCreate is how the library finds an app by its id; the command line does not use it.
    with napping(tmp_path, "list-fails=0.5,error=AppGetOrCreate:UNAVAILABLE:1,seed=3") as nap:
        (app_id,) = nap.launch("refused", running=False)
        stopped = nap.stop([app_id], limits={"api": 1.5})
        assert stopped.zero
        assert "second_path" in stopped.stages(app_id)
        assert not nap.is_live(app_id)


@pytest.mark.parametrize("emergency", [False, True])
def test_an_app_that_does_not_exist_is_a_clear_failure_and_holds_up_no_other(
    nap: Napping, emergency: bool
) -> None:
    (real,) = nap.take()
    # The child checks that the emergency stop has imported no modal.
    stopped = nap.stop([NOBODY, "--help", real], emergency=emergency)
    assert stopped.app(NOBODY)["stage"] == "failed"
    assert "no app" in stopped.app(NOBODY)["message"]
    assert "no app id" in stopped.app("--help")["message"]
    assert stopped.app(real)["stage"] == "gone"
    assert not nap.plane.tasks(real)


def test_a_wrong_token_fails_at_once_and_is_not_shown(nap: Napping) -> None:
    (app_id,) = nap.take_idle()
    wrong = {"MODAL_TOKEN_ID": "ak-wrongwrongwrong", "MODAL_TOKEN_SECRET": "as-wrongwrongwrong"}
    stopped = nap.stop([app_id], environ={**nap.plane.connection.environ(), **wrong})
    assert stopped.app(app_id)["stage"] == "failed"
    assert "token" in stopped.app(app_id)["message"]
    assert "wrongwrong" not in json.dumps(stopped.told) + nap.audit.read_text()


def test_without_a_token_it_fails_at_once(nap: Napping) -> None:
    environ = {**nap.plane.connection.environ(), "MODAL_TOKEN_ID": "", "MODAL_TOKEN_SECRET": ""}
    stopped = nap.stop([NOBODY], environ=environ)
    assert stopped.app(NOBODY)["stage"] == "failed"
    assert "modal token new" in stopped.app(NOBODY)["message"]


def test_without_a_network_it_tries_and_then_says_that_it_could_not_ask(nap: Napping) -> None:
    limits = {"api": 0.7, "cli": 1.0, "retry": 0.2, "unreachable": 2.0}
    stopped = nap.stop([NOBODY], environ=nowhere(), limits=limits)
    assert stopped.app(NOBODY)["stage"] == "failed"
    assert nap.audit_lines()[-1]["result"] == "failed"


def test_a_server_that_never_answers_holds_up_nothing_beyond_its_limits(nap: Napping) -> None:
    limits = {"api": 0.7, "cli": 1.0, "retry": 0.2, "unreachable": 2.0}
    with deaf_server() as url:
        environ = {**nap.plane.connection.environ(), "MODAL_SERVER_URL": url}
        stopped = nap.stop([NOBODY], environ=environ, limits=limits)
    assert stopped.app(NOBODY)["stage"] == "failed"
    assert stopped.result["seconds"] < 12


def test_a_full_disk_keeps_nobody_from_stopping(nap: Napping) -> None:
    (app_id,) = nap.take_idle()
    nap.audit.symlink_to("/dev/full")
    stopped = nap.stop([app_id])
    assert stopped.zero
    assert any("not noted" in told["message"] for told in stopped.told)


@contextmanager
def deaf_server() -> Iterator[str]:
    """Accepts, and never says a word."""
    listener = socket.create_server(("127.0.0.1", 0))
    kept: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                kept.append(listener.accept()[0])
            except OSError:
                return

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()
        for connection in kept:
            connection.close()


def test_who_cannot_be_told_of_a_stop_does_not_end_it(tmp_path: Path) -> None:
    """A closed terminal, above all: what is printed before the stop is sent must not prevent it."""

    def nobody_hears(_progress: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "nobody reads")

    result = stop_apps(["nothing"], "now", 0.0, nobody_hears, audit_path=tmp_path / "audit.jsonl")
    assert [app.stage for app in result.apps] == ["failed"]
