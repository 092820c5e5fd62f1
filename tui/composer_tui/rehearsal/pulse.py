"""Waiting for something to change, with a limit."""

import asyncio


class Pulse:
    """Wakes whoever waits. A beat that nobody waits for is lost, so look before you wait."""

    def __init__(self) -> None:
        self._next: asyncio.Future[None] | None = None

    def beat(self) -> None:
        """Something has changed."""
        if self._next is not None:
            if not self._next.done():
                self._next.set_result(None)
            self._next = None

    async def wait(self, timeout_seconds: float) -> None:
        """Returns at the next beat, or after so many seconds."""
        if timeout_seconds <= 0:
            return
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        await asyncio.wait((self._next,), timeout=timeout_seconds)
