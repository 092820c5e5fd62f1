"""`export-app`: a run as a folder with a script for Modal and one for this machine."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from composer_engine.cloud_spec import CloudSpec
from composer_engine.config import RunConfig
from composer_tui.cloud.export_app import export_app
from composer_tui.pricing.catalog import parse_gpu
from composer_tui.pricing.rates import dearest_usd_per_hour, snapshot_rates
from composer_tui.runners.preflight import check_inputs


def export_run_app(config: RunConfig, folder: Path, secrets: Sequence[str]) -> int:
    """0 when all is written; what there is, is printed.

    Raises `ConfigError`, `ExportRefused` and `UnknownGpu`.
    """
    check_inputs(config, "modal")
    gpus = [parse_gpu(text).gpu for text in config.modal.gpu]
    spec = CloudSpec(
        run_id=config.name,
        config=config,
        usd_per_hour=str(dearest_usd_per_hour(snapshot_rates(), config.modal) or 0),
        compute_capability=max((gpu.compute_capability for gpu in gpus), default=0.0),
        secrets=tuple(secrets),
    )
    for path in export_app(spec, folder):
        print(path)
    for line in next_commands(folder):
        print(line, file=sys.stderr)
    return 0


def next_commands(folder: Path) -> list[str]:
    """What to type next, fit for a shell wherever it stands and whatever the folder is called."""
    named = str(folder.absolute())
    place, packages, script = (
        shlex.quote(named + end) for end in ("", "/requirements.txt", "/train_local.py")
    )
    return [
        f"on Modal: cd {place} && modal run modal_app.py",
        f"here: pip install -r {packages} && python {script}",
    ]
