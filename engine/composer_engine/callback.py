"""The trainer's hooks, as events."""

import math
from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback

from composer_engine.config import RunConfig
from composer_engine.emitter import Emitter
from composer_engine.protocol import (
    AlertRaised,
    Logged,
    PhaseChanged,
    SampleGenerated,
    StepCompleted,
    StepSeconds,
)
from composer_engine.record import Sample, Stepping
from composer_engine.safety import NonFiniteGuard, StopRequest
from composer_engine.sinks import Sinks
from composer_engine.throughput import Throughput

# What StepCompleted has a field for.
_NOT_METRICS = frozenset({"loss", "grad_norm", "learning_rate", "reward", "reward_std"})


class Reporter(TrainerCallback):
    """One `StepCompleted` a step, its alerts and its sample; says when to save and to stop.

    ``step_seconds`` runs from the moment a step's prompts are there to its optimizer's end;
    events and checkpoints are not part of it.
    """

    def __init__(
        self,
        config: RunConfig,
        emitter: Emitter,
        stop: StopRequest,
        guard: NonFiniteGuard,
        trainer: Stepping,
        throughput: Throughput,
        sinks: Sinks | None = None,
    ) -> None:
        self._sinks = sinks
        self._config, self._emitter, self._stop = config, emitter, stop
        self._guard, self._trainer, self._throughput = guard, trainer, throughput
        self._began = self._gradient_ready = self._ended = self._optimizer_done = 0.0
        self._is_due = False  # a checkpoint that waits for the end of its rollout

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._emitter.emit(PhaseChanged(phase="training"))

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = self._trainer.clock()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._gradient_ready = self._trainer.clock()

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self._optimizer_done = self._trainer.clock()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._ended = self._trainer.clock()
        record = self._trainer.record
        self._guard.judge(record.numbers.guilty)
        self._trainer.checkpoints.note(float(record.rewards.mean()), self._guard.in_a_row)
        step, control = self._trainer.state.global_step, self._trainer.control
        every = self._config.checkpoint.every_steps
        is_last = step >= self._config.optimizer.steps
        asked = self._trainer.anywhere(bool(self._stop.reason()))
        # Only here can a run go on exactly; see `composer_engine.checkpoint`.
        is_boundary = step % self._config.rollout.updates_per_rollout == 0
        self._is_due = self._is_due or (every > 0 and step % every == 0)
        ends = is_last or self._guard.exhausted or (asked and is_boundary)
        control.should_training_stop = ends
        control.should_save = ends or (self._is_due and is_boundary)
        self._is_due = self._is_due and not control.should_save

    def on_log(self, *_: Any, logs: dict[str, Any] | None = None, **__: Any) -> None:
        if logs is None or "learning_rate" not in logs:
            return  # the summary at the end of training
        step = self._trainer.state.global_step
        completed = self._step_completed(step, logs)
        self._emitter.emit(completed)
        if self._sinks is not None:
            self._sinks.log(completed)
        self._raise_alerts(step)
        if notice := self._stop.notice():
            self._emitter.emit(Logged(level="warning", message=notice))
        every = self._config.report.samples_every_steps
        if every and step % every == 0:
            self._emit_samples(step)
        # The Trainer keeps every step's log for its checkpoints; the run folder has them already.
        self._trainer.state.log_history.clear()

    def _step_completed(self, step: int, logs: dict[str, Any]) -> StepCompleted:
        record = self._trainer.record
        numbers = record.numbers
        seconds = self._ended - self._began
        trained = {n: v for n, v in logs.items() if n not in _NOT_METRICS} | numbers.metrics
        return StepCompleted(
            step=step,
            loss=numbers.loss,
            channels=numbers.channels,
            reward_mean=float(record.rewards.mean()),
            reward_std=float(record.rewards.std(dim=1).mean()),
            metrics={name: _finite(value) for name, value in trained.items()},
            learning_rate=_finite(logs["learning_rate"]),
            grad_norm=numbers.grad_norm,
            step_seconds=seconds,
            seconds=StepSeconds(
                rollout=record.rollout_seconds,
                loss=self._gradient_ready - self._began - record.rollout_seconds,
                optimizer=self._optimizer_done - self._gradient_ready,
            ),
            tokens_per_second=record.tokens / seconds,
            mfu=self._throughput.mfu(record.tokens, record.rewards.numel(), seconds),
        )

    def _raise_alerts(self, step: int) -> None:
        numbers = self._trainer.record.numbers
        for complaint in self._trainer.record.complaints:
            self._alert("reward", step, complaint)
        if numbers.guilty:
            count, patience = self._guard.in_a_row, self._guard.patience
            message = (
                f"{numbers.guilty} is not finite; the step was skipped and the weights did not "
                f"move ({count} of {patience} in a row)"
            )
            self._alert("non_finite", step, message)
        elif not numbers.is_live:
            message = (
                "no channel had anything to learn from: every group's rewards are equal, "
                "no failed rollout has a hint, and nothing is replayed"
            )
            self._alert("no_signal", step, message)

    def _alert(self, rule: Any, step: int, message: str) -> None:
        self._emitter.emit(AlertRaised(rule=rule, level="warning", step=step, message=message))

    def _emit_samples(self, step: int) -> None:
        count = self._config.report.samples_per_report
        for sample in worth_showing(self._trainer.record.samples, count, step):
            self._emitter.emit(
                SampleGenerated(
                    step=step,
                    prompt=sample.prompt,
                    completion=sample.completion,
                    reward=sample.reward,
                )
            )


def worth_showing(samples: Sequence[Sample], count: int, step: int) -> list[Sample]:
    """A few rollouts of a step: the best, the worst, then any; a single one may be any.

    Which ones are any is another place in the batch each time.
    """
    turn = step % len(samples)
    places = [*range(turn, len(samples)), *range(turn)]
    if count > 1:
        by_reward = sorted(places, key=lambda place: samples[place].reward)
        places = [*dict.fromkeys((by_reward[-1], by_reward[0], *places))]
        first = {samples[place]: place for place in reversed(places)}
        places.sort(key=lambda place: first[samples[place]] != place)  # what repeats comes last
    return [samples[place] for place in places[:count]]


def _finite(value: Any) -> float | None:
    """A trainer's number as the protocol takes it."""
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None
