"""What one container used: the facts of which a bill is made."""

from collections.abc import Mapping
from typing import NamedTuple


class Usage(NamedTuple):
    """One container's life. Times are unix seconds; ``finished_at`` is None while it runs."""

    task_id: str
    app_id: str
    description: str  # of the app
    environment: str
    tags: Mapping[str, str]  # of the app
    started_at: float
    finished_at: float | None
    gpu: str = ""  # as it was asked for: "H100", "A100-80GB"; empty for none
    gpu_count: int = 0
    cpu_cores: float = 0.125
    memory_gib: float = 0.125
