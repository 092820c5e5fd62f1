"""What a launch will do, in words, before it does it."""

from decimal import Decimal
from pathlib import Path

from composer_engine.config import ModalConfig, RunConfig
from composer_tui.numbers import count, dollars, duration
from composer_tui.pricing.catalog import UnknownGpu
from composer_tui.pricing.rates import Rates, dearest_usd_per_hour
from composer_tui.runs.folder import Target
from composer_tui.screens.app_facts import rates_words
from composer_tui.widgets.cells import Row, Span, cut, wrap
from composer_tui.widgets.glyphs import Glyphs

_LABEL_CELLS = 8


def channel_weights(config: RunConfig) -> list[tuple[str, float]]:
    """The three channels of the loss and their weights; GRPO's is 1."""
    return [
        ("grpo", 1.0),
        ("sdpo", config.loss.sdpo_weight),
        ("replay", config.loss.replay_weight),
    ]


def target_rows(
    config: RunConfig, target: Target, rates: Rates, width: int, glyphs: Glyphs
) -> list[Row]:
    """Where it runs, what that costs and what bounds it; nothing for this machine."""
    if target == "rehearsal":
        said = "the real modal client against this machine, $0"
        first, *rest = wrap(said, max(8, width - _LABEL_CELLS))
        return [_line("where", first), *(_line("", line) for line in rest)]
    if target != "modal":
        return []
    gpus = " or ".join(config.modal.gpu) or "CPU only"
    rows = [_line("where", f"modal, {gpus}"), *cost_rows(config.modal, rates)]
    if config.modal.gpu and config.model.device == "cpu":
        idle = (Span(f"{'':<{_LABEL_CELLS}}"), Span("device cpu leaves GPU idle", "bad"))
        rows.insert(1, idle)
    return [_cut(row, width, glyphs) for row in rows]


def cost_rows(modal: ModalConfig, rates: Rates) -> list[Row]:
    """The dearest it can be, an hour and in all.

    The cap holds over all attempts, and a lease by the clock; a timeout is one attempt's. So the
    timeout alone bounds nothing: a preempted run begins another.
    """
    try:
        rate = dearest_usd_per_hour(rates, modal)
    except UnknownGpu:
        rate = None
    words = rates_words(rates.source, rates.as_of)
    timeout = duration(modal.timeout_seconds)
    lease = duration(modal.lease_minutes * 60)
    if rate is None:
        return [
            (
                Span(f"{'price':<{_LABEL_CELLS}}", "dim"),
                Span("not known: the cap cannot hold", "bad"),
            ),
            _line("bounds", f"{timeout} an attempt, lease {lease}"),
        ]
    most, by = worst_case(modal, rate)
    attempt = rate * modal.timeout_seconds / 3600
    return [
        (Span(f"{'price':<{_LABEL_CELLS}}", "dim"), Span(f"{dollars(rate)}/h", "strong")),
        (Span(f"{'':<{_LABEL_CELLS}}"), Span(words, "dim")),
        (
            Span(f"{'at most':<{_LABEL_CELLS}}", "dim"),
            Span(f"{dollars(most)}, by {by}", "warn"),
        ),
        _line("", f"{timeout} an attempt: {dollars(attempt)}"),
    ]


def price_words(config: RunConfig, target: Target, rates: Rates) -> str:
    """The price and its bound in one line; "" for this machine."""
    if target == "rehearsal":
        return "a rehearsal on this machine: $0"
    if target != "modal":
        return ""
    try:
        rate = dearest_usd_per_hour(rates, config.modal)
    except UnknownGpu:
        rate = None
    if rate is None:
        return "price not known: the cap cannot hold"
    most, by = worst_case(config.modal, rate)
    return f"{dollars(rate)}/h, at most {dollars(most)} by {by}"


def worst_case(modal: ModalConfig, usd_per_hour: Decimal) -> tuple[Decimal, str]:
    """The most that a run can cost, saving included, and which bound it is that ends it."""
    seconds = Decimal(str(modal.lease_minutes)) * 60 + Decimal(str(modal.stop_grace_seconds))
    by_lease = usd_per_hour * seconds / 3600
    cap = Decimal(str(modal.cap_usd))
    if by_lease < cap:
        return by_lease, f"the {duration(modal.lease_minutes * 60)} lease"
    return cap, "its cap"


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
                Span(f"{'loss' if index == 0 else '':<{_LABEL_CELLS}}", "dim"),
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
    return (Span(f"{name:<{_LABEL_CELLS}}", "dim"), Span(words))


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
