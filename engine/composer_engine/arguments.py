"""A run's configuration in TRL's words."""

from pathlib import Path
from typing import Any

import torch
from trl.trainer.grpo_config import GRPOConfig

from composer_engine.config import RunConfig
from composer_engine.failures import SetupError

_VLLM_MEMORY = 0.3  # of the GPU's, for its weights and cache; TRL's default
_SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def grpo_config(
    config: RunConfig, device: torch.device, folder: Path, processes: int = 1
) -> GRPOConfig:
    """TRL's arguments for this run; the trainer saves into ``folder``.

    ``processes`` share each step's completions evenly.

    One generation feeds ``rollout.updates_per_rollout`` optimizer steps. With one the policy ratio
    is 1, and TRL computes no log-probabilities at rollout time. There is no KL term, so no
    reference model.
    """
    rollout, optimizer = config.rollout, config.optimizer
    completions = rollout.prompts_per_step * rollout.completions_per_prompt
    on_cuda = device.type == "cuda"
    return GRPOConfig(
        output_dir=str(folder),
        max_steps=optimizer.steps,
        per_device_train_batch_size=completions // optimizer.micro_batches // processes,
        gradient_accumulation_steps=optimizer.micro_batches,
        steps_per_generation=optimizer.micro_batches,
        num_iterations=rollout.updates_per_rollout,
        num_generations=rollout.completions_per_prompt,
        max_completion_length=rollout.max_completion_tokens,
        temperature=rollout.temperature,
        beta=0.0,
        router_aux_loss_coef=0.0,  # the step is ours, and balances no experts
        learning_rate=optimizer.learning_rate,
        warmup_steps=optimizer.warmup_steps,
        lr_scheduler_type=_SCHEDULES[optimizer.schedule],
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.max_grad_norm,
        optim="adamw_torch_fused" if on_cuda else "adamw_torch",
        seed=optimizer.seed,
        use_cpu=not on_cuda,
        bf16=False,  # the weights' own type is the computation's
        fp16=config.model.dtype == "float16",  # a loss scale, or small gradients would vanish
        gradient_checkpointing=config.model.gradient_checkpointing,
        disable_dropout=True,  # student, teacher and reference must be one model
        logging_steps=1,
        logging_nan_inf_filter=False,  # a step that is not finite is shown, and skipped
        save_strategy="no",  # the callback says when
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=on_cuda,
        push_to_hub=False,
        ddp_find_unused_parameters=False,  # GRPO's forward has them all
        **_vllm(config, device),
    )


def _vllm(config: RunConfig, device: torch.device) -> dict[str, Any]:
    """vLLM in this very process, beside the model. Raises `SetupError` where it cannot be."""
    if config.rollout.backend != "vllm":
        return {}
    if device.type != "cuda":
        raise SetupError(
            "rollout.backend: vllm needs CUDA, and there is none here",
            "set rollout.backend to hf",
        )
    return {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": _VLLM_MEMORY,
        # The loss takes a rollout for the model's own: what differs is rounding.
        "vllm_importance_sampling_correction": False,
    }
