"""Whether a run fits, and what to change where it does not: pure functions of numbers.

The formulas are the engine's own, since it names the way out of memory by them, too.
`python -m composer_engine.probe` counts the same from the step's code, and is the authority.
"""

from composer_engine.memory import (
    Change,
    Estimate,
    Flops,
    Lengths,
    Memory,
    ModelShape,
    Relief,
    UnknownArchitecture,
    Verdict,
    default_lengths,
    estimate,
    fit,
    mitigations,
    shape_of,
)

__all__ = [
    "Change",
    "Estimate",
    "Flops",
    "Lengths",
    "Memory",
    "ModelShape",
    "Relief",
    "UnknownArchitecture",
    "Verdict",
    "default_lengths",
    "estimate",
    "fit",
    "mitigations",
    "shape_of",
]
