"""How a call on Modal ended: what was stopped, what was killed, and what a container returned."""

from pathlib import Path

import pytest
from modal.exception import FunctionTimeoutError, RemoteError

from composer_engine.protocol import FailureKind, RunFailed, RunFinished
from composer_tui.cloud.audit import OwnStop, append, audit_path, line_of, own_stop
from composer_tui.cloud.verdict import (
    PLANE_GONE,
    STOPPED,
    UNKNOWN,
    Ending,
    ending_of_error,
    ending_of_value,
    last_word,
    may_be_a_stop,
    stopped_word,
)


@pytest.mark.parametrize(
    "text",
    [
        "The app was stopped.",
        "The input was cancelled.",
        "The function call was canceled by its caller",
        "",  # a container that is cancelled sends a result without a word
    ],
)
def test_what_was_stopped_is_said_to_be_stopped(text: str) -> None:
    ending = ending_of_error(RemoteError(text))
    assert (ending.kind, ending.message) == ("killed", "the app was stopped")


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("Runner terminated by signal 9", "killed", "SIGKILL, most often because the host memory"),
        ("Runner terminated by signal 15", "killed", "the container was ended by SIGTERM"),
        ("Runner terminated by signal 99", "killed", "ended by signal 99"),
        ("Runner failed with exit code: 137", "killed", "SIGKILL"),
        ("Runner failed with exit code: 1", "engine", "exit code: 1"),
        ("Container ran out of memory: OOMKilled, by signal 9", "oom", "memory is full"),
        ("ValueError: the stream was terminated early", "engine", "terminated early"),
    ],
)
def test_a_container_that_died_is_not_said_to_be_stopped(
    text: str, kind: FailureKind, words: str
) -> None:
    ending = ending_of_error(RemoteError(text))
    assert ending.kind == kind
    assert words in ending.message
    assert "the app was stopped" not in ending.message


def test_a_kill_whose_log_tells_of_memory_was_for_want_of_it() -> None:
    killed = ending_of_error(RemoteError("Runner terminated by signal 9"))
    word = last_word(killed, ["oom-kill: constraint=CONSTRAINT_MEMCG"], 3)
    assert isinstance(word, RunFailed)
    assert word.kind == "oom"
    other = last_word(killed, ["No space left on device"], 3)
    assert isinstance(other, RunFailed)
    assert other.kind == "killed"


def test_a_timeout_is_one() -> None:
    assert ending_of_error(FunctionTimeoutError("x was cancelled")).kind == "timeout"


@pytest.mark.parametrize(
    ("said", "ended_by"), [("budget", "budget"), ("", ""), ("new", ""), (3, ""), (None, "")]
)
def test_the_guard_rail_that_a_container_returned_is_kept(said: object, ended_by: str) -> None:
    value = {"outcome": "stopped", "reason": "why", "step": "7", "ended_by": said}
    word = last_word(ending_of_value(value), [], 0)
    assert isinstance(word, RunFinished)
    assert (word.steps, word.stopped_early, word.ended_by) == (7, True, ended_by)


STOP = OwnStop(1.0e9, is_late=True)


def test_a_stop_of_this_machine_is_said_to_be_one_also_when_modal_took_it_late() -> None:
    late = stopped_word(STOP, 7, is_started=True)
    assert isinstance(late, RunFinished)
    assert (late.steps, late.stopped_early, late.ended_by) == (7, True, "")
    assert late.reason.startswith("stopped by you (the stop of ")
    assert late.reason.endswith(" took effect)")
    unborn = stopped_word(STOP._replace(is_late=False), 0, is_started=False)
    assert isinstance(unborn, RunFailed)
    assert (unborn.kind, unborn.message[:18]) == ("killed", "stopped by you at ")


@pytest.mark.parametrize(
    ("ending", "may_be"),
    [
        (STOPPED, True),
        (UNKNOWN, True),
        (ending_of_error(type("InputCancellation", (Exception,), {})("")), True),
        (ending_of_value({"outcome": "preempted"}), True),
        (ending_of_value({"outcome": "oom"}), False),
        (ending_of_error(RemoteError("Runner terminated by signal 9")), False),
        (ending_of_error(RemoteError("ValueError: no")), False),
        (PLANE_GONE, False),
    ],
)
def test_only_what_a_stop_leaves_is_laid_to_a_stop(ending: Ending, may_be: bool) -> None:
    assert may_be_a_stop(ending) == may_be


def test_no_last_word_leaves_a_run_waiting_for_another_attempt() -> None:
    gone = type("PreemptionError", (Exception,), {})("")
    for ending in (ending_of_error(gone), ending_of_value({"outcome": "preempted"})):
        word = last_word(ending, ["Container terminated due to preemption. It is restarted"], 3)
        assert isinstance(word, RunFailed)
        assert (word.kind, "no other attempt" in word.message) == ("killed", True)


def test_the_evidence_leaves_out_what_was_told_and_what_comes_each_second() -> None:
    log = ["[modal-client] 2026 Heartbeat failed", "composer-tui: lost", "the real thing"]
    word = last_word(STOPPED, log, 3)
    assert isinstance(word, RunFailed)
    assert word.detail == "the real thing"


def test_the_newest_stop_in_the_audit_counts_and_a_given_up_one_is_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert own_stop("ap-1") is None
    for moment, when, result in ((1.0, "before", ""), (2.0, "after", "failed")):
        line = line_of(moment, when, "ap-1", "n", "now", result=result)  # type: ignore[arg-type]
        append(audit_path(), [line])
    assert own_stop("ap-1") == OwnStop(1.0, is_late=True)
    append(audit_path(), [line_of(3.0, "before", "ap-1", "n", "now")])
    assert own_stop("ap-1") == OwnStop(3.0, is_late=False)
    assert own_stop("ap-2") is None
    assert own_stop("") is None
