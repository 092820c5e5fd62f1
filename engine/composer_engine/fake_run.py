"""One step of a run on fake tensors: what it holds, and what it computes."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from composer_engine.announcing import announcing, replaced
from composer_engine.config import RunConfig
from composer_engine.failures import SetupError
from composer_engine.fake_model import described_model, first_line, make_fake, rollout_shape
from composer_engine.memory import Lengths, ModelShape, Work, teacher_prompt_tokens
from composer_engine.probe_plans import plans


class Counted(NamedTuple):
    """One kind of step: what is held at its peak, and the FLOPs of one micro batch."""

    held: Counter[str]
    flops: Counter[str]


class FakeRun:
    """A model of a run on fake tensors, with its optimizer in the middle of training."""

    def __init__(self, config: RunConfig, lengths: Lengths, settings: Path) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode

        from composer_engine.ledger import Ledger

        self.config, self.ledger = config, Ledger("activations", "grpo")
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.model, self.causal_lm = described_model(config, settings)
        with self.fake:
            make_fake(self.model)
            self.teacher = self._teacher()
            self.optimizer = self._optimizer()
        self.shape = rollout_shape(self.causal_lm.config.get_text_config())
        self.lengths = _readable(lengths, self.shape)
        self.parameters = sum(p.numel() for p in self.model.parameters())

    @property
    def _trained(self) -> list[Any]:
        return [p for p in self.model.parameters() if p.requires_grad]

    @property
    def trained(self) -> int:
        """Parameters."""
        return sum(p.numel() for p in self._trained)

    @property
    def trained_bytes(self) -> int:
        return sum(p.nbytes for p in self._trained)

    def step(self, work: Work) -> Counted:
        """One micro batch and the optimizer's step.

        Where there are several, it is not the first: the gradients of those before it are held.
        """
        import torch
        from torch.utils._pytree import tree_map_only

        from composer_engine.step_plans import step_options

        student, replay = plans(self.config, self.lengths, work, self.causal_lm)
        options, ledger = step_options(self.config), self.ledger
        with self.fake, self._on_its_device():
            student, replay = tree_map_only(torch.Tensor, self.fake.from_tensor, (student, replay))
            if self.config.optimizer.micro_batches > 1:
                self._hold_gradients()
            ledger.begin()
            with ledger, announcing(ledger), _asking_no_values():
                from composer_engine.step import backward

                backward(self.causal_lm, student, replay, options, self._booked_teacher)
                del student, replay
                self.optimizer.step()
            flops = Counter(ledger.flops)
            self.optimizer.zero_grad(set_to_none=True)
        return Counted(ledger.peak(), flops)

    def _teacher(self) -> Any:
        """SDPO's own weights, where it has some."""
        loss = self.config.loss
        if loss.teacher == "live" or not loss.sdpo_weight:
            from composer_engine.step import live_teacher

            return live_teacher
        from composer_engine.teacher import Teacher

        with self.ledger, self.ledger.booking(category="teacher"):
            return Teacher(loss.teacher, loss.teacher_ema_rate, self.model)

    def _booked_teacher(self, causal_lm: Any, batch: Any) -> Any:
        with self.ledger.booking(category="teacher", channel="sdpo"):
            return self.teacher(causal_lm, batch)

    def _optimizer(self) -> Any:
        """As the engine's, after a first step: its state is there, and no gradient is."""
        import torch

        on_cuda = self.config.model.device != "cpu"
        self.ledger.own([*self.model.parameters(), *self.model.buffers()], "weights")
        optimizer = torch.optim.AdamW(self._trained, foreach=False, fused=on_cuda or None)
        for parameter in self._trained:
            parameter.register_post_accumulate_grad_hook(self._own_gradient)
        with self.ledger:
            self._hold_gradients()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        state = optimizer.state.values()
        self.ledger.own((t for one in state for t in one.values()), "optimizer")
        return optimizer

    def _on_its_device(self) -> contextlib.AbstractContextManager[None]:
        """Fake tensors are on the CPU, and so can be what they stand for on CUDA."""
        from composer_engine import tiles

        if self.config.model.device == "cpu":
            return contextlib.nullcontext()
        return replaced(tiles, {"sums_float32": lambda _: True})

    def _own_gradient(self, parameter: Any) -> None:
        self.ledger.own([parameter.grad], "gradients")

    def _hold_gradients(self) -> None:
        import torch

        for parameter in self._trained:
            parameter.grad = torch.empty_like(parameter)
            self._own_gradient(parameter)


def _readable(lengths: Lengths, shape: ModelShape) -> Lengths:
    teacher_prompt = teacher_prompt_tokens(lengths, shape.max_tokens)
    return msgspec.structs.replace(lengths, teacher_prompt=teacher_prompt)


@contextlib.contextmanager
def _asking_no_values() -> Iterator[None]:
    """Raises `SetupError` for a model whose code goes by what its tensors hold."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        raise SetupError(
            f"model.path: a step of this model cannot be counted: {first_line(error)}"
        ) from error
