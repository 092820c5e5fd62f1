"""A run on Modal with the container of the product, around an engine that is none.

Arguments: a `CloudSpec` as JSON, and what the engine does in the first attempt; in later ones it
finishes. Prints {app_id, function_id, call_id}.
"""

import json
import sys
from pathlib import Path

import modal
import msgspec

from composer_engine.cloud_spec import CloudSpec, app_name

SPEC, FAULT = sys.argv[1], sys.argv[2]
STAND_IN = str(Path(__file__).parents[1] / "engine" / "stand_in.py")

spec = msgspec.json.decode(SPEC, type=CloudSpec)
name = app_name(spec.run_id)
wanted = spec.config.modal
app = modal.App(name, tags={"composer.run": name}, include_source=False)
volume = modal.Volume.from_name(wanted.runs_volume, create_if_missing=True)


@app.function(
    serialized=True,
    gpu=wanted.gpu[0],
    cpu=wanted.cpu_cores,
    memory=wanted.memory_mib,
    volumes={"/composer/runs": volume},
    timeout=600,
    max_containers=1,
    single_use_containers=True,
    scaledown_window=2,
)
def train(text: str, fault: str, stand_in: str) -> dict[str, str]:
    import os
    import sys
    from pathlib import Path

    import modal
    import msgspec

    from composer_engine.cloud_spec import CloudSpec
    from composer_engine.container import train_attempt

    class Board:
        def read(self, _name: str) -> None:
            return None

        def write(self, _name: str, _text: str) -> None:
            return None

    spec = msgspec.json.decode(text, type=CloudSpec)
    runs = Path("/composer/runs")
    book = runs / spec.run_id / "spending.json"
    engine = "finishes" if book.exists() else fault

    def command(_config: Path, folder: Path, _run_id: str, _processes: int) -> list[str]:
        return [sys.executable, stand_in, "--run-dir", str(folder), "--run-id", engine]

    volume = modal.Volume.from_name(spec.config.modal.runs_volume)
    container_id = os.environ["MODAL_TASK_ID"]
    return train_attempt(spec, runs, volume.commit, Board(), command, container_id)


if __name__ == "__main__":
    with app.run(detach=True):
        call = train.spawn(SPEC, FAULT, STAND_IN)
        ids = {
            "app_id": app.app_id,
            "function_id": train.object_id,
            "call_id": call.object_id,
        }
        print(json.dumps(ids))
