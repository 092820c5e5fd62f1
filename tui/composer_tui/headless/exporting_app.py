"""`export-app`: a run as a folder with a script for Modal and one for this machine."""

import sys
from collections.abc import Sequence
from pathlib import Path

from composer_engine.cloud_spec import CloudSpec
from composer_engine.config import RunConfig
from composer_tui.cloud.export_app import export_app
from composer_tui.pricing.catalog import parse_gpu
from composer_tui.pricing.rates import dearest_usd_per_hour, snapshot_rates


def export_run_app(config: RunConfig, folder: Path, secrets: Sequence[str]) -> int:
    """0 when all is written; what there is, is printed.

    Raises `ExportRefused` and `UnknownGpu`.
    """
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
    print(
        f"on Modal: cd {folder} && modal run modal_app.py\n"
        f"here: pip install -r {folder}/requirements.txt && python {folder}/train_local.py",
        file=sys.stderr,
    )
    return 0
