"""Bytes to lines, however they are cut, in bounded memory."""

KEPT_OF_A_LONG_LINE = 4096


class Truncated(bytes):
    """The first `KEPT_OF_A_LONG_LINE` bytes of a line that was too long."""

    __slots__ = ()


class Framer:
    """Cuts a stream of chunks into lines (without their newline); each byte is looked at once.

    A line longer than ``max_line`` bytes comes out as `Truncated`, and is counted in
    ``truncated_lines`` and ``dropped_bytes``; the line after it is whole again. With
    ``overwriting``, an unfinished line forgets what a carriage return has overwritten, so that a
    progress bar never grows.
    """

    def __init__(self, max_line: int = 1 << 20, *, overwriting: bool = False) -> None:
        self.truncated_lines = 0
        self.dropped_bytes = 0
        self._max_line = max_line
        self._kept = min(max_line, KEPT_OF_A_LONG_LINE)
        self._overwriting = overwriting
        self._parts: list[bytes] = []
        self._held = 0
        self._too_long = False

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that ``data`` completes."""
        head, newline, rest = data.rpartition(b"\n")
        if not newline:
            self._hold(data)
            return []
        first, *lines = head.split(b"\n")
        self._hold(first)
        begun = self._take()
        lines = [line if len(line) <= self._max_line else self._cut(line) for line in lines]
        self._hold(rest)
        return [begun, *lines]

    @property
    def partial(self) -> bytes:
        """The line that has begun and not ended."""
        if len(self._parts) > 1:
            self._parts = [b"".join(self._parts)]
        return self._parts[0] if self._parts else b""

    def flush(self) -> bytes | None:
        """The line that has begun and not ended, as if it had; ``None`` when there is none."""
        return self._take() if self._parts or self._too_long else None

    def reset(self) -> None:
        """Forgets the line that has begun."""
        self._parts, self._held, self._too_long = [], 0, False

    def _hold(self, data: bytes) -> None:
        if not data:
            return
        if self._overwriting:
            data = self._overwritten(data)
        if self._too_long:
            self.dropped_bytes += len(data)
            return
        self._parts.append(data)
        self._held += len(data)
        if self._held > self._max_line:
            whole = b"".join(self._parts)
            self._parts = [whole[: self._kept]]
            self.dropped_bytes += len(whole) - len(self._parts[0])
            self._too_long = True

    def _overwritten(self, data: bytes) -> bytes:
        """What of ``data`` still shows; drops what was held when ``data`` overwrites it."""
        start = data.rstrip(b"\r").rfind(b"\r") + 1
        ends_before = bool(self._parts) and self._parts[-1].endswith(b"\r")
        if start or (ends_before and not data.startswith(b"\r")):
            self.reset()
        return data[start:]

    def _take(self) -> bytes:
        line, too_long = self.partial, self._too_long
        self.reset()
        if not too_long:
            return line
        self.truncated_lines += 1
        return Truncated(line)

    def _cut(self, line: bytes) -> Truncated:
        self.truncated_lines += 1
        self.dropped_bytes += len(line) - self._kept
        return Truncated(line[: self._kept])
