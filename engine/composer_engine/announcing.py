"""What the step is at, told to a ledger by the step's own functions as they are called."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any


@contextlib.contextmanager
def announcing(ledger: Any) -> Iterator[None]:
    """Has the step tell the ledger what it is at: it calls its own parts by these names.

    The student's nodes are the later ones, so autograd runs them first; the gradient of a
    channel's hidden rows says when that channel's part of the backward pass begins.
    """
    from composer_engine import step

    real: Any = step
    heads = real.student_head, real.replay_head
    losses = real.student_loss, real.replay_loss

    def entering(hidden: Any, channel: str) -> None:
        def begins(_: Any) -> None:
            ledger.channel = channel

        if hidden.requires_grad:
            hidden.register_hook(begins)

    def student(hidden: Any, head: Any, rows: Any, *rest: Any) -> Any:
        entering(hidden, "grpo")
        with ledger.booking(category="logits_head"):
            sums = heads[0](hidden, head, rows, *rest)
        # The teacher's logits, and SDPO's own gradient of the hidden rows.
        shared = 2 * 2 * len(rows.sdpo_rows) * head.weight.numel()
        ledger.flops["grpo"] -= shared
        ledger.flops["sdpo"] += shared
        return sums

    def replay(hidden: Any, *rest: Any) -> Any:
        entering(hidden, "replay")
        with ledger.booking(category="logits_head"):
            return heads[1](hidden, *rest)

    def of_student(*arguments: Any) -> Any:
        with ledger.booking(channel="grpo"):
            return losses[0](*arguments)

    def of_replay(*arguments: Any) -> Any:
        with ledger.booking(channel="replay"):
            return losses[1](*arguments)

    told = {"student_head": student, "replay_head": replay}
    with replaced(real, told | {"student_loss": of_student, "replay_loss": of_replay}):
        yield


@contextlib.contextmanager
def replaced(module: Any, functions: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    before = {name: getattr(module, name) for name in functions}
    for name, function in functions.items():
        setattr(module, name, function)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(module, name, function)
