"""Rewards that run code: a person's own function, and what a model wrote, which may be hostile."""

import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composer_engine.code_child import filter_program
from composer_engine.code_reward import Limits, check_sandbox, passing, python_of, read_checks
from composer_engine.config import load
from composer_engine.contract import INPUTS_MOUNT
from composer_engine.failures import SetupError
from composer_engine.inputs import container_config, given_paths, local_inputs
from composer_engine.protocol import AlertRaised, RunFinished, StepCompleted
from composer_engine.rewards import Code, Python, Regex, make_reward, read_spec, score
from tests.engine.training import trained

ADD = "def add(a, b):\n    return a + b\n"
TESTS = "assert add(1, 2) == 3\nassert add(-1, 1) == 0\n"
CHECKS = read_checks(TESTS)
LIMITS = Limits(cpu_seconds=1, memory_bytes=256 << 20)


def passed(code: str) -> set[int]:
    return set(passing(code, CHECKS, LIMITS))


# ---------------------------------------------------------------- code that is what it should be


def test_code_that_passes_its_tests_is_rewarded_and_other_code_is_not() -> None:
    reward = make_reward(Code(tests=TESTS), None)
    assert reward(f"Like this:\n```python\n{ADD}```\nIt adds.") == 1.0
    assert reward(ADD.replace("+", "-")) == 0.0
    assert reward("I do not know.") == 0.0


def test_partial_is_the_share_of_checks_that_pass() -> None:
    reward = make_reward(Code(partial=True, seconds=1), TESTS)
    assert reward(ADD) == 1.0
    assert reward("def add(a, b):\n    return 0") == 0.5
    assert reward("") == 0.0


def test_checks_that_passed_before_one_that_never_ends_still_count() -> None:
    reward = make_reward(Code(tests=TESTS, partial=True, seconds=1), None)
    assert reward("def add(a, b):\n    while a < 0: pass\n    return 3\n") == 0.5


def test_calls_and_test_functions_are_checks_and_the_rest_sets_up() -> None:
    tests = (
        "import math\nwanted = 3\ndef check(f):\n    assert f(1, 2) == wanted\ncheck(add)\n"
        "def test_zero():\n    assert add(0, 0) == 0\ndef test_given(x):\n    assert False\n"
    )
    checks = read_checks(tests)
    assert len(checks.counted) == 2
    assert passing(ADD, checks, LIMITS) == checks.counted
    assert passing("def add(a, b): return 3", checks, LIMITS) < checks.counted


def test_ordinary_programs_find_the_library_threads_and_an_event_loop() -> None:
    code = (
        "import asyncio, collections, dataclasses, decimal, heapq, json, re, threading\n"
        "@dataclasses.dataclass\nclass Sum:\n    value: int\n"
        "async def slowly(a, b):\n    await asyncio.sleep(0)\n    return Sum(a + b)\n"
        "def add(a, b):\n    done = []\n"
        "    thread = threading.Thread(target=lambda: done.append(asyncio.run(slowly(a, b))))\n"
        "    thread.start()\n    thread.join()\n    return done[0].value\n"
        "if __name__ == '__main__':\n    input()\n"
    )
    assert passed(code) == {0, 1}


def test_what_chance_decides_is_decided_alike_each_time() -> None:
    code = "import random\nhashed = hash('x')\ndef seen():\n    return (random.random(), hashed)"
    checks = read_checks(f"assert seen() == {_seen(code)!r}")
    assert passing(code, checks, LIMITS) == {0}


def _seen(code: str) -> object:
    """What one such run sees, asked digit by digit: nothing else gets out of there."""
    import random
    import subprocess
    import sys

    program = "print(hash('x'))"
    environ = {"PYTHONHASHSEED": "0"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environ, capture_output=True, check=True)
    return (random.Random(0).random(), int(done.stdout))


# ---------------------------------------------------------------- code that is not

DEEDS = {
    "fork": "os.fork()",
    "start a program": "subprocess.run(['/bin/true'])",
    "become a program": "os.execv('/bin/true', ['true'])",
    "start one by hand": "raised(libc.vfork())",
    "open a socket": "socket.socket()",
    "open a socket by hand": "raised(libc.socket(2, 1, 0))",
    "open a ring of calls": "raised(libc.syscall(425, 8, bytes(120)))",  # io_uring_setup
    "read another's memory": "raised(libc.process_vm_readv(os.getppid(), None, 0, None, 0, 0))",
    "trace another": "raised(libc.ptrace(16, os.getppid(), 0, 0))",
    "signal its parent": "os.kill(os.getppid(), 0)",
    "signal everybody": "os.kill(-1, 0)",
    "have a descriptor signal": "fcntl.fcntl(os.pipe()[0], 8, os.getppid())",
    "remove its folder": "os.rmdir(os.getcwd())",
    "write a file": "open('x', 'w')",
    "make a file": "os.open('x', os.O_RDONLY | os.O_CREAT)",
    "make a file without a name": "os.open('.', os.O_TMPFILE | os.O_RDWR)",
    "make a folder": "os.mkdir('x')",
    "give itself more time": "raised(libc.setrlimit(0, (ctypes.c_long * 2)(99, 99)))",
    "change another's limits": "resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))",
    "mount": "raised(libc.mount(b'a', b'/', b'tmpfs', 0, 0))",
    "become another": "os.setuid(1)",
    "lift the filter": "raised(libc.prctl(22, 0, 0, 0, 0))",
}
TRY = """
import ctypes, fcntl, os, resource, socket, subprocess
libc = ctypes.CDLL(None, use_errno=True)
def raised(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), '')
try:
    {deed}
except OSError as error:
    refused = error.errno == 1 or isinstance(error, PermissionError)
    def add(a, b): return a + b if refused else error
"""


@pytest.mark.parametrize("name", DEEDS)
def test_code_cannot(name: str) -> None:
    assert passed(TRY.format(deed=DEEDS[name])) == {0, 1}


ATTACKS = {
    "a memory hog": f"{ADD}x = []\nwhile True:\n    x.append(bytearray(1 << 24))",
    "an endless loop": f"{ADD}while True: pass",
    "a long sleep": f"{ADD}import time\ntime.sleep(600)",
    "an early exit": f"{ADD}import sys\nsys.exit(0)",
    "a hard exit": f"{ADD}import os\nos._exit(0)",
    "an exit at the test": "import os\ndef add(a, b):\n    os._exit(0)",
    "an exit that is raised": "def add(a, b):\n    raise SystemExit(0)",
    "a forged verdict": (
        "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'sl\\n0 0\\n0 1\\n')\n"
        "    except OSError: pass\nos._exit(0)"
    ),
    "a token from the frames": (
        "import gc, os, sys\nfound = [o for o in gc.get_objects() if type(o) is bytes]\n"
        "frame = sys._getframe()\nwhile frame:\n"
        "    found += [v for v in frame.f_locals.values() if type(v) is bytes and len(v) == 32]\n"
        "    frame = frame.f_back\n"
        "for fd in range(3, 64):\n    for t in found or [b'']:\n"
        "        try: os.write(fd, b'l' + t + b' 0\\n' + t + b' 1\\n')\n"
        "        except OSError: pass\nos._exit(0)"
    ),
    "an equal to everything": (
        "class Any:\n    def __eq__(self, other): return True\ndef add(a, b): return Any()"
    ),
    "no assertion": "import builtins\nbuiltins.AssertionError = None\ndef add(a, b): return None",
    "another comparison": "__same__ = lambda a, b: True\ndef add(a, b): return None",
    "a trace that returns": (
        "import sys\ndef trace(frame, event, _):\n    frame.f_trace_opcodes = True\n"
        "    return trace\nsys.settrace(trace)\ndef add(a, b): return None"
    ),
    "too deep": f"{ADD}import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
    "no Python": "def add(a, b:",
    "nulls": f"{ADD}x = '\0'",
    "half a character": f"{ADD}x = '\ud800'",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_worth_nothing_and_is_over_in_time(name: str) -> None:
    begun = time.monotonic()
    assert passed(ATTACKS[name]) == set()
    assert time.monotonic() - begun < 60


def test_huge_output_neither_blocks_nor_fills_anything() -> None:
    assert passed(ADD + "import sys\nfor _ in range(1000):\n    print('x' * 100_000)") == {0, 1}


def test_nobody_else_s_files_are_written_moved_or_removed(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("secret")
    assert passed(f"{ADD}import os\nos.listdir(os.path.dirname(os.__file__))") == {0, 1}
    for deed in (
        f"open({str(mine)!r}, 'w')",
        f"open({str(mine)!r}, 'r+b')",
        f"__import__('os').truncate({str(mine)!r}, 0)",
        f"__import__('os').remove({str(mine)!r})",
        f"__import__('os').rename({str(mine)!r}, {str(tmp_path / 'gone')!r})",
        f"__import__('os').chmod({str(mine)!r}, 0)",
        f"__import__('os').symlink('/', {str(tmp_path / 'link')!r})",
        "open(f'/proc/{__import__(\"os\").getppid()}/mem', 'r+b')",
    ):
        assert passed(f"{ADD}{deed}") == set(), deed
    assert mine.read_text() == "secret"
    assert [*tmp_path.iterdir()] == [mine]


def test_nothing_of_the_engine_is_in_sight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        code = (
            f"{ADD}import os, sys\nassert 'HF_TOKEN' not in os.environ\n"
            f"assert not os.listdir('.')\nassert sys.stdin.read() == ''\n"
            "there = []\nfor fd in range(3, 64):\n"
            "    try: there.append(os.readlink(f'/proc/self/fd/{fd}'))\n    except OSError: pass\n"
            "assert all(name.startswith('pipe:') for name in there)\n"
            "assert 'torch' not in sys.modules and not any('site-packages' in p for p in sys.path)"
        )
        assert passed(code) == {0, 1}


def test_a_step_s_code_runs_at_the_same_time_and_in_the_same_order() -> None:
    code = make_reward(Code(tests=TESTS, seconds=1), None)
    plain = make_reward(Regex(pattern="x"), None)
    rewards = [code, plain, code, code]
    completions = [ADD, "x", "import time\ntime.sleep(9)", ADD]
    threads = threading.active_count()
    assert score(rewards, completions).values == [1.0, 1.0, 0.0, 1.0]
    assert threading.active_count() == threads


def test_a_machine_that_starts_no_more_processes_costs_rewards_and_not_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reward = make_reward(Code(tests=TESTS), None)
    monkeypatch.setattr("sys.executable", "/no/such/python")
    values, complaints = score([reward, make_reward(Regex(pattern="x"), None)], [ADD, "x"])
    assert values == [0.0, 1.0]
    assert complaints[0].startswith("the reward code failed for 1 of 2 completions, which get 0: ")


@pytest.mark.parametrize(
    ("tests", "words"),
    [
        ("assert add(", "are not Python"),
        ("assert " + "-" * 5000 + "1", "are not Python"),
        ("x = 1", "check nothing"),
        ("def test_it(given):\n    assert given", "check nothing"),
        ("assert True\n" * 1001, "1000 are the most"),
    ],
)
def test_tests_that_cannot_judge_are_refused(tests: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"reward 'code': its tests .*{words}"):
        make_reward(Code(tests=tests), None, is_glance=True)


def test_code_without_tests_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the row's 'answer'"):
        make_reward(Code(), None)


def test_where_there_is_no_sandbox_code_is_refused_unless_that_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_sandbox.cache_clear()
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    try:
        with pytest.raises(ValueError, match="needs Linux on x86_64 or aarch64"):
            make_reward(Code(tests=TESTS), None)
        assert make_reward(Code(tests=TESTS, sandbox=False), None)(ADD) == 1.0
    finally:
        monkeypatch.undo()
        check_sandbox.cache_clear()


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_a_filter_ends_in_a_refusal_and_jumps_nowhere_else(machine: str) -> None:
    program = filter_program(machine)
    code = [program[at : at + 8] for at in range(0, len(program), 8)]
    assert len(program) % 8 == 0
    assert code[-1][4:] == (0x00050000 | 1).to_bytes(4, "little")
    for place, instruction in enumerate(code):
        if instruction[0] == 0x15:
            assert place + 1 + max(instruction[2], instruction[3]) < len(code)
    with pytest.raises(OSError, match="no sandbox"):
        filter_program("riscv64")


@pytest.mark.parametrize(
    ("completion", "code"),
    [
        ("x = 1", "x = 1"),
        ("```\na\n```", "a\n"),
        ("```python\na\n```\nthen\n```py\nb\n```\nbye", "b\n"),
        ("```python\na\n```\n```sh\nrm\n```", "a\n"),
        ("```sh\nrm\n```", "```sh\nrm\n```"),
        ("so:\n```python\na\nb", "a\nb\n"),
        ("  ```Python\n  a\n  ```", "  a\n"),
        ("```python\n```", "\n"),
    ],
)
def test_the_last_block_of_python_is_what_is_run(completion: str, code: str) -> None:
    assert python_of(completion) == code


@given(st.text(alphabet="`\n pythonab", max_size=60))
def test_any_text_has_some_code(completion: str) -> None:
    assert isinstance(python_of(completion), str)


# ---------------------------------------------------------------- a person's own function


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    file = tmp_path / "mine.py"
    file.write_text(
        "calls = []\n"
        "def judge(completion, *, prompt, answer):\n"
        "    calls.append(completion)\n"
        "    return len(completion) / 10 if answer is None else completion == prompt + answer\n"
        "def moody(completion, *, prompt, answer):\n"
        "    return {'nan': float('nan'), 'text': '1', 'none': None, 'one': 1}[completion]\n"
        "def narrow(completion): return 1.0\n"
        "number = 3\n"
    )
    return file


def test_a_function_of_one_s_own_judges_by_prompt_and_answer(mine: Path) -> None:
    spec = Python(function=f"{mine}:judge")
    assert make_reward(spec, None, "p")("xyz") == 0.3
    assert make_reward(spec, "q", "p")("pq") == 1.0


def test_a_function_of_a_module_is_found() -> None:
    with pytest.raises(ValueError, match="must take"):
        make_reward(Python(function="math:floor"), None)
    with pytest.raises(ValueError, match="no_such_module cannot be imported: ModuleNotFoundError"):
        make_reward(Python(function="no_such_module:judge"), None)


def test_what_it_does_instead_of_a_number_is_zero_and_is_counted(mine: Path) -> None:
    reward = make_reward(Python(function=f"{mine}:moody"), None)
    values, complaints = score([reward] * 5, ["one", "nan", "text", "none", "other"])
    assert values == [1.0, 0.0, 0.0, 0.0, 0.0]
    (said,) = complaints
    assert said == (
        f"the reward {mine}:moody failed for 4 of 5 completions, which get 0: "
        "gave nan, which is no finite number"
    )


@pytest.mark.parametrize("given", ["1e308", "-1e39", "10**400"])
def test_a_reward_that_no_float32_holds_is_zero_and_is_counted(given: str, tmp_path: Path) -> None:
    file = tmp_path / "huge.py"
    file.write_text(f"def judge(completion, *, prompt, answer): return {given}\n")
    reward = make_reward(Python(function=f"{file}:judge"), None)
    values, (said,) = score([reward] * 2, ["a", "b"])
    assert values == [0.0, 0.0]
    assert "failed for 2 of 2 completions, which get 0: " in said
    file = tmp_path / "large.py"
    file.write_text("def judge(completion, *, prompt, answer): return 3.4028234663852886e38\n")
    assert make_reward(Python(function=f"{file}:judge"), None)("a") == 3.4028234663852886e38


def test_equal_rewards_of_any_size_teach_nothing(tmp_path: Path) -> None:
    file = tmp_path / "always.py"
    file.write_text("def judge(completion, *, prompt, answer): return 0.3\n")
    text = f'{{"kind": "python", "function": "{file}:judge"}}'
    settings = ("optimizer.steps=1", "rollout.max_completion_tokens=4", f"data.reward={text}")
    alone = ("loss.sdpo_weight=0", "loss.replay_weight=0")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt":"{n}+1=","answer":"1"}}\n' for n in range(8)))
    config = load("smoke", settings=(*settings, *alone, f"data.path={rows}"))
    _, events = trained(config, tmp_path / "run")
    (step,) = [event for event in events if isinstance(event, StepCompleted)]
    assert step.channels.grpo is None
    assert step.reward_mean == pytest.approx(0.3)
    assert step.reward_std == 0.0
    assert step.grad_norm in (None, 0.0)
    assert step.metrics["frac_reward_zero_std"] == 1.0


def test_a_run_goes_on_and_says_how_often_the_function_failed(mine: Path, tmp_path: Path) -> None:
    text = f'{{"kind": "python", "function": "{mine}:moody"}}'
    settings = ("optimizer.steps=1", "rollout.max_completion_tokens=4", f"data.reward={text}")
    config = load("smoke", settings=settings)
    count = config.rollout.prompts_per_step * config.rollout.completions_per_prompt
    trainer, events = trained(config, tmp_path / "run")
    alerts = [event for event in events if isinstance(event, AlertRaised)]
    (said,) = [alert for alert in alerts if alert.rule == "reward"]
    assert f"{mine}:moody failed for {count} of {count} completions" in said.message
    assert said.step == 1
    assert trainer.record.rewards.eq(0).all()
    assert isinstance(events[-1], RunFinished)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("{mine}:none", "has no 'none' at its top level"),
        ("{mine}:narrow", "must take"),
        ("{mine}:number", "has no function 'number'"),
        ("{mine}", "names path/to/file.py:function"),
        ("{mine}x.py:judge", "cannot read"),
        ("a b:judge", "is neither a .py file nor a module"),
    ],
)
def test_a_function_that_cannot_be_called_is_one_line(
    mine: Path, function: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        make_reward(Python(function=function.format(mine=mine)), None)
    assert "\n" not in str(caught.value)


def test_a_file_that_fails_as_it_is_imported_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def judge(): pass\nraise SystemExit(3)")
    with pytest.raises(ValueError, match="cannot be imported: SystemExit: 3"):
        make_reward(Python(function=f"{tmp_path / 'bad.py'}:judge"), None)


def test_a_glance_imports_nothing(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text("def judge(): pass\nraise SystemExit(3)")
    make_reward(Python(function=f"{tmp_path / 'loud.py'}:judge"), None, is_glance=True)


def test_its_file_travels_to_a_container(mine: Path) -> None:
    text = f'{{"kind": "python", "function": "{mine}:judge"}}'
    config = load("smoke", settings=(f"data.reward={text}",))
    there = container_config(config)
    assert read_spec(there.data.reward) == Python(function=f"{INPUTS_MOUNT}/reward/mine.py:judge")
    assert container_config(there) == there
    assert [(item.local, item.remote) for item in local_inputs(config)] == [
        (mine.resolve(), f"{INPUTS_MOUNT}/reward/mine.py")
    ]
    assert given_paths(config)[f"{INPUTS_MOUNT}/reward/mine.py:judge"] == f"{mine}:judge"
    mine.unlink()
    with pytest.raises(SetupError, match=r"data.reward: .* is not a file"):
        local_inputs(config)


def test_a_module_cannot_travel() -> None:
    text = '{"kind": "python", "function": "mine.rewards:judge"}'
    with pytest.raises(SetupError, match="a container has none of yours"):
        local_inputs(load("smoke", settings=(f"data.reward={text}",)))
