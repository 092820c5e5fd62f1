"""How an area answers: one message in, one out; and refusals in one line."""

import functools
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar

from grpclib import GRPCError, Status
from grpclib.server import Stream

_AreaT = TypeVar("_AreaT")
_RequestT = TypeVar("_RequestT")
_ResponseT = TypeVar("_ResponseT")


async def received(stream: Stream[_RequestT, Any]) -> _RequestT:
    """The one request of a call. Raises INVALID_ARGUMENT when the client ended without sending."""
    request = await stream.recv_message()
    if request is None:
        refuse(Status.INVALID_ARGUMENT, "the request is empty")
    return request


def unary(
    answer: Callable[[_AreaT, _RequestT], Awaitable[_ResponseT]],
) -> Callable[[_AreaT, Stream[_RequestT, _ResponseT]], Awaitable[None]]:
    """Makes an RPC of a method that takes the request and returns the response."""

    @functools.wraps(answer)
    async def call(area: _AreaT, stream: Stream[_RequestT, _ResponseT]) -> None:
        await stream.send_message(await answer(area, await received(stream)))

    return call


def refuse(status: Status, message: str) -> NoReturn:
    """Answers with an error that the client raises under its own name."""
    raise GRPCError(status, message)
