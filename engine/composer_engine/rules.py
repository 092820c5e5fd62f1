"""Rules that bind several fields of a run: what cannot be, and what is there for nothing."""

from collections import Counter
from collections.abc import Iterator

from composer_engine.fields import FIELDS, ConfigProblem, get_field
from composer_engine.schema import BUILTIN, RunConfig, looks_like_hub_id

_TEMPLATES = {
    "hints.feedback_template": ("prompt", "hint"),
    "hints.sibling_template": ("prompt", "solution"),
    "hints.reference_template": ("prompt", "answer"),
}
_LISTS_OF_ONCE = ("hints.sources", "report.sinks")


def contradictions(config: RunConfig) -> Iterator[ConfigProblem]:
    """Every combination that cannot be run, by the field to change."""
    yield from _step(config)
    yield from _loss(config)
    yield from _hints(config)
    yield from _model(config)
    yield from _data(config)
    for path in _LISTS_OF_ONCE:
        for name in _repeated(get_field(config, path)):
            yield ConfigProblem(path, f"names {name} twice")


def pointless(config: RunConfig) -> list[str]:
    """What is legal and without effect, one line each, with the field's name."""
    loss, model = config.loss, config.model
    found = [
        (loss.teacher != "ema", "loss.teacher_ema_rate", "only an ema teacher moves by it"),
        (not loss.top_k, "loss.top_k_of", "loss.top_k is 0"),
        (not model.lora_rank, "model.lora_alpha", "model.lora_rank is 0"),
        (
            config.rollout.updates_per_rollout == 1,
            "loss.clip_epsilon",
            "with one update a rollout the policy ratio is 1",
        ),
        (
            model.path == BUILTIN,
            "model.torch_compile",
            "compiling takes longer than the builtin model trains",
        ),
    ]
    return [
        f"{path} has no effect: {why}"
        for is_idle, path, why in found
        if is_idle and get_field(config, path) != FIELDS[path].default
    ]


def _step(config: RunConfig) -> Iterator[ConfigProblem]:
    rollout, optimizer = config.rollout, config.optimizer
    completions = rollout.prompts_per_step * rollout.completions_per_prompt
    if completions % optimizer.micro_batches:
        yield ConfigProblem(
            "optimizer.micro_batches",
            f"must divide the {completions} completions of a step "
            f"(prompts_per_step x completions_per_prompt), and {optimizer.micro_batches} does not",
        )
    if optimizer.warmup_steps > optimizer.steps:
        yield ConfigProblem(
            "optimizer.warmup_steps",
            f"{optimizer.warmup_steps} is more than the run's {optimizer.steps} steps",
        )
    if config.report.samples_per_report > completions:
        yield ConfigProblem(
            "report.samples_per_report",
            f"{config.report.samples_per_report} is more than the {completions} completions "
            "of a step",
        )


def _loss(config: RunConfig) -> Iterator[ConfigProblem]:
    loss = config.loss
    if loss.top_k_tail and not loss.top_k:
        yield ConfigProblem("loss.top_k_tail", "there is no tail without loss.top_k: set it, too")
    if loss.alternate_channels:
        for path in ("loss.sdpo_weight", "loss.replay_weight"):
            if not get_field(config, path):
                yield ConfigProblem(
                    "loss.alternate_channels",
                    f"there is nothing to alternate with: {path} is 0; set this to false",
                )


def _hints(config: RunConfig) -> Iterator[ConfigProblem]:
    for path, parts in _TEMPLATES.items():
        missing = [part for part in parts if "{" + part + "}" not in get_field(config, path)]
        if missing:
            yield ConfigProblem(
                path, "must hold " + " and ".join(f"{{{part}}}" for part in missing)
            )
    if config.loss.sdpo_weight and not config.hints.sources:
        yield ConfigProblem(
            "hints.sources", "is empty, so nobody can teach: name one, or set loss.sdpo_weight to 0"
        )


def _model(config: RunConfig) -> Iterator[ConfigProblem]:
    model = config.model
    if model.path == BUILTIN and model.lora_rank:
        yield ConfigProblem("model.lora_rank", "the builtin model is too small for an adapter: 0")
    if model.revision and not looks_like_hub_id(model.path):
        yield ConfigProblem(
            "model.revision", f"only a hub id (owner/name) has one, and {model.path} is none"
        )
    if model.lora_dora and not model.lora_rank:
        yield ConfigProblem("model.lora_dora", "is a kind of adapter: set model.lora_rank, too")
    if model.dtype == "float16" and model.device == "cpu":
        yield ConfigProblem("model.dtype", "float16 trains on CUDA only: bfloat16 or float32")
    elif model.dtype == "float16" and not model.lora_rank:
        # Its gradients need a loss scale, which torch takes off gradients of float32 only.
        yield ConfigProblem(
            "model.dtype",
            "float16 weights cannot be trained themselves: take bfloat16, or set model.lora_rank",
        )
    if config.rollout.backend == "vllm" and model.device == "cpu":
        yield ConfigProblem("rollout.backend", "vllm needs CUDA, and model.device is cpu: hf")


def _data(config: RunConfig) -> Iterator[ConfigProblem]:
    pairs = [text.partition(":") for text in config.data.rename]
    for name in _repeated(old for old, _, _ in pairs):
        yield ConfigProblem("data.rename", f"renames {name} twice")
    for name in _repeated(new for _, _, new in pairs):
        yield ConfigProblem("data.rename", f"makes two columns into {name}")


def _repeated(names: Iterator[str] | tuple[str, ...]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]
