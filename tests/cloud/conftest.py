"""What several files here share; each kind of fixture has a file of its own."""

from tests.cloud.apps_fixtures import nap, naps
from tests.cloud.runs_fixtures import modal_plane, store
from tests.cloud.storage_fixtures import shell, stored

__all__ = ["modal_plane", "nap", "naps", "shell", "store", "stored"]
