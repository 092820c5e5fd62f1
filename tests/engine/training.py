"""A whole training in this process, on what a configuration names."""

from pathlib import Path

import torch

from composer_engine.checkpoint import Checkpoints
from composer_engine.config import RunConfig
from composer_engine.contract import EVENTS_FILE
from composer_engine.data import load_data
from composer_engine.emitter import Emitter
from composer_engine.model import load_model
from composer_engine.protocol import Event
from composer_engine.run import train
from composer_engine.safety import StopRequest
from composer_engine.trainer import ComposerTrainer
from tests.engine.engine_process import read_events


def trained(config: RunConfig, folder: Path) -> tuple[ComposerTrainer, list[Event]]:
    """The trainer at its end, and the run's events; ``folder`` is made."""
    torch.set_num_threads(1)  # so little work is slower on two
    folder.mkdir()
    asked = config.data
    data = load_data(asked.path, asked.max_rows, rename=asked.rename, reward=asked.reward)
    with Emitter(None, folder) as emitter:
        checkpoints = Checkpoints(folder, 1, emitter)
        stop = StopRequest(emitter, folder)
        loaded = load_model(config.model, config.optimizer.seed)
        trainer = train(config, data, loaded, checkpoints, emitter, stop)
        checkpoints.close()
    return trainer, read_events(folder / EVENTS_FILE)
