"""A run on Modal without an engine: its container says and commits what it was told to.

Arguments: the run's id and a plan as JSON. Prints {app_id, function_id, call_id}. The container is
on this machine: it goes on while the file that the plan names under "while" is there.
"""

import json
import sys
from typing import Any

import modal

NAME, PLAN = sys.argv[1], json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}

app = modal.App(NAME, tags={"composer.run": NAME}, include_source=False)
volume = modal.Volume.from_name("composer-runs", create_if_missing=True)


@app.function(
    serialized=True,
    volumes={"/composer/runs": volume},
    timeout=PLAN.get("timeout", 600),
    max_containers=1,
    single_use_containers=True,
    scaledown_window=2,
)
def talk(name: str, plan: dict[str, Any]) -> dict[str, str]:
    import json
    import os
    import sys
    import time
    from pathlib import Path

    import modal

    volume = modal.Volume.from_name("composer-runs")
    folder = Path("/composer/runs") / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spec.json").write_text(plan.get("spec", "{}").replace("{name}", name))
    volume.commit()
    path = folder / "events.jsonl"
    earlier = path.read_text().splitlines() if path.exists() else []
    seq = len(earlier)
    attempts = sum('"run_started"' in line for line in earlier) + 1

    def emit(event: str, *, told: bool = True, **fields: Any) -> None:
        nonlocal seq
        text = json.dumps({"event": event, "seq": seq, "time": time.time(), **fields})
        seq += 1
        with path.open("a") as file:
            file.write(text + "\n")
        if told:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()

    if earlier and '"run_f' not in earlier[-1]:
        emit("run_failed", kind="killed", message="the previous attempt ended without a word")
    emit("phase_changed", phase="loading")
    device = {"kind": "cpu", "name": "c", "count": 1, "total_bytes": 1}
    emit(
        "run_started",
        run_id=name,
        attempt=attempts,
        total_steps=plan["steps"],
        model="m",
        parameters=1,
        device=device,
        engine_version="0",
        config_hash="0",
    )
    step = 0
    while step < plan["steps"] or Path(plan.get("while", "/nowhere")).exists():
        step += 1
        untold = step in plan.get("untold", [])
        emit("step_completed", told=not untold, step=step, loss=1.0, channels={})
        if step % 5 == 0:
            print(f"stray {attempts}-{step}", file=sys.stderr, flush=True)
        if step == plan.get("commit_at"):
            volume.commit()
        if step == plan.get("raise_at"):
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if step == plan.get("exit_at"):
            os._exit(7)
        if step == plan.get("wait_at") and attempts == 1:
            time.sleep(60)
        time.sleep(plan.get("pause", 0.01))
    if plan.get("word", True):
        emit("run_finished", steps=step)
    volume.commit()
    return {"outcome": "finished", "reason": "", "step": str(step), "spent_usd": "0"}


if __name__ == "__main__":
    with app.run(detach=True):
        call = talk.spawn(NAME, PLAN)
        ids = {
            "app_id": app.app_id,
            "function_id": talk.object_id,
            "call_id": call.object_id,
        }
        print(json.dumps(ids))
