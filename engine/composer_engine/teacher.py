"""SDPO's teacher: the model as it is, as it was at the start, or its moving average.

Only weights that are trained are ever kept twice. An adapter's start is the model without it.
"""

from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch.func import functional_call
from transformers import TrainerCallback

from composer_engine.heads import Taught
from composer_engine.model import unwrapped
from composer_engine.plan import Batch
from composer_engine.step import live_teacher, rows_of
from composer_engine.tiles import Head, head_of

TeacherKind = Literal["live", "frozen", "ema"]


class KeptTeacher:
    """Weights of the teacher's own for every trained weight of the student.

    A ``rate`` of 0 keeps them as they were; else each `follow` moves them by that part of the way
    to the student's. The average is float32, in which small moves are not rounded away, and is
    read in the student's type.
    """

    def __init__(self, causal_lm: Any, rate: float) -> None:
        self._rate = rate
        self._students = {n: p for n, p in causal_lm.named_parameters() if p.requires_grad}
        self._average = {
            name: parameter.detach().clone().to(torch.float32 if rate else parameter.dtype)
            for name, parameter in self._students.items()
        }
        self._read = self._as_read()

    @torch.no_grad()
    def __call__(self, causal_lm: Any, batch: Batch) -> Taught:
        """What the teacher makes of the planned rows."""
        by_student = {id(p): self._read[name] for name, p in self._students.items()}
        backbone = causal_lm.base_model
        swapped = {
            name: by_student[id(parameter)]
            for name, parameter in backbone.named_parameters()
            if id(parameter) in by_student
        }
        # A compiled backbone is for the student's own weights.
        with torch.compiler.set_stance("force_eager"):
            output = rows_of(
                lambda inputs: functional_call(backbone, swapped, (), inputs), backbone, batch
            )
        head = head_of(causal_lm)
        weight = by_student.get(id(head.weight), head.weight)
        bias = None if head.bias is None else by_student.get(id(head.bias), head.bias)
        return Taught(output, Head(weight, bias, head.logit_scale, head.softcap))

    @torch.no_grad()
    def follow(self) -> None:
        """One step behind the student."""
        if not self._rate:
            return
        for name, parameter in self._students.items():
            average = self._average[name]
            average.lerp_(parameter.detach().to(average.dtype), self._rate)
            if self._read[name] is not average:
                self._read[name].copy_(average)

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint has to hold. Nothing where the start is what is kept."""
        return dict(self._average) if self._rate else {}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Takes back what `state` gave. Raises `ValueError` for another model's."""
        if state.keys() != (self._average.keys() if self._rate else set()):
            raise ValueError("its teacher is of another model or of another kind")
        for name, tensor in state.items():
            self._average[name].copy_(tensor)
        self._read = self._as_read()

    def _as_read(self) -> dict[str, torch.Tensor]:
        return {
            name: average.to(self._students[name].dtype) for name, average in self._average.items()
        }


class Teacher:
    """The teacher that a configuration asks for. Make it while the weights are the initial ones."""

    def __init__(self, kind: TeacherKind, rate: float, model: Any) -> None:
        """``model`` may have an adapter."""
        self._model = model
        self._without_adapter = kind == "frozen" and hasattr(model, "peft_config")
        self._kept: KeptTeacher | None = None
        if kind == "ema" or (kind == "frozen" and not self._without_adapter):
            self._kept = KeptTeacher(unwrapped(model), rate if kind == "ema" else 0.0)

    def __call__(self, causal_lm: Any, batch: Batch) -> Taught:
        """What the teacher makes of the planned rows; no gradient."""
        if self._kept is not None:
            return self._kept(causal_lm, batch)
        with self._model.disable_adapter() if self._without_adapter else nullcontext():
            return live_teacher(causal_lm, batch)

    def follow(self) -> None:
        """Call it after each optimizer step."""
        if self._kept is not None:
            self._kept.follow()

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint has to hold, by name; empty for all but a moving average."""
        return self._kept.state() if self._kept is not None else {}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Takes back what `state` gave. Raises `ValueError` for another model's."""
        if self._kept is not None:
            self._kept.load(state)
        elif state:
            raise ValueError("it holds a teacher, and loss.teacher asks for none of its own")


class FollowStudent(TrainerCallback):
    """Moves the teacher once the student has moved."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._teacher.follow()
