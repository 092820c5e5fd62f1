"""What a run takes, in closed form: bytes of memory, and FLOPs. Pure functions of numbers.

`composer_engine.probe` counts the same from the step's own code, and is the authority: this is
within 15 % of it over the table in ``tests/engine/probe_table.json``, in microseconds and without
torch. The formulas are in the modules below; this is where they are found.
"""

from composer_engine.changes import Change, Relief, changes, mitigations
from composer_engine.estimate import Estimate, estimate, peak
from composer_engine.flops import Flops, rollout_flops
from composer_engine.footprint import Memory, Verdict, fit, overhead_bytes
from composer_engine.model_shape import ModelShape, UnknownArchitecture, shape_of
from composer_engine.moments import generation, joining
from composer_engine.workload import (
    Lengths,
    Work,
    default_lengths,
    teacher_prompt_tokens,
    works_of,
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
    "Work",
    "changes",
    "default_lengths",
    "estimate",
    "fit",
    "generation",
    "joining",
    "mitigations",
    "overhead_bytes",
    "peak",
    "rollout_flops",
    "shape_of",
    "teacher_prompt_tokens",
    "works_of",
]
