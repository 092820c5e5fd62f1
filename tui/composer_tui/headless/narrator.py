"""A run told to a person who has no app open: plain lines, and a bar when stderr is a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Self

from composer_engine import protocol as p
from composer_tui.numbers import duration, number
from composer_tui.runs.state import is_own_stop
from composer_tui.runs.words import (
    TAKEN_AWAY,
    finished_words,
    hint_lines,
    log_lines,
    started_words,
)

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

STEPS_BETWEEN_LINES = 10


class Narrator:
    """Lines on stdout unless ``quiet``, and a progress bar when stderr is a terminal."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._total = 0
        self._started_at: float | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._bar = _make_bar()
            self._bar.start()
            self._task = self._bar.add_task("starting", total=None, reward="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """A line on stdout, above the bar."""
        if self._quiet:
            return
        if self._bar is not None and sys.stdout.isatty():
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, flush=True)

    def warn(self, text: str) -> None:
        """A line on stderr, above the bar; also when quiet."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def tell(self, event: p.Event | p.Unrecognized) -> None:
        """One event, in words, if a person would want to know."""
        self._move_bar(event)
        match event:
            case p.StepCompleted(step=step):
                if step == 1 or step % STEPS_BETWEEN_LINES == 0:
                    self.say(step_line(event, self._total))
            case p.RunFailed():
                for line in failure_lines(event):
                    self.say(line)
            case p.RunFinished() if self._started_at is not None:
                self.say(finished_words(event, duration(event.time - self._started_at)))
            case p.RunStarted():
                self._total, self._started_at = event.total_steps, event.time
                self.say(started_words(event))
            case _:
                for logged in log_lines(event):
                    prefix = "" if logged.level in {"info", "debug"} else f"{logged.level.upper()} "
                    self.say(prefix + logged.text)

    def _move_bar(self, event: p.Event | p.Unrecognized) -> None:
        if self._bar is None or self._task is None:
            return
        match event:
            case p.RunStarted():
                self._bar.update(self._task, description="step", total=event.total_steps)
            case p.PhaseChanged(phase=phase) if self._bar.tasks[0].total is None:
                self._bar.update(self._task, description=phase)
            case p.StepCompleted():
                reward = f"reward {number(event.reward_mean)}"
                self._bar.update(self._task, completed=event.step, reward=reward)


def step_line(event: p.StepCompleted, total: int) -> str:
    """One step as one line; a channel that had nothing to learn from shows a dash.

    ``total`` is 0 where it is not known.
    """
    channels = event.channels
    parts = [
        f"step {event.step}/{total}" if total else f"step {event.step}",
        f"reward {number(event.reward_mean)}",
        f"loss {number(event.loss)}",
        f"grpo {number(channels.grpo)}",
        f"sdpo {number(channels.sdpo)}",
        f"replay {number(channels.replay)}",
        f"{number(event.step_seconds)} s",
    ]
    return "  ".join(parts)


def failure_lines(event: p.RunFailed) -> list[str]:
    """What failed, what to do, and the evidence; less of what was meant to be."""
    if event.kind == "preempted":
        return [f"{TAKEN_AWAY}: {event.message}"]
    if is_own_stop(event):
        return [event.message, *hint_lines(event.hint)]
    lines = [f"FAILED ({event.kind}): {event.message}", *hint_lines(event.hint)]
    return lines + [f"  | {line}" for line in event.detail.splitlines()]


def _make_bar() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[reward]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
