"""The fields of a run, and what each of them means.

Every field carries its unit, the source of its meaning or default, and what it is for; its range
is what `msgspec` checks, written once. `composer_engine.fields` reads them all from here.
"""

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

BUILTIN = "builtin"
DIMENSIONLESS = "-"
OURS = "own choice"
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_FILES = (".jsonl", ".json", ".parquet", ".csv", ".safetensors")


def looks_like_hub_id(path: str) -> bool:
    """Whether a path reads as ``owner/name``; a folder of that name, if there is one, wins."""
    return _HUB_ID.fullmatch(path) is not None and PurePosixPath(path).suffix not in _FILES


def doc(description: str, source: str, unit: str = "", **limits: Any) -> Meta:
    """A field's documentation and limits. A number's ``unit`` may be `DIMENSIONLESS`, not ''."""
    return Meta(description=description, extra={"unit": unit, "source": source}, **limits)


Text = Annotated[str, Meta(max_length=4096)]
Count = Annotated[int, Meta(ge=1, le=10**9)]
Weight = Annotated[float, Meta(ge=0)]
Unit = Annotated[float, Meta(ge=0, le=1)]

_GRPO = "GRPO, arXiv:2402.03300"
_SDPO = "SDPO, arXiv:2601.20802"
_OPSD = "OPSD, arXiv:2601.18734"
_GKD = "GKD, arXiv:2306.13649, eq. 1"
_DPO = "DPO, arXiv:2305.18290"
_LORA = "LoRA, arXiv:2106.09685"
_TRL = "TRL's default"
_TRAINER = "transformers' default"
_TORCH = "PyTorch docs"
_HUB = "Hugging Face Hub docs"
_MODAL = "Modal docs"


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class ModelConfig(_Section, frozen=True, kw_only=True):
    path: Annotated[
        Text,
        doc(
            "folder or hub id (owner/name) of a Hugging Face causal LM, "
            "or 'builtin' for the tiny one",
            _HUB,
        ),
    ] = BUILTIN
    revision: Annotated[
        str, doc("branch, tag or commit of a hub id; '' the default", _HUB, max_length=128)
    ] = ""
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        doc("type of the weights; float16 only under a LoRA adapter, on CUDA", _TORCH),
    ] = "float32"
    device: Annotated[
        Literal["auto", "cpu", "cuda"], doc("auto takes CUDA where there is one", _TORCH)
    ] = "auto"
    lora_rank: Annotated[
        int,
        doc("rank of a LoRA adapter; 0 trains all weights", _LORA, DIMENSIONLESS, ge=0, le=1024),
    ] = 0
    lora_alpha: Annotated[
        float, doc("the adapter is scaled by this over its rank", _LORA, DIMENSIONLESS, gt=0)
    ] = 16.0
    lora_dora: Annotated[
        bool,
        doc("the adapter also learns each weight row's magnitude", "DoRA, arXiv:2402.09353"),
    ] = False
    gradient_checkpointing: Annotated[
        bool, doc("recompute activations: less memory, more time", "arXiv:1604.06174")
    ] = False
    torch_compile: Annotated[
        bool, doc("compile the backbone: minutes at the start, faster steps after", _TORCH)
    ] = False


class DataConfig(_Section, frozen=True, kw_only=True):
    path: Annotated[
        Text,
        doc(
            "JSONL or Parquet file, folder or hub id (owner/name) of a dataset, "
            "or 'builtin' for the toy arithmetic",
            "datasets docs",
        ),
    ] = BUILTIN
    split: Annotated[
        str, doc("split of a dataset", "datasets docs", min_length=1, max_length=128)
    ] = "train"
    rename: Annotated[
        tuple[Annotated[str, Meta(max_length=256, pattern=r"^[^:]+:[^:]+$")], ...],
        doc("columns under other names, as question:prompt", OURS, max_length=16),
    ] = ()
    reward: Annotated[
        Text, doc("reward of rows that name none: a kind, or its JSON; '' is exact", OURS)
    ] = ""
    max_rows: Annotated[int, doc("read at most so many rows; 0 reads all", OURS, "rows", ge=0)] = 0


class RolloutConfig(_Section, frozen=True, kw_only=True):
    prompts_per_step: Annotated[Count, doc("prompts of one step", OURS, "prompts")] = 4
    completions_per_prompt: Annotated[
        int,
        doc("the group that GRPO's advantage compares", f"{_GRPO}; {_TRL}", "completions", ge=2),
    ] = 8
    max_completion_tokens: Annotated[
        Count, doc("a longer completion is cut", f"half of {_TRL}", "tokens")
    ] = 256
    temperature: Annotated[
        float, doc("sampling temperature, and that of every loss", _TRL, DIMENSIONLESS, gt=0)
    ] = 1.0
    updates_per_rollout: Annotated[
        int,
        doc(
            "optimizer steps on one rollout; above 1 is off-policy",
            f"mu of {_GRPO}; {_TRL}",
            "steps",
            ge=1,
            le=64,
        ),
    ] = 1
    backend: Annotated[
        Literal["hf", "vllm"],
        doc("what samples: transformers, or vLLM if installed (CUDA)", "TRL docs"),
    ] = "hf"


class LossConfig(_Section, frozen=True, kw_only=True):
    sdpo_weight: Annotated[
        Weight,
        doc("weight of self-distillation from hints; 0 turns it off", OURS, DIMENSIONLESS),
    ] = 0.1
    replay_weight: Annotated[
        Weight, doc("weight of trace-replay DPO; 0 turns it off", OURS, DIMENSIONLESS)
    ] = 0.05
    dpo_beta: Annotated[
        float,
        doc(
            "DPO's own beta: how far from the reference",
            f"{_DPO}; {_TRL}",
            DIMENSIONLESS,
            gt=0,
        ),
    ] = 0.1
    jsd_beta: Annotated[
        Unit,
        doc(
            "SDPO's divergence: 0 forward KL, 1 reverse KL, between: JSD",
            f"{_GKD}; default: {_SDPO}",
            DIMENSIONLESS,
        ),
    ] = 0.5
    replay_pairs: Annotated[Count, doc("preference pairs replayed a step", OURS, "pairs")] = 8
    clip_epsilon: Annotated[
        float,
        doc(
            "GRPO's clip of the policy ratio to 1 +- this; matters off-policy",
            f"PPO, arXiv:1707.06347; {_TRL}",
            DIMENSIONLESS,
            gt=0,
            lt=1,
        ),
    ] = 0.2
    top_k: Annotated[
        int,
        doc(
            "SDPO over so many likeliest tokens; 0: the whole vocabulary",
            f"{_SDPO} (100)",
            "tokens",
            ge=0,
        ),
    ] = 0
    top_k_of: Annotated[
        Literal["teacher", "student"],
        doc("whose likeliest tokens those are", f"teacher: {_OPSD}; student: {_SDPO}"),
    ] = "teacher"
    top_k_tail: Annotated[
        bool,
        doc("count all other tokens as one more; else both are renormalised", _SDPO),
    ] = False
    teacher: Annotated[
        Literal["live", "frozen", "ema"],
        doc(
            "SDPO's teacher: the model itself, its start, or its moving average",
            f"frozen: {_OPSD}; ema: {_SDPO}",
        ),
    ] = "live"
    teacher_ema_rate: Annotated[
        float,
        doc(
            "how far the 'ema' teacher moves to the model a step",
            _SDPO,
            DIMENSIONLESS,
            gt=0,
            le=1,
        ),
    ] = 0.05
    channel_backward: Annotated[
        Literal["summed", "per_channel"],
        doc("one backward pass for all, or one each: less memory, same gradient", OURS),
    ] = "per_channel"
    alternate_channels: Annotated[
        bool, doc("SDPO in odd steps and replay in even ones: cheaper steps", OURS)
    ] = False
    share_prompts: Annotated[
        bool, doc("compute a replayed pair's prompt once, where that is exact", OURS)
    ] = True


class HintConfig(_Section, frozen=True, kw_only=True):
    sources: Annotated[
        tuple[Literal["feedback", "sibling", "reference"], ...],
        doc(
            "what helps a failed rollout, the first there is: its row's hint, a "
            "successful sibling, the row's answer",
            f"feedback, sibling: {_SDPO}; reference: {_OPSD}",
            max_length=3,
        ),
    ] = ("feedback", "sibling")
    success_reward: Annotated[
        float, doc("a rollout with at least this reward succeeded", _SDPO, "reward")
    ] = 1.0
    feedback_template: Annotated[
        Text,
        doc("the teacher's prompt from a row's hint: {prompt} and {hint}", OURS, min_length=1),
    ] = "{prompt}\n\nFeedback on an earlier attempt: {hint}\n\n"
    sibling_template: Annotated[
        Text,
        doc(
            "the teacher's prompt from a successful sibling: {prompt}, {solution}",
            OURS,
            min_length=1,
        ),
    ] = "{prompt}\n\nA correct solution: {solution}\n\n"
    reference_template: Annotated[
        Text,
        doc("the teacher's prompt from the row's answer: {prompt}, {answer}", OURS, min_length=1),
    ] = "{prompt}\n\nThe correct answer: {answer}\n\n"


class OptimizerConfig(_Section, frozen=True, kw_only=True):
    steps: Annotated[Count, doc("optimizer steps of the run", OURS, "steps")] = 150
    learning_rate: Annotated[
        float, doc("peak learning rate of AdamW", _TRL, DIMENSIONLESS, gt=0, lt=1)
    ] = 1e-6
    warmup_steps: Annotated[int, doc("linear warm-up from 0", _TRAINER, "steps", ge=0)] = 0
    schedule: Annotated[
        Literal["constant", "linear", "cosine"], doc("learning rate after warm-up", OURS)
    ] = "constant"
    weight_decay: Annotated[Weight, doc("AdamW's weight decay", _TRAINER, DIMENSIONLESS)] = 0.0
    max_grad_norm: Annotated[
        float, doc("clip the gradient to this norm", _TRAINER, DIMENSIONLESS, gt=0)
    ] = 1.0
    micro_batches: Annotated[
        Count,
        doc(
            "backward passes that share a step's completions: more need less memory",
            _TRAINER,
            "passes",
        ),
    ] = 1
    seed: Annotated[
        int, doc("seed of sampling and data order", OURS, DIMENSIONLESS, ge=0, lt=2**32)
    ] = 0


class CheckpointConfig(_Section, frozen=True, kw_only=True):
    every_steps: Annotated[
        int, doc("save so often; 0 saves at the end only", OURS, "steps", ge=0)
    ] = 50
    keep: Annotated[Count, doc("the newest that are kept", OURS, "checkpoints")] = 2
    keep_best: Annotated[
        bool, doc("and the one with the highest mean reward since the one before", OURS)
    ] = True


class SafetyConfig(_Section, frozen=True, kw_only=True):
    non_finite_patience: Annotated[
        Count, doc("non-finite steps in a row that end the run", OURS, "steps")
    ] = 3


class ReportConfig(_Section, frozen=True, kw_only=True):
    samples_every_steps: Annotated[
        int, doc("show rollouts so often; 0 shows none", OURS, "steps", ge=0)
    ] = 10
    samples_per_report: Annotated[
        int,
        doc("shown each time: the best, the worst and any others", OURS, "rollouts", ge=1, le=64),
    ] = 1
    channel_norms_every_steps: Annotated[
        int,
        doc(
            "measure each channel's own parameter gradient so often; 0: never",
            OURS,
            "steps",
            ge=0,
        ),
    ] = 0
    sinks: Annotated[
        tuple[Literal["tensorboard", "wandb", "trackio"], ...],
        doc("also log there, where installed", "transformers' integrations", max_length=3),
    ] = ()
    memory_every_seconds: Annotated[
        float, doc("time between memory samples", OURS, "seconds", ge=0.1)
    ] = 1.0


class LocalConfig(_Section, frozen=True, kw_only=True):
    on_disconnect: Annotated[
        Literal["keep", "stop"],
        doc("when the program that launched the run dies: keep training, or stop", OURS),
    ] = "keep"
    stop_grace_seconds: Annotated[
        float, doc("time to save after a stop before SIGTERM", OURS, "seconds", ge=0, le=3600)
    ] = 30.0


ModalName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class ModalConfig(_Section, frozen=True, kw_only=True):
    gpu: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^[A-Za-z0-9!+-]{1,32}(:[0-9]{1,2})?$")], ...],
        doc(
            "H100, or H100:2 for two; several: the first to be had; none: CPU only",
            _MODAL,
            max_length=8,
        ),
    ] = ("L4",)
    cpu_cores: Annotated[
        float,
        doc("physical cores reserved (more may be used, and cost)", _MODAL, "cores", gt=0, le=64),
    ] = 4.0
    memory_mib: Annotated[int, doc("host memory reserved", _MODAL, "MiB", ge=128, le=2**20)] = 16384
    timeout_seconds: Annotated[
        int,
        doc("an attempt longer than this is ended by Modal", _MODAL, "seconds", ge=1, le=86400),
    ] = 3600
    startup_timeout_seconds: Annotated[
        int, doc("time for a container to come up", _MODAL, "seconds", ge=1, le=86400)
    ] = 1200
    retries: Annotated[
        int,
        doc("after one that crashed; each costs anew", _MODAL, "attempts", ge=0, le=10),
    ] = 0
    region: Annotated[
        str,
        doc("such as us or us-west; costs 1.5 to 1.75x", _MODAL, pattern=r"^[a-z0-9-]{0,32}$"),
    ] = ""
    cap_usd: Annotated[
        float, doc("spent so much, the run saves and ends", OURS, "US dollars", gt=0, le=1e6)
    ] = 5.0
    lease_minutes: Annotated[
        float,
        doc(
            "after this it saves and ends, unless extended",
            OURS,
            "minutes",
            gt=0,
            le=60 * 24 * 30,
        ),
    ] = 120.0
    stall_minutes: Annotated[
        float,
        doc("so long without a step: save and end", OURS, "minutes", gt=0, le=60 * 24),
    ] = 15.0
    stop_grace_seconds: Annotated[
        float, doc("time to save after a graceful stop", OURS, "seconds", ge=0, le=3600)
    ] = 60.0
    secrets: Annotated[
        tuple[ModalName, ...], doc("Modal secrets, attached where they exist", _MODAL)
    ] = ()
    environment: Annotated[
        str,
        doc("Modal environment; '' the default", _MODAL, pattern=r"^[A-Za-z0-9._-]{0,63}$"),
    ] = ""
    runs_volume: Annotated[ModalName, doc("volume that keeps runs", _MODAL)] = "composer-runs"
    cache_volume: Annotated[ModalName, doc("volume that keeps the HF cache", _MODAL)] = (
        "composer-cache"
    )


class RunConfig(_Section, frozen=True, kw_only=True):
    """One run, whole. Every field has a default, so a preset names only what it changes."""

    name: Annotated[
        str,
        doc(
            "letters, digits, '.', '_' and '-'; the run's folder begins with it",
            OURS,
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        ),
    ] = "run"
    tags: Annotated[
        tuple[Annotated[str, Meta(max_length=64, pattern="^[^,]*$")], ...],
        doc("your own labels, without commas", OURS),
    ] = ()
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    rollout: RolloutConfig = RolloutConfig()
    loss: LossConfig = LossConfig()
    hints: HintConfig = HintConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    safety: SafetyConfig = SafetyConfig()
    report: ReportConfig = ReportConfig()
    local: LocalConfig = LocalConfig()
    modal: ModalConfig = ModalConfig()
