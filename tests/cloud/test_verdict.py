"""How a call on Modal ended: what was stopped, what was killed, and what a container returned."""

import pytest
from modal.exception import FunctionTimeoutError, RemoteError

from composer_engine.protocol import FailureKind, RunFailed, RunFinished
from composer_tui.cloud.verdict import ending_of_error, ending_of_value, last_word


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
