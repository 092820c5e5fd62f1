"""Calls of functions, through Modal's own client and container."""

import json
from typing import Any

import pytest

from tests.rehearsal.rehearsal import Rehearsal

_APP = """
import os, subprocess, sys, time
import modal

app = modal.App("calls", tags={"composer.run": "r-1"})
volume = modal.Volume.from_name("calls", create_if_missing=True)

@app.function(max_containers=1)
def square(x):
    if x == "task":
        time.sleep(0.1)
        return os.environ["MODAL_TASK_ID"]
    if isinstance(x, str):
        raise ValueError(f"no {x}")
    return x * x if isinstance(x, int) else x

@app.function()
def count(n):
    yield from range(n)

@app.function()
async def waits(x):
    import asyncio
    await asyncio.sleep(0.01)
    return x + 1

@app.function(timeout=1)
def sleeps(seconds):
    time.sleep(seconds)

@app.function(
    retries=modal.Retries(max_retries=2, initial_delay=0.0, backoff_coefficient=1.0),
    volumes={"/data/calls": volume},
)
def third_time():
    path = "/data/calls/attempts"
    attempts = int(open(path).read()) if os.path.exists(path) else 0
    open(path, "w").write(str(attempts + 1))
    if attempts < 2:
        raise RuntimeError(f"attempt {attempts}")
    return attempts

@app.function()
@modal.concurrent(max_inputs=3)
def together(x):
    time.sleep(0.3)
    return modal.current_input_id(), os.environ["MODAL_TASK_ID"]

@app.function()
@modal.batched(max_batch_size=3, wait_ms=500)
def batch(xs):
    return [(x, len(xs)) for x in xs]

@app.cls()
class Greeter:
    name: str = modal.parameter(default="nobody")

    @modal.enter()
    def enter(self):
        self.greeting = f"hello {self.name}"

    @modal.method()
    def greet(self, times):
        return self.greeting * times

@app.function(max_containers=1)
def parent(x):
    return square.remote(x) + 1

@app.function()
def ends_itself():
    os._exit(7)
"""


@pytest.fixture(scope="module")
def answers(plane: Rehearsal, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one program gets that calls everything in every way; containers start together."""
    path = tmp_path_factory.mktemp("calls") / "work.py"
    path.write_text(_APP + _MAIN)
    done = plane.modal("run", "-q", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


_MAIN = """
def name_of(call):
    try:
        return call()
    except BaseException as error:
        import traceback
        return [type(error).__name__, str(error), "".join(traceback.format_exception(error))]

@app.local_entrypoint()
def main():
    from concurrent.futures import ThreadPoolExecutor
    import json

    def cancel():
        call = sleeps.with_options(timeout=60).spawn(50)
        try:
            call.get(timeout=0)
        except TimeoutError:
            pass
        while sleeps.with_options(timeout=60).get_current_stats().num_running_inputs == 0:
            time.sleep(0.05)
        begin = time.time()
        call.cancel()
        return [*name_of(call.get)[:1], time.time() - begin]

    def graph():
        call = parent.spawn(4)
        value = call.get()
        root, = call.get_call_graph()
        return [value, root.function_name, [child.function_name for child in root.children]]

    jobs = {
        "returned": lambda: square.remote(3),
        "raised": lambda: name_of(lambda: square.remote("1")),
        "yielded": lambda: list(count.remote_gen(4)),
        "awaited": lambda: waits.remote(1),
        "timed_out": lambda: name_of(lambda: sleeps.remote(30)),
        "third_time": lambda: third_time.remote(),
        "map": lambda: list(square.map(range(5))),
        "starmap": lambda: list(square.starmap([(2,), (3,)])),
        "map_errors": lambda: [str(e) for e in square.map(["1", "2"], return_exceptions=True)],
        "spawn_map": lambda: len(square.spawn_map([1, 2, 3]) or [1, 2, 3]),
        "together": lambda: list(together.map(range(3))),
        "batch": lambda: list(batch.map(range(3))),
        "classes": lambda: [Greeter(name="all").greet.remote(1), Greeter().greet.remote(2)],
        "options": lambda: square.with_options(timeout=7).remote(5),
        "cancelled": cancel,
        "graph": graph,
        "big": lambda: len(square.remote(b"x" * 3_000_000)),
        "died": lambda: name_of(ends_itself.remote),
        "alone": lambda: len(set(square.map(["task"] * 3))),
    }
    with ThreadPoolExecutor(len(jobs)) as pool:
        futures = {name: pool.submit(job) for name, job in jobs.items()}
        print(json.dumps({name: future.result() for name, future in futures.items()}))
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("returned", 9),
        ("yielded", [0, 1, 2, 3]),
        ("awaited", 2),
        ("third_time", 2),
        ("map", [0, 1, 4, 9, 16]),
        ("starmap", [4, 9]),
        ("map_errors", ["no 1", "no 2"]),
        ("batch", [[0, 3], [1, 3], [2, 3]]),
        ("classes", ["hello all", "hello nobodyhello nobody"]),
        ("options", 25),
        ("graph", [17, "parent", ["square"]]),
        ("big", 3_000_000),
        ("alone", 1),
    ],
)
def test_a_call_answers_what_the_function_returns(
    answers: dict[str, Any], name: str, expected: Any
) -> None:
    assert answers[name] == expected


def test_an_exception_comes_with_the_lines_that_raised_it(answers: dict[str, Any]) -> None:
    kind, words, traceback = answers["raised"]
    assert (kind, words) == ("ValueError", "no 1")
    assert ':/root/work.py", line 14, in square' in traceback


def test_a_call_past_its_timeout_fails_as_one(answers: dict[str, Any]) -> None:
    kind, words, _ = answers["timed_out"]
    assert kind == "FunctionTimeoutError"
    assert "timeout of 1s" in words


def test_concurrent_inputs_share_one_container(answers: dict[str, Any]) -> None:
    inputs, tasks = zip(*answers["together"], strict=True)
    assert len(set(inputs)) == 3
    assert len(set(tasks)) == 1


def test_a_cancelled_call_ends_at_once(answers: dict[str, Any]) -> None:
    kind, seconds = answers["cancelled"]
    assert kind == "RemoteError"
    assert seconds < 8.0  # the function would sleep for 50


def test_a_container_that_ends_itself_fails_its_call_with_its_status(
    answers: dict[str, Any],
) -> None:
    kind, words, _ = answers["died"]
    assert (kind, words) == ("RemoteError", "Runner failed with exit code: 7")
