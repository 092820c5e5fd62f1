"""The control plane's end of a container: what it prints, and how it ends."""

import asyncio
import codecs
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

_READ_BYTES = 1 << 18
_PIPE_READS = 4  # more than a pipe holds: what was printed by now, and not what is printed since
_LINE_SECONDS = 0.25  # how long the rest of a line is waited for
_LONGEST_PIECE = 1 << 14  # characters of a line that does not end


class Ending(NamedTuple):
    """How a container ended: an exit status, negative for a signal; None when it never ran."""

    status: int | None
    complaint: str = ""

    def words(self) -> str:
        """For a person, in one line."""
        if self.complaint:
            return f"the container could not be started: {self.complaint}"
        if self.status is not None and self.status < 0:
            return f"Runner terminated by signal {-self.status}"
        return f"Runner failed with exit code: {self.status}"


class Supervised:
    """A container's processes, behind their supervisor.

    ``on_text`` gets whole lines where they come in time, each stream in its own order. ``on_end``
    is called once, after the last text, when no process of the container is left.
    """

    def __init__(
        self,
        order: dict[str, Any],
        on_text: Callable[[int, str], None],
        on_end: Callable[[Ending], None],
    ) -> None:
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._status = b""
        output, errors, status = os.pipe(), os.pipe(), os.pipe()
        theirs = (output[1], errors[1], status[1])
        try:
            self._process = subprocess.Popen(  # noqa: S603  # argv is ours
                [
                    sys.executable,
                    "-m",
                    "composer_tui.rehearsal.supervisor",
                    *(str(end) for end in theirs),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=theirs,
                start_new_session=True,
            )
        except OSError:
            for end in (output[0], errors[0], status[0]):
                os.close(end)
            raise
        finally:
            for end in theirs:
                os.close(end)
        self._streams = (_Text(output[0], 1, on_text), _Text(errors[0], 2, on_text))
        self._status_end = status[0]
        os.set_blocking(self._status_end, False)
        self._loop.add_reader(self._status_end, self._read_status)
        self._say(json.dumps(order))

    def interrupt(self) -> None:
        """SIGINT to the container's first process."""
        self._say("interrupt")

    def kill(self) -> None:
        """SIGKILL to everything of it."""
        self._say("kill")

    def flush(self) -> None:
        """Hands on everything that has been printed so far."""
        for text in self._streams:
            text.read(_PIPE_READS)
            text.flush()

    def _say(self, word: str) -> None:
        stdin = self._process.stdin
        if stdin is None or stdin.closed:
            return
        with contextlib.suppress(BrokenPipeError):  # it has ended: its status is on the way
            stdin.write(word.encode() + b"\n")
            stdin.flush()

    def _read_status(self) -> None:
        try:
            data = os.read(self._status_end, _READ_BYTES)
        except BlockingIOError:
            return
        self._status += data
        if data and not self._status.endswith(b"\n"):
            return
        self._loop.remove_reader(self._status_end)
        os.close(self._status_end)
        for text in self._streams:
            text.close()
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait()
        self._on_end(_ending(self._status))


class _Text:
    """One stream of a container, cut into lines."""

    def __init__(self, descriptor: int, source: int, on_text: Callable[[int, str], None]) -> None:
        self._descriptor = descriptor
        self._source = source
        self._on_text = on_text
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        os.set_blocking(descriptor, False)
        self._loop.add_reader(descriptor, self._read_once)
        self._is_open = True

    def read(self, most: int | None = None) -> None:
        """What there is: all of it, or that of so many reads."""
        count = 0
        while self._is_open and (most is None or count < most) and self._read_once():
            count += 1

    def flush(self) -> None:
        """Hands on a line that has no end yet."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._rest:
            rest, self._rest = self._rest, ""
            self._on_text(self._source, rest)

    def close(self) -> None:
        """Reads to the end, and hands on the last line however it ends."""
        self.read()
        self._rest += self._decoder.decode(b"", final=True)
        self.flush()
        self._stop()

    def _read_once(self) -> bool:
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._stop()
            return False
        *complete, self._rest = (self._rest + self._decoder.decode(data)).split("\n")
        for line in complete:
            self._on_text(self._source, line + "\n")
        if len(self._rest) > _LONGEST_PIECE:
            self.flush()
        elif self._rest and self._timer is None:
            self._timer = self._loop.call_later(_LINE_SECONDS, self.flush)
        elif not self._rest and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return True

    def _stop(self) -> None:
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)


def _ending(line: bytes) -> Ending:
    """What the supervisor reported; a supervisor that was killed itself reports nothing."""
    if not line.endswith(b"\n"):
        return Ending(-9)
    report = json.loads(line)
    return Ending(report["status"], report["complaint"])
