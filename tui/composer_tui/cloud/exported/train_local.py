"""The same training run on this machine: python train_local.py [--set SECTION.FIELD=VALUE ...]

Needs what requirements.txt names. Events go to stdout, one JSON object a line; everything is kept
in runs/NAME-TIME beside this file. Ctrl-C saves and ends.
"""

import os
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from composer_engine.__main__ import main  # noqa: E402  # the folder beside this file

NAME = "run"

if __name__ == "__main__":
    os.chdir(HERE)  # the configuration names its data from here
    run_dir = Path("runs") / f"{NAME}-{time.strftime('%Y%m%d-%H%M%S')}"
    sys.exit(main(["--config", "config.toml", "--run-dir", str(run_dir), *sys.argv[1:]]))
