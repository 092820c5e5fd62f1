"""What a launch will do, in words, before it does it."""

from pathlib import Path

from composer_engine.config import RunConfig
from composer_tui.numbers import count
from composer_tui.widgets.cells import Row, Span, cut, wrap
from composer_tui.widgets.glyphs import Glyphs


def channel_weights(config: RunConfig) -> list[tuple[str, float]]:
    """The three channels of the loss and their weights; GRPO's is 1."""
    return [
        ("grpo", 1.0),
        ("sdpo", config.loss.sdpo_weight),
        ("replay", config.loss.replay_weight),
    ]


def plan_rows(config: RunConfig, runs_root: Path, width: int, glyphs: Glyphs) -> list[Row]:
    """What the run does, whose weights it trains, what it leaves behind."""
    rollout, optimizer = config.rollout, config.optimizer
    completions = rollout.prompts_per_step * rollout.completions_per_prompt
    tokens = completions * rollout.max_completion_tokens
    rows: list[Row] = [
        _line("steps", f"{count(optimizer.steps)}, learning rate {optimizer.learning_rate:g}"),
        _line(
            "a step",
            f"{count(completions)} completions: {rollout.prompts_per_step} prompts"
            f" of {rollout.completions_per_prompt}",
        ),
        _line("", f"at most {count(tokens)} new tokens"),
    ]
    for index, (name, weight) in enumerate(channel_weights(config)):
        live = weight > 0
        words = "always on" if name == "grpo" else f"weight {weight:g}" if live else "off"
        rows.append(
            (
                Span(f"{'loss' if index == 0 else '':<8}", "dim"),
                Span(f"{glyphs.live if live else glyphs.dot} ", "good" if live else "axis"),
                Span(f"{name:<7}", "text" if live else "dim"),
                Span(words, "dim"),
            )
        )
    kind = f"LoRA rank {config.model.lora_rank}" if config.model.lora_rank else "all weights"
    where = {"auto": "CUDA if there is one", "cpu": "the CPU", "cuda": "CUDA"}[config.model.device]
    saves = config.checkpoint.every_steps
    every = f"every {saves} steps and at the end" if saves else "at the end"
    rows += [
        _line("model", f"{config.model.path}, {kind}"),
        _line("", f"{config.model.dtype} on {where}"),
        _line("saves", f"{every}, keeps {config.checkpoint.keep}"),
        _line("folder", _short_path(runs_root / f"{config.name}-DATE")),
    ]
    return [_cut(row, width, glyphs) for row in rows]


def _line(name: str, words: str) -> Row:
    return (Span(f"{name:<8}", "dim"), Span(words))


def _cut(row: Row, width: int, glyphs: Glyphs) -> Row:
    *lead, last = row
    room = width - sum(len(span.text) for span in lead)
    return (*lead, Span(cut(last.text, max(0, room), glyphs.ellipsis), last.style))


def _short_path(path: Path) -> str:
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def problem_rows(errors: int, changes: int, preset: str, glyphs: Glyphs) -> list[Row]:
    """Whether it can be launched, and how far it is from its preset."""
    if errors:
        words = "1 field needs" if errors == 1 else f"{errors} fields need"
        first: Row = (Span(f"{glyphs.failed} ", "bad"), Span(f"{words} another value", "bad"))
    else:
        first = (Span(f"{glyphs.done} ready to launch", "good"),)
    if not changes:
        return [first, (Span(f"  as preset {preset}", "dim"),)]
    words = "1 change" if changes == 1 else f"{changes} changes"
    return [
        first,
        (Span(f"{glyphs.changed} {words}", "accent"), Span(f" to preset {preset}", "dim")),
    ]


def wrapped(text: str, width: int, style: str = "text") -> list[Row]:
    """Text as rows."""
    return [(Span(line, style),) for line in wrap(text, max(1, width))]
