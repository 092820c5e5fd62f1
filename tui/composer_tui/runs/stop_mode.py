"""How a run is ended."""

from typing import Literal

StopMode = Literal["graceful", "now"]
"""graceful: it saves first. now: it does not."""
