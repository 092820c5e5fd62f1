"""Programs that use Modal's library, each in a process of its own, for one import of it.

A server imports the library and does nothing else with it; each program is forked from it, and
then goes as it goes under ``python program.py`` or ``python -m modal``, to the interpreter's end.
"""

import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any


def run(
    arguments: Sequence[str], environ: Mapping[str, str], cwd: Path, seconds: float
) -> "subprocess.CompletedProcess[str]":
    """``python`` with these arguments: a program's path, or ``-m`` and a module, and theirs.

    Raises subprocess.TimeoutExpired; by then it is ended.
    """
    order = {"arguments": [*arguments], "environ": {**environ}, "cwd": str(cwd), "seconds": seconds}
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        socket.socket(socket.AF_UNIX) as asked,
    ):
        asked.connect(_server())
        socket.send_fds(asked, [b"."], [out.fileno(), err.fileno()])
        asked.sendall(json.dumps(order).encode())
        asked.shutdown(socket.SHUT_WR)
        answer = asked.makefile().read()
        if not answer:
            raise subprocess.TimeoutExpired([*arguments], seconds)
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode())
    return subprocess.CompletedProcess([*arguments], int(answer), *said)


@cache
def _server() -> str:
    """Where it listens; it ends with this process."""
    path = str(Path(tempfile.mkdtemp(prefix="warm-")) / "s")
    server = subprocess.Popen(
        [sys.executable, __file__, path],
        env={**os.environ, "COLUMNS": "200"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    atexit.register(server.stdin.close)
    assert server.stdout.readline() == b"ready\n"
    return path


def _serve(path: str) -> dict[str, Any]:
    """In the server this does not return; in a program's process it returns what was asked."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while True:
            ready, _, _ = select.select([listener.fileno(), 0], [], [])
            if listener.fileno() not in ready:
                Path(path).unlink()
                Path(path).parent.rmdir()
                os._exit(0)
            asked, _ = listener.accept()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if os.fork() == 0:
                listener.close()
                return _begin(asked)
            asked.close()


def _begin(asked: socket.socket) -> dict[str, Any]:
    """Forks the program; whoever forked it waits for its end, and tells it."""
    _, files, _, _ = socket.recv_fds(asked, 1, 2)
    order: dict[str, Any] = json.loads(asked.makefile().read())
    program = os.fork()
    if program != 0:
        signal.signal(signal.SIGALRM, lambda *_: os.kill(program, signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, order["seconds"])
        status = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
        if signal.getitimer(signal.ITIMER_REAL)[0] > 0:
            asked.sendall(str(status).encode())
        os._exit(0)
    asked.close()
    null = os.open(os.devnull, os.O_RDONLY)
    for number, file in enumerate([null, *files]):
        os.dup2(file, number)
        os.close(file)
    return order


def _become(order: dict[str, Any]) -> None:
    os.environ.clear()
    os.environ.update(order["environ"])
    os.chdir(order["cwd"])
    first, *rest = order["arguments"]
    if first == "-m":
        sys.path[0], sys.argv = order["cwd"], rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0], sys.argv = str(Path(first).parent), order["arguments"]
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    import modal.cli.entry_point  # noqa: F401

    gc.freeze()
    _become(_serve(sys.argv[1]))
