"""What the interface and its helper process say to each other: one JSON object a line.

Every `Ask` has a number; `Told` may come any number of times for it, `Answer` ends it. No modal.
"""

import msgspec

from composer_tui.cloud.wire import Apps, Problem, StopProgress, StopResult
from composer_tui.runs.stop_mode import StopMode


class _Ask(msgspec.Struct, frozen=True, kw_only=True, tag_field="ask"):
    number: int


class AskApps(_Ask, frozen=True, kw_only=True, tag="apps"):
    """All live apps."""


class AskTend(_Ask, frozen=True, kw_only=True, tag="tend"):
    """See the run in this folder through to its end; answered at once."""

    folder: str
    launch: bool


class AskStop(_Ask, frozen=True, kw_only=True, tag="stop"):
    """End these apps; answered when none of their containers is left, or it gave up."""

    app_ids: tuple[str, ...]
    mode: StopMode
    grace_seconds: float


class AskLease(_Ask, frozen=True, kw_only=True, tag="lease"):
    """Extend a run's lease."""

    app_id: str
    minutes: float


Ask = AskApps | AskTend | AskStop | AskLease


class Told(msgspec.Struct, frozen=True, kw_only=True, tag_field="say", tag="told"):
    """Where a stop is."""

    number: int
    progress: StopProgress


class Answer(msgspec.Struct, frozen=True, kw_only=True, tag_field="say", tag="answer"):
    """The end of an ask: what it asked for, or the problem."""

    number: int
    apps: Apps | None = None
    result: StopResult | None = None
    lease_until: float | None = None
    problem: Problem | None = None


Say = Told | Answer

_encoder = msgspec.json.Encoder()
_asks: msgspec.json.Decoder[Ask] = msgspec.json.Decoder(Ask)
_says: msgspec.json.Decoder[Say] = msgspec.json.Decoder(Say)


def line(message: Ask | Say) -> bytes:
    """A message as one line, newline included."""
    return _encoder.encode(message) + b"\n"


def read_ask(text: bytes) -> Ask:
    """Raises msgspec.DecodeError."""
    return _asks.decode(text)


def read_say(text: bytes) -> Say:
    """Raises msgspec.DecodeError."""
    return _says.decode(text)
