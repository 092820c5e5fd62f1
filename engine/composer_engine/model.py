"""The model and its tokenizer, from a folder on this machine; nothing here asks the network."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from composer_engine.config import ModelConfig
from composer_engine.failures import SetupError
from composer_engine.model_folder import model_folder
from composer_engine.protocol import Device

# Folders saved by these classes hold the whole tokenizer in tokenizer.json. The Auto class takes
# the model's usual tokenizer instead, which quietly splits text in its own way.
_GENERIC_TOKENIZERS = ("PreTrainedTokenizerFast", "TokenizersBackend")


class Loaded(NamedTuple):
    """A model ready to train. ``model`` is a `peft.PeftModel` when it has an adapter."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    device: torch.device

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The language model itself, under the adapter if there is one."""
        return unwrapped(self.model)

    @property
    def parameters(self) -> int:
        """All parameters, trained or not."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def unwrapped(model: Any) -> PreTrainedModel:
    """The causal LM under a LoRA adapter and under what joins processes, where there are such."""
    if isinstance(model, DistributedDataParallel):
        model = model.module
    inner: PreTrainedModel = model.get_base_model() if hasattr(model, "peft_config") else model
    return inner


def readable_tokens(causal_lm: PreTrainedModel) -> int | None:
    """The longest sequence the model can read, or ``None`` when it does not say."""
    limit = getattr(causal_lm.config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit else None


def embedded_tokens(causal_lm: Any) -> int:
    """How many tokens the model has a row for; a tokenizer may know fewer."""
    return int(causal_lm.get_input_embeddings().weight.shape[0])


def check_top_k(top_k: int, causal_lm: PreTrainedModel) -> None:
    """Raises `SetupError` for more tokens than the model knows."""
    vocabulary = embedded_tokens(causal_lm)
    if top_k > vocabulary:
        raise SetupError(
            f"loss.top_k: {top_k} is more than the model's {vocabulary} tokens",
            "0 takes the whole vocabulary",
        )


def load_model(config: ModelConfig, seed: int, device_index: int = 0) -> Loaded:
    """Load as the config asks. Raises `SetupError` for a folder that holds no usable model.

    An adapter's own weights are float32, whatever the type of those under it. Attention is SDPA
    wherever the model has it: that is transformers' own choice.
    """
    folder = model_folder(config)
    device = _pick_device(config.device, device_index)
    if config.dtype == "float16" and device.type == "cpu":
        raise SetupError(
            "model.dtype: float16 trains on CUDA only, and there is none here",
            "set model.dtype to bfloat16 or float32",
        )
    try:
        tokenizer = _load_tokenizer(folder)
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, config.dtype),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise SetupError(f"model.path: cannot load {folder}: {_first_line(error)}") from error
    if len(tokenizer) > embedded_tokens(model):
        raise SetupError(
            f"model.path: the tokenizer in {folder} has {len(tokenizer)} tokens, "
            f"the model embeds {embedded_tokens(model)}"
        )
    if config.lora_rank:
        model = with_adapter(model, config, seed)
    return Loaded(model.to(device), tokenizer, device)


def non_finite_weights(model: torch.nn.Module) -> list[str]:
    """Names of the parameters that hold NaN or infinity."""
    return [
        name
        for name, parameter in model.named_parameters()
        if not bool(torch.isfinite(parameter).all())
    ]


def describe_device(device: torch.device, count: int = 1) -> Device:
    """The device as the run's first event tells it; one process has one of the ``count``."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        name = torch.cuda.get_device_name(device)
        return Device(kind="cuda", name=name, count=count, total_bytes=total)
    import psutil

    total = psutil.virtual_memory().total
    return Device(kind="cpu", name=_cpu_name(), count=1, total_bytes=total)


def _pick_device(asked: str, index: int) -> torch.device:
    if asked == "cuda" and not torch.cuda.is_available():
        raise SetupError(
            "model.device: cuda is not available here", "set model.device to auto or cpu"
        )
    cuda = torch.cuda.is_available() if asked == "auto" else asked == "cuda"
    return torch.device("cuda", index) if cuda else torch.device("cpu")


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    settings = folder / "tokenizer_config.json"
    saved_as = json.loads(settings.read_bytes()).get("tokenizer_class") if settings.exists() else ""
    generic = saved_as in _GENERIC_TOKENIZERS
    loader: Any = PreTrainedTokenizerFast if generic else AutoTokenizer
    tokenizer: PreTrainedTokenizerBase = loader.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False, padding_side="left"
    )
    if tokenizer.eos_token_id is None:
        raise SetupError(f"model.path: the tokenizer in {folder} has no end-of-text token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # masked wherever it pads
    return tokenizer


def with_adapter(model: Any, config: ModelConfig, seed: int) -> Any:
    """LoRA on every linear layer but the head, which the fused kernels read directly."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    adapter = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]  # peft takes any number
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        use_dora=config.lora_dora,
    )
    return get_peft_model(model, adapter)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "cpu"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
