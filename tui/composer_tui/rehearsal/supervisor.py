"""One container's guardian: a small process that starts it, watches it and leaves nothing of it.

Speaks with the control plane by file descriptors: standard input brings one line of JSON (what to
run) and then the words ``interrupt`` and ``kill``; the descriptors named as arguments are the
container's output, the container's errors and, for one line of JSON at the end, how it ended. When
standard input ends, the control plane is gone, and so is then the container with everything it
started, whatever sessions and groups it has made.

Imports nothing but the standard library and `sandbox`, to be small: there is one per container.
"""

import contextlib
import json
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from composer_tui.rehearsal.sandbox import (
    Bind,
    adopt_orphans,
    die_with_parent,
    isolate,
    link,
    unlink,
)

_CONTROL = 0
_READ_BYTES = 65536


def main() -> None:
    """Arguments: the descriptors of the output, the errors and the status."""
    output, errors, status = (int(argument) for argument in sys.argv[1:4])
    adopt_orphans()
    reader, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the control plane decides
    control = _Control()
    order = control.read_order()
    links: list[str] = []
    report: dict[str, Any]
    try:
        if not order["isolated"]:
            links = link([Bind(*bind) for bind in order["binds"]])
        child, complaint = _start(order, output, errors)
        os.close(output)
        os.close(errors)
        report = {"status": _watch(child, control, reader), "complaint": complaint}
    except OSError as error:
        report = {"status": None, "complaint": error.strerror or str(error)}
    finally:
        unlink(links)
    with contextlib.suppress(BrokenPipeError):
        os.write(status, json.dumps(report).encode() + b"\n")
    os._exit(0)


class _Control:
    """What the control plane says, line by line."""

    def __init__(self) -> None:
        self._rest = b""
        self.has_ended = False

    def read_order(self) -> dict[str, Any]:
        """The first line. Ends this process where it does not come whole."""
        while b"\n" not in self._rest:
            if not self._read():
                os._exit(0)
        line, _, self._rest = self._rest.partition(b"\n")
        order: dict[str, Any] = json.loads(line)
        return order

    def words(self) -> list[bytes]:
        """What came since. Call it when there is something to read."""
        self.has_ended = not self._read()
        *words, self._rest = self._rest.split(b"\n")
        return words

    def _read(self) -> bool:
        data = os.read(_CONTROL, _READ_BYTES)
        self._rest += data
        return bool(data)


def _start(order: dict[str, Any], output: int, errors: int) -> tuple[int, str]:
    """Answers the container's process id, and what went wrong before its program ran."""
    complaint_end, complain = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(complaint_end)
        _become(order, output, errors, complain, parent)
    os.close(complain)
    with os.fdopen(complaint_end, "rb") as file:
        complaint = file.read()  # ends at the exec
    return child, complaint.decode(errors="replace")


def _become(
    order: dict[str, Any], output: int, errors: int, complain: int, parent: int
) -> NoReturn:
    """Turns this process into the container. Never returns."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.setsid()
        if order["isolated"]:
            isolate(order["scaffold"], [Bind(*bind) for bind in order["binds"]])
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(output, 1)
        os.dup2(errors, 2)
        os.closerange(3, complain)
        os.closerange(complain + 1, max(complain + 1, 256))
        os.chdir(order["cwd"])
        die_with_parent(parent, signal.SIGKILL)
        os.execve(order["argv"][0], order["argv"], order["env"])  # noqa: S606  # no shell is wanted
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        os.write(complain, f"{error.strerror}{where}".encode())
    finally:
        os._exit(126)


def _watch(child: int, control: _Control, reader: int) -> int:
    """Until the container's first process is gone; then ends whatever else there is of it."""
    waited: int | None = None
    while waited is None:
        ready, _, _ = select.select([_CONTROL, reader], [], [])
        if reader in ready:
            os.read(reader, _READ_BYTES)
        if _CONTROL in ready:
            for word in control.words():
                if word == b"interrupt":
                    os.kill(child, signal.SIGINT)
                elif word == b"kill":
                    os.kill(child, signal.SIGKILL)
            if control.has_ended:
                os.kill(child, signal.SIGKILL)
        waited = _reap(child)
    _end_descendants()
    return waited


def _reap(child: int) -> int | None:
    """Collects the dead; the child's exit status (negative: its signal) once it is among them."""
    status = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, waited = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == child:
                status = os.waitstatus_to_exitcode(waited)
    return status


def _end_descendants() -> None:
    """Kills until there is nobody left. Orphans come to this process, so none is missed."""
    try:
        while True:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):  # somebody lives
                for pid in _descendants(os.getpid()):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                os.waitpid(-1, 0)
    except ChildProcessError:
        return


def _descendants(pid: int) -> list[int]:
    found = []
    for child in _children(pid):
        found += [child, *_descendants(child)]
    return found


def _children(pid: int) -> list[int]:
    """By the parent each process names: not every kernel lists a task's children."""
    children = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = (entry / "stat").read_bytes().rpartition(b")")[2].split()[1]
                if int(parent) == pid:
                    children.append(int(entry.name))
    return children


if __name__ == "__main__":
    main()
