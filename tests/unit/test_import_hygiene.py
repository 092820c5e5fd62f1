"""What each process may import, asked of a real interpreter: `import` walls rot silently."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "trl", "numpy", "modal", "pyarrow", "datasets", "peft")


def modules_after(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import composer_tui.__main__", (*HEAVY, "textual", "yaml", "rich")),
        ("import composer_tui.cli", (*HEAVY, "textual", "yaml")),
        ("import composer_tui.app", (*HEAVY, "yaml", "click", "asyncio.windows_events")),
        ("import composer_tui.runs.feed, composer_tui.runners.local", (*HEAVY, "textual", "rich")),
        (
            "import composer_tui.cloud.kill, composer_tui.cloud.apps, composer_tui.cloud.tend",
            (*HEAVY, "grpclib", "textual", "rich"),
        ),
        (
            "import composer_tui.headless.stopping, composer_tui.cli_cloud",
            (*HEAVY, "grpclib", "textual", "rich"),
        ),
        ("import composer_tui.planning.memory", (*HEAVY, "textual", "yaml", "rich")),
        ("import composer_engine.protocol, composer_engine.config", (*HEAVY, "textual", "yaml")),
        ("import composer_engine.__main__", (*HEAVY, "textual", "composer_tui", "yaml")),
    ],
)
def test_a_module_does_not_drag_in_what_its_process_must_not_hold(
    statement: str, forbidden: tuple[str, ...]
) -> None:
    assert modules_after(statement).isdisjoint(forbidden)
