"""Other places that a run's numbers go: TensorBoard, W&B, trackio. Off by default.

Each is transformers' own integration, told what `StepCompleted` tells; where it writes,
`composer_engine.sink_places` has said. A sink that fails is left out from then on, with one
alert: it never ends a run.
"""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import msgspec
from transformers import TrainerCallback
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from composer_engine.config import FIELDS, RunConfig, get_field
from composer_engine.emitter import Emitter
from composer_engine.protocol import AlertRaised, StepCompleted
from composer_engine.sink_places import PROJECT


def scalars(event: StepCompleted) -> dict[str, float]:
    """A step's numbers under the names that a sink shows; what is not known is not there."""
    seconds = {"step": event.step_seconds, **msgspec.structs.asdict(event.seconds)}
    named = {
        **event.metrics,
        "loss": event.loss,
        "reward": event.reward_mean,
        "reward_std": event.reward_std,
        "learning_rate": event.learning_rate,
        "grad_norm": event.grad_norm,
        "tokens_per_second": event.tokens_per_second,
        "mfu": event.mfu,
        **{f"channels/{name}": v for name, v in msgspec.structs.asdict(event.channels).items()},
        **{f"seconds/{name}": value for name, value in seconds.items()},
    }
    return {name: value for name, value in named.items() if value is not None}


class Sinks(TrainerCallback):
    """The sinks that a run asked for and that still take what they are told."""

    def __init__(self, config: RunConfig, run_id: str, emitter: Emitter) -> None:
        self._config, self._run_id, self._emitter = config, run_id, emitter
        self._open: dict[str, Any] = {}
        self._trainers: tuple[Any, ...] = ()  # arguments, state and control
        self._model: Any = None
        for name in config.report.sinks:
            with self._guarded(name):
                self._open[name] = _integration(name)

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        args.run_name, args.project = self._run_id, PROJECT
        self._trainers, self._model = (args, state, control), others.get("model")
        for name, sink in [*self._open.items()]:
            with self._guarded(name):
                sink.on_train_begin(*self._trainers, **others)
                _describe(name, sink, self._config)

    def log(self, event: StepCompleted) -> None:
        """Pass a step on."""
        numbers = scalars(event)
        for name, sink in [*self._open.items()]:
            with self._guarded(name, event.step):
                sink.on_log(*self._trainers, model=self._model, logs=numbers)

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        for name, sink in [*self._open.items()]:
            with self._guarded(name):
                sink.on_train_end(args, state, control, **others)
                if name == "wandb":  # its integration leaves that to the interpreter's end
                    importlib.import_module(name).finish()

    @contextlib.contextmanager
    def _guarded(self, name: str, step: int | None = None) -> Iterator[None]:
        """The border to code that talks to networks and disks of its own: whatever it raises."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  # a sink must not end a run
            self._open.pop(name, None)
            said = str(error).strip().partition("\n")[0]
            message = f"{name} gets no more of this run: {type(error).__name__}: {said}"
            self._emitter.emit(
                AlertRaised(rule="sink", level="warning", step=step, message=message)
            )


def _integration(name: str) -> Any:
    (kind,) = get_reporting_integration_callbacks([name])  # type: ignore[no-untyped-call]
    return kind()


def _describe(name: str, sink: Any, config: RunConfig) -> None:
    """The run's own configuration, beside TRL's arguments and the model's."""
    fields = {path: get_field(config, path) for path in FIELDS}
    if name == "tensorboard":
        rows = [f"    {path} = {value!r}" for path, value in fields.items()]
        sink.tb_writer.add_text("config", "\n".join(rows))
    else:
        importlib.import_module(name).config.update({"composer": fields}, allow_val_change=True)
