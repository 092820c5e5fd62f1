"""A model of a run's settings, on fake tensors: it has shapes and types, and no numbers."""

from pathlib import Path
from typing import Any

from composer_engine.config import RunConfig
from composer_engine.failures import SetupError
from composer_engine.memory import ModelShape


def described_model(config: RunConfig, settings: Path) -> tuple[Any, Any]:
    """The model, with its adapter if it has one, and the causal LM in it; ready to train.

    It is on the meta device, on which peft can work, as it cannot on fake tensors.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    try:
        described = AutoConfig.from_pretrained(
            settings.parent, local_files_only=True, trust_remote_code=False
        )
        # To fill the weights would take longer than all the rest.
        with torch.device("meta"), no_init_weights():
            causal_lm = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                described, dtype=getattr(torch, config.model.dtype)
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, TypeError) as error:
        said = first_line(error)
        raise SetupError(f"model.path: no model can be made of {settings}: {said}") from error
    causal_lm.tie_weights()
    model: Any = causal_lm
    if config.model.lora_rank:
        from composer_engine.model import with_adapter

        try:
            with torch.device("meta"):
                model = with_adapter(model, config.model, config.optimizer.seed)
        except ValueError as error:
            raise SetupError(f"model.lora_rank: {first_line(error)}") from error
    if config.model.gradient_checkpointing:
        causal_lm.gradient_checkpointing_enable()
        if config.model.lora_rank:  # as TRL does
            causal_lm.enable_input_require_grads()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # as TRL does where it is disabled
    return model.train(), causal_lm


def make_fake(model: Any) -> None:
    """Puts fake tensors on the CPU for those on the meta device, whose values no forward may ask.

    What is tied stays tied.
    """
    import torch

    made: dict[int, Any] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) not in made:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                made[id(parameter)] = torch.nn.Parameter(empty, parameter.requires_grad)
            setattr(module, name, made[id(parameter)])
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def rollout_shape(described: Any) -> ModelShape:
    """What the rollout's closed form needs, of any model that keeps keys and values."""
    try:
        hidden, heads = described.hidden_size, described.num_attention_heads
        return ModelShape(
            hidden=hidden,
            layers=described.num_hidden_layers,
            vocabulary=described.vocab_size,
            heads=heads,
            kv_heads=getattr(described, "num_key_value_heads", None) or heads,
            head_dim=getattr(described, "head_dim", None) or hidden // heads,
            ffn=getattr(described, "intermediate_size", None) or 4 * hidden,
            tied=bool(described.tie_word_embeddings),
            max_tokens=getattr(described, "max_position_embeddings", None) or 0,
        )
    except AttributeError as error:
        raise SetupError(f"model.path: the model's settings have no {error.name}") from None


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
