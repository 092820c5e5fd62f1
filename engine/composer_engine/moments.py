"""The moments of a step, and of a rollout, when most may be held; in closed form."""

from collections.abc import Iterator

from composer_engine.activations import going_back, head_gradients, reading, saved
from composer_engine.config import RunConfig
from composer_engine.footprint import Memory, together
from composer_engine.model_shape import ModelShape
from composer_engine.workload import (
    DTYPE_BYTES,
    FLOAT32_BYTES,
    Kind,
    Lengths,
    Sequences,
    StepSequences,
    trained_bytes_of,
)

TILE_ROWS = 128  # of the LM head, as `composer_engine.plan` cuts it
# Tensors of the head's that are as large as a tile's logits, float32, at once.
_TILES_AT_ONCE = 4
_GRPO_TILES = 2
_SDPO_TILES = 5
_REPLAY_TILES = 2


def generation(
    shape: ModelShape, config: RunConfig, lengths: Lengths, processes: int = 1
) -> Memory:
    """While a rollout is sampled by transformers; weights and optimizer are the caller's to add.

    All completions of the step at once. Keys and values grow by concatenation, one layer at a
    time, so one layer's are there twice. Nothing with vLLM, which takes a share of the GPU.
    """
    size, rollout = DTYPE_BYTES[config.model.dtype], config.rollout
    if rollout.backend == "vllm":
        return Memory()
    sequences = rollout.prompts_per_step * rollout.completions_per_prompt // processes
    cache = 2 * shape.key * size * sequences * (lengths.prompt + lengths.completion)
    prefill = sequences * lengths.prompt * size * (3 * shape.ffn + 4 * shape.hidden)
    # The last token's logits: float32, over the temperature, as probabilities, and in order.
    logits = 4 * FLOAT32_BYTES * sequences * shape.vocabulary
    return Memory(kv_cache=cache * (shape.layers + 1), activations=prefill, logits_head=logits)


def joining(trained_bytes: int, processes: int) -> Memory:
    """The buckets in which several processes add up their gradients; there from the beginning."""
    return Memory(gradients=trained_bytes if processes > 1 else 0)


def kept(shape: ModelShape, config: RunConfig) -> Memory:
    """Held through the whole run: weights, AdamW's two moments, and a teacher's own weights."""
    kind, loss = Kind.of(config), config.loss
    trained = trained_bytes_of(shape, config)
    weights = shape.parameters * kind.size + (trained if kind.rank else 0)
    teacher = 0
    if loss.sdpo_weight and loss.teacher == "frozen" and not kind.rank:
        teacher = trained
    elif loss.sdpo_weight and loss.teacher == "ema":
        is_half = not kind.rank and kind.size < FLOAT32_BYTES
        teacher = 3 * trained if is_half else trained  # a float32 average, and its half-size copy
    return Memory(weights=weights, optimizer=2 * trained, teacher=teacher)


def moments(shape: ModelShape, config: RunConfig, step: StepSequences) -> Iterator[Memory]:
    """The moments of a micro batch when most may be held."""
    kind, held = Kind.of(config), kept(shape, config)
    gradients = Memory(gradients=trained_bytes_of(shape, config))
    yield together(held, gradients, _optimizing(shape, config))
    if config.optimizer.micro_batches > 1:
        held = together(held, gradients)  # of the micro batches before
    if step.replay is not None:
        replay = step.replay
        yield from _channel(shape, kind, held, gradients, replay, _REPLAY_TILES)
        if kind.summed:
            held = together(
                held,
                Memory(
                    activations=saved(shape, kind, replay),
                    logits_head=head_gradients(shape, kind, replay),
                ),
            )
        elif not held.gradients:
            held = together(held, gradients)
    tiles = _GRPO_TILES
    if step.teacher is not None:
        taught = step.teacher
        yield together(held, Memory(teacher=reading(shape, kind, taught)))
        held = together(held, Memory(teacher=taught.scored * shape.hidden * kind.size))
        tiles = _SDPO_TILES
    yield from _channel(shape, kind, held, gradients, step.student, tiles)


def _channel(
    shape: ModelShape,
    kind: Kind,
    held: Memory,
    gradients: Memory,
    sequences: Sequences,
    tiles: int,
) -> Iterator[Memory]:
    """One forward and backward: the head, and where the backward pass begins and ends."""
    forward = Memory(activations=saved(shape, kind, sequences))
    tile = min(TILE_ROWS, sequences.scored) * shape.vocabulary * FLOAT32_BYTES
    kept = head_gradients(shape, kind, sequences)
    d_hidden = sequences.scored * shape.hidden * FLOAT32_BYTES
    d_weight = 0 if kind.rank else shape.head * FLOAT32_BYTES
    waiting = 0  # tiles in half precision that go into the weight's gradient at once
    if not kind.rank and kind.size < FLOAT32_BYTES:
        rows = min(_TILES_AT_ONCE * TILE_ROWS, sequences.scored)
        waiting = rows * shape.vocabulary * kind.size
    yield together(held, forward, Memory(logits_head=tiles * tile + waiting + d_weight + d_hidden))
    if kind.size < FLOAT32_BYTES:
        yield together(held, forward, Memory(logits_head=d_weight + kept))
    own, weight = going_back(shape, kind, sequences), kept - d_hidden
    yield together(held, forward, Memory(activations=own, logits_head=weight))
    if kind.rank:
        return
    # The first layer's, and then the embedding's gradient, which is added to the head's if tied.
    temporary = shape.head * kind.size
    ended = held if held.gradients else together(held, gradients)
    if not held.gradients:
        temporary = 0 if not shape.tied else temporary
        yield together(ended, Memory(activations=own + forward.activations // shape.layers))
    elif shape.tied:
        temporary *= 2
    yield together(ended, Memory(activations=temporary, logits_head=weight if shape.tied else 0))


def _optimizing(shape: ModelShape, config: RunConfig) -> Memory:
    """The optimizer's own: nothing where it is fused, as on CUDA."""
    if config.model.device != "cpu" or config.model.lora_rank:
        return Memory()
    return Memory(optimizer=2 * shape.head * DTYPE_BYTES[config.model.dtype])
