"""Bytes that forwards and backwards hold beside the weights, in closed form."""

from composer_engine.model_shape import ModelShape
from composer_engine.workload import FLOAT32_BYTES, Kind, Sequences


def saved(shape: ModelShape, kind: Kind, sequences: Sequences) -> int:
    """Bytes that a forward leaves behind for its backward."""
    tokens, hidden = sequences.tokens, shape.hidden * kind.size
    if kind.recomputes:
        layers = shape.layers * tokens * hidden
    else:
        layers = shape.layers * tokens * _layer_bytes(shape, kind, sequences)
    mask = sequences.rows * sequences.width**2 * kind.size if sequences.is_masked else 0
    return layers + mask + tokens * _norm_bytes(shape, kind) + sequences.scored * hidden


def _layer_bytes(shape: ModelShape, kind: Kind, sequences: Sequences) -> int:
    """That one token leaves behind in one layer, under SDPA."""
    h, f, q = shape.hidden, shape.ffn, shape.query
    size, key = kind.size, q if sequences.is_masked else shape.key
    attention = size * (2 * q + 2 * key) + FLOAT32_BYTES * shape.heads
    norms = 2 * _norm_bytes(shape, kind)
    if shape.qk_norm:  # what they give is turned by its position, and not kept
        norms += (q + shape.key) * (FLOAT32_BYTES + (0 if kind.rank else size))
    if not kind.rank:
        return norms + attention + size * 4 * f
    adapters = 7 * FLOAT32_BYTES * kind.rank
    if size < FLOAT32_BYTES:  # each adapter keeps its input in its own type
        adapters += FLOAT32_BYTES * (5 * h + q + f) - size * f
    if kind.dora:  # each layer's own result and the adapter's, to learn by how much to scale them
        adapters += (FLOAT32_BYTES + size) * (q + 2 * shape.key + h + 2 * f + h)
    return norms + attention + size * 4 * f + adapters


def _norm_bytes(shape: ModelShape, kind: Kind) -> int:
    """That one token leaves behind in a norm: its input in float32, normalised, and scaled."""
    if kind.rank:  # its scale is not trained
        return shape.hidden * (FLOAT32_BYTES if kind.size < FLOAT32_BYTES else 2 * FLOAT32_BYTES)
    return shape.hidden * (FLOAT32_BYTES + 2 * kind.size)


def going_back(shape: ModelShape, kind: Kind, sequences: Sequences) -> int:
    """Bytes that the backward of one layer needs for itself, with the layer made anew if it is."""
    tokens = sequences.tokens
    own = tokens * (kind.size * 2 * shape.ffn + FLOAT32_BYTES * 2 * shape.hidden)
    if kind.recomputes:
        own += tokens * _layer_bytes(shape, kind, sequences)
    if kind.dora:  # peft multiplies the adapter out, with an identity matrix, to take its norm
        own += FLOAT32_BYTES * shape.ffn * (shape.ffn + 4 * shape.hidden)
    return own


def reading(shape: ModelShape, kind: Kind, sequences: Sequences) -> int:
    """Bytes of a forward that nothing is kept of."""
    return sequences.tokens * (kind.size * (3 * shape.ffn + 2 * shape.hidden) + 4 * shape.hidden)


def head_gradients(shape: ModelShape, kind: Kind, sequences: Sequences) -> int:
    """Bytes that the head keeps until its backward."""
    d_weight = 0 if kind.rank else shape.head * kind.size
    return d_weight + sequences.scored * shape.hidden * FLOAT32_BYTES
