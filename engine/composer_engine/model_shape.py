"""The sizes of a language model that memory and work depend on, from its settings alone.

The model is a stack of pre-norm layers with rotary grouped-query attention and a gated MLP, as
Llama, Mistral, Qwen2 and Qwen3 are, under transformers' SDPA attention.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

_ARCHITECTURES = ("qwen2", "qwen3", "llama", "mistral")
_STATIC_ROPE = ("default", "linear", "llama3", "yarn")


class UnknownArchitecture(ValueError):  # noqa: N818  # says what it is
    """A model of which the closed form knows too little; the message says why."""


class ModelShape(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes that memory and work depend on. ``max_tokens`` of 0: it does not say."""

    hidden: int
    layers: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    tied: bool
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    max_tokens: int = 0
    can_share_prompts: bool = True

    @property
    def query(self) -> int:
        """Width of the queries, and of what attention puts out."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """Width of the keys; the values' is the same."""
        return self.kv_heads * self.head_dim

    @property
    def layer_matrices(self) -> int:
        """Weights of a layer that tokens are multiplied with."""
        return self.hidden * (2 * self.query + 2 * self.key + 3 * self.ffn)

    @property
    def head(self) -> int:
        """Weights of the LM head, which are the embedding's where they are tied."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All of them."""
        biases = (
            self.qkv_bias * (self.query + 2 * self.key)
            + self.output_bias * self.hidden
            + self.mlp_bias * (2 * self.ffn + self.hidden)
        )
        norms = 2 * self.hidden + self.qk_norm * 2 * self.head_dim
        layers = self.layers * (self.layer_matrices + biases + norms)
        return (1 if self.tied else 2) * self.head + layers + self.hidden

    def adapter_parameters(self, rank: int, *, dora: bool = False) -> int:
        """Of a LoRA adapter on every linear layer but the head."""
        h, q, k, f = self.hidden, self.query, self.key, self.ffn
        sides = (h + q) + 2 * (h + k) + (q + h) + 3 * (h + f)
        magnitudes = q + 2 * k + h + 2 * f + h
        return self.layers * (rank * sides + dora * magnitudes)


def shape_of(settings: Mapping[str, Any]) -> ModelShape:
    """From a model's ``config.json``. Raises `UnknownArchitecture`."""
    kind = settings.get("model_type")
    if kind not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise UnknownArchitecture(f"knows {known}, and the model is {kind or 'of no type'}")
    try:
        hidden, heads = int(settings["hidden_size"]), int(settings["num_attention_heads"])
        shape = ModelShape(
            hidden=hidden,
            layers=int(settings["num_hidden_layers"]),
            vocabulary=int(settings["vocab_size"]),
            heads=heads,
            kv_heads=int(settings.get("num_key_value_heads") or heads),
            head_dim=int(settings.get("head_dim") or (128 if kind == "qwen3" else hidden // heads)),
            ffn=int(settings["intermediate_size"]),
            tied=bool(settings.get("tie_word_embeddings", False)),
            qkv_bias=kind == "qwen2" or bool(settings.get("attention_bias")),
            output_bias=kind in ("llama", "qwen3") and bool(settings.get("attention_bias")),
            mlp_bias=kind == "llama" and bool(settings.get("mlp_bias")),
            qk_norm=kind == "qwen3",
            max_tokens=int(settings.get("max_position_embeddings") or 0),
            can_share_prompts=_can_share_prompts(settings),
        )
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UnknownArchitecture(f"the {kind} model's settings are not whole: {error}") from None
    if min(hidden, heads, shape.layers, shape.vocabulary, shape.kv_heads, shape.head_dim) < 1:
        raise UnknownArchitecture(f"the {kind} model's settings have a size below 1")
    return shape


def _can_share_prompts(settings: Mapping[str, Any]) -> bool:
    """As `composer_engine.plan.can_share_prompts`, from what is written alone."""
    rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    window = settings.get("sliding_window") and settings.get("use_sliding_window", True)
    layers = set(settings.get("layer_types") or ["full_attention"])
    return not window and kind in _STATIC_ROPE and layers == {"full_attention"}
