"""Rewards by running: a completion's code, and then tests of it, in a process that is locked in.

A *check* is one statement of the tests at their top level that is an ``assert`` or a call, or one
function there whose name begins with ``test`` and that needs no argument. Other statements set up
what comes after them. All checks must pass; with ``partial`` the reward is the share that does.

Each completion has a process of its own: Python without third-party packages, an empty
environment, an empty working folder, closed stdin and stdout, limits on processor time, wall time
and memory, and Linux's seccomp filter, under which it can neither reach a network, nor start or
signal a process, nor write, move or remove a file. Where the kernel has Landlock (5.13, and not
all containers), it cannot read others' files either. It is killed with all that it started.

What that does not protect from: the tests run in the process of the code that they test, which
therefore can, if it was written against this very protocol, forge their result; or answer with
objects that lie when compared (one that equals everything is found out), or redefine a function
that the tests use. A kernel bug is a way out of any sandbox of this kind. And without Landlock it
can read what the run's own user can: it has nobody to tell, but may find the tests there.
"""

import ast
import contextlib
import functools
import marshal
import os
import platform
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_CHILD = Path(__file__).with_name("code_child.py")
_PYTHON = ("-P", "-s", "-S", "-B")  # not -I: the hash seed is the one variable that it has
_ENVIRONMENT = {"PYTHONHASHSEED": "0"}
_MACHINES = ("x86_64", "aarch64")
_MOST_CHECKS, _DIGITS = 1_000, 4
_VERDICT_BYTES = 1 << 16
_START_SECONDS = 60.0  # of a Python on a machine that has much else to do
_TOKEN_BYTES = 16
_FENCE = "```"
_PYTHON_TAGS = ("", "python", "python3", "py")
_REFUSED = """
import socket
def f():
    try:
        socket.socket()
    except PermissionError:
        return 1
"""


class Limits(NamedTuple):
    """``cpu_seconds`` are processor time; twice as many may pass on the wall."""

    cpu_seconds: int
    memory_bytes: int
    sandbox: bool = True


class Checks(NamedTuple):
    """Tests, taken apart: statements in order, and which of them are checks."""

    statements: tuple[str, ...]
    counted: frozenset[int]


@dataclass(frozen=True, slots=True)
class CodeReward:
    """The reward of one row. Calling it starts a process and waits for it."""

    checks: Checks
    limits: Limits
    partial: bool = False

    def __call__(self, completion: str) -> float:
        passed = len(passing(python_of(completion), self.checks, self.limits))
        total = len(self.checks.counted)
        return passed / total if self.partial else float(passed == total)


def read_checks(tests: str) -> Checks:
    """Raises `ValueError` for tests that are not Python, or that check nothing."""
    try:
        checks = _taken_apart(ast.parse(tests))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"its tests are not Python: {error}") from None
    if not checks.counted:
        raise ValueError("its tests check nothing: no assert, no call and no test function")
    if len(checks.counted) > _MOST_CHECKS:
        raise ValueError(
            f"its tests make {len(checks.counted)} checks, and {_MOST_CHECKS} are the most"
        )
    return checks


def _taken_apart(tree: ast.Module) -> Checks:
    statements: list[str] = []
    counted: list[int] = []
    functions: list[str] = []
    for node in tree.body:
        is_call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        if isinstance(node, ast.Assert) or is_call:
            counted.append(len(statements))
        elif isinstance(node, ast.FunctionDef) and _is_test(node):
            functions.append(node.name)
        statements.append(ast.unparse(_Compared().visit(node)))
    for name in functions:
        counted.append(len(statements))
        statements.append(f"{name}()")
    return Checks(tuple(statements), frozenset(counted))


def python_of(completion: str) -> str:
    """The last fenced block of Python, to its end if it was cut off; else the whole text."""
    block: list[str] | None = None
    found: list[str] | None = None
    is_python = False
    for line in completion.splitlines():
        mark = line.strip()
        if block is None and mark.startswith(_FENCE):
            block, is_python = [], mark[len(_FENCE) :].strip().lower() in _PYTHON_TAGS
        elif block is not None and mark == _FENCE:
            found, block = (block if is_python else found), None
        elif block is not None:
            block.append(line)
    if block is not None and is_python:
        found = block
    return completion if found is None else "\n".join(found) + "\n"


def passing(code: str, checks: Checks, limits: Limits) -> frozenset[int]:
    """Which of the counted checks pass. Whatever the code does, there is an answer in time."""
    token = secrets.token_hex(_TOKEN_BYTES).encode()
    said = _said(code, checks, limits, token)
    passed = set()
    for line in said.removeprefix(b"sl").split(b"\n") if said.startswith(b"sl") else ():
        given, _, number = line.partition(b" ")
        if secrets.compare_digest(given, token) and number.isdigit() and len(number) <= _DIGITS:
            passed.add(int(number))
    return checks.counted & passed


@functools.cache
def check_sandbox() -> None:
    """Raises `ValueError` where code cannot be locked in: seen by trying, once a process."""
    machine = platform.machine()
    otherwise = '"sandbox": false runs completions with your own rights, under limits alone'
    if sys.platform != "linux" or machine not in _MACHINES:
        raise ValueError(
            f"its sandbox needs Linux on {' or '.join(_MACHINES)}, and this is {platform.system()} "
            f"on {machine}; {otherwise}"
        )
    limits = Limits(10, 1 << 29)
    if not passing(_REFUSED, read_checks("assert f() == 1"), limits):
        raise ValueError(f"its sandbox does not work on this machine; {otherwise}")


def _is_test(node: ast.FunctionDef) -> bool:
    needed = len(node.args.posonlyargs) + len(node.args.args) - len(node.args.defaults)
    needed += sum(default is None for default in node.args.kw_defaults)
    return node.name.startswith("test") and not needed


class _Compared(ast.NodeTransformer):
    """``a == b`` as a question that a value which equals everything does not pass."""

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        if len(node.ops) != 1 or not isinstance(node.ops[0], ast.Eq):
            return node
        return ast.Call(ast.Name("__same__", ast.Load()), [node.left, node.comparators[0]], [])


def _said(code: str, checks: Checks, limits: Limits, token: bytes) -> bytes:
    """What the process wrote until it ended, or had to be."""
    how = tuple(limits)
    payload = marshal.dumps((code, checks.statements, how))
    with _started() as (process, verdict):
        # It reads all of it before anything of the completion runs.
        _tell(process, len(payload).to_bytes(8, "little") + payload)
        said = _heard(verdict, b"", _START_SECONDS, until=1)
        deadline = time.monotonic() + 2 * limits.cpu_seconds
        said = _heard(verdict, said, deadline - time.monotonic(), until=2)
        if said == b"sl":
            _tell(process, token)
            said = _heard(verdict, said, deadline - time.monotonic(), until=_VERDICT_BYTES)
        return said


def _tell(process: subprocess.Popen[bytes], data: bytes) -> None:
    """Nothing happens if it has ended."""
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(data)  # type: ignore[union-attr]  # it is a pipe
        process.stdin.flush()  # type: ignore[union-attr]


@contextlib.contextmanager
def _started() -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A child in a session of its own, and where its verdict is read; killed at the end."""
    with tempfile.TemporaryDirectory(prefix="composer-code-", ignore_cleanup_errors=True) as folder:
        verdict, theirs = os.pipe()
        try:
            try:
                process = subprocess.Popen(  # noqa: S603  # our own program
                    [sys.executable, *_PYTHON, str(_CHILD), str(theirs)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd=folder,
                    env=_ENVIRONMENT,
                    pass_fds=(theirs,),
                    start_new_session=True,
                )
            finally:
                os.close(theirs)
            try:
                yield process, verdict
            finally:
                # Not waited for yet, so that the group's number is still its own.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()  # type: ignore[union-attr]
        finally:
            os.close(verdict)


def _heard(verdict: int, said: bytes, seconds: float, until: int) -> bytes:
    """More of what is said: to so many bytes, to its end, or as long as there is time."""
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(verdict, selectors.EVENT_READ)
        while len(said) < until and selector.select(max(0.0, deadline - time.monotonic())):
            part = os.read(verdict, until - len(said))
            if not part:
                break
            said += part
    return said
