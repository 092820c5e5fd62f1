"""Checkpoints that are whole or not there: written aside, synced, then renamed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from composer_engine.contract import CHECKPOINTS_FOLDER
from composer_engine.emitter import Emitter
from composer_engine.failures import complain, is_out_of_memory
from composer_engine.protocol import AlertRaised, CheckpointSaved, Logged, PhaseChanged

_STAGING = ".saving"


class Checkpoints:
    """The checkpoints of one run: ``ROOT/checkpoints/step-<n>``, the last ``keep`` of them.

    ``staging`` is where the trainer writes; nothing there is ever a checkpoint to a reader.
    """

    def __init__(self, root: Path, keep: int, emitter: Emitter) -> None:
        self._root, self._keep, self._emitter = root, keep, emitter
        self._folder = root / CHECKPOINTS_FOLDER
        self.staging = self._folder / _STAGING
        self.last_step = 0
        # What a killed engine left half written.
        shutil.rmtree(self.staging, ignore_errors=True)
        self.staging.mkdir(parents=True)

    def save(self, step: int, write: Callable[[], None], *, goes_on: bool = True) -> None:
        """Have ``write`` fill ``staging/checkpoint-<step>`` and publish it.

        Training is only told to go on where it does, and not after the last save.
        A disk that is full, or any other failure to write, raises an alert and not an error: a
        run that trains on is worth more than one that died with the same disk.
        """
        self._emitter.emit(PhaseChanged(phase="saving"))
        try:
            write()
            path, size = self._publish(step)
        except (OSError, RuntimeError, SafetensorError) as error:
            # torch words a short write as a RuntimeError, and running out of memory, too
            if is_out_of_memory(error):
                raise
            self._failed(step, error)
        else:
            self.last_step = step
            self._emitter.emit(CheckpointSaved(step=step, path=path, bytes=size))
            self._prune()
        if goes_on:
            self._emitter.emit(PhaseChanged(phase="training"))

    def close(self) -> None:
        """Leave nothing half written behind."""
        shutil.rmtree(self.staging, ignore_errors=True)

    def _publish(self, step: int) -> tuple[str, int]:
        written = self.staging / f"checkpoint-{step}"
        final = self._folder / f"step-{step}"
        files = [path for path in written.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        for path in [*files, written]:
            _sync(path)
        if final.exists():  # an earlier attempt came this far
            shutil.rmtree(final)
        written.rename(final)
        _sync(self._folder)
        return final.relative_to(self._root).as_posix(), size

    def _failed(self, step: int, error: Exception) -> None:
        shutil.rmtree(self.staging, ignore_errors=True)
        self.staging.mkdir(parents=True, exist_ok=True)
        reason = str(error).partition("\n")[0]
        last = f"the last one is of step {self.last_step}" if self.last_step else "there is none"
        message = f"the checkpoint of step {step} could not be saved ({reason}); {last}"
        self._emitter.emit(AlertRaised(rule="disk", level="error", step=step, message=message))
        complain(message)

    def _prune(self) -> None:
        # By age and not by step: a new attempt may begin again below an old one's last step.
        saved = sorted(self._folder.glob("step-*"), key=lambda path: path.stat().st_mtime_ns)
        for old in saved[: -self._keep]:
            try:
                shutil.rmtree(old)
            except OSError as error:
                message = f"cannot remove the old checkpoint {old.name}: {error.strerror}"
                self._emitter.emit(Logged(level="warning", message=message))


class CheckpointPart:
    """What a process does for a checkpoint whose owner is another one: its part, in staging.

    Only the owner judges whether it became a checkpoint.
    """

    def __init__(self, root: Path) -> None:
        self.staging = root / CHECKPOINTS_FOLDER / _STAGING

    def save(self, step: int, write: Callable[[], None], *, goes_on: bool = True) -> None:  # noqa: ARG002  # as the owner's
        """Have ``write`` write. Out of memory is the only failure that ends the run."""
        try:
            write()
        except (OSError, RuntimeError, SafetensorError) as error:
            if is_out_of_memory(error):
                raise
            complain(f"a part of the checkpoint could not be saved: {error}")

    def close(self) -> None:
        """The owner cleans up."""


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
