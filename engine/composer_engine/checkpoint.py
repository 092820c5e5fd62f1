"""Checkpoints that are whole or not there: written aside, synced, renamed, and then sealed.

A checkpoint on which a run goes on exactly must lie between two rollouts: within one, its random
numbers are drawn and its completions are nowhere on disk. So one that is due waits for the step
that uses a rollout for the last time, and a run that is asked to stop goes on that far: at most
``rollout.updates_per_rollout`` - 1 steps, none of which generates anything. The alternative, to
fall back to the boundary before, would throw away work that was paid for.
"""

import contextlib
import errno
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from safetensors import SafetensorError

from composer_engine.contract import CHECKPOINTS_FOLDER
from composer_engine.emitter import Emitter
from composer_engine.failures import complain, is_out_of_memory
from composer_engine.protocol import AlertRaised, CheckpointSaved, Logged, PhaseChanged
from composer_engine.seal import (
    Best,
    Identity,
    Seal,
    Standing,
    Torn,
    file_sizes,
    read_seal,
    sum_of,
    sync,
    write_seal,
)

_STAGING = ".saving"
_LIMITS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is too large for a limit of this machine",
}
_SAFETENSORS_ERRNO = re.compile(r"\(os error (\d+)\)")
# How torch's archive words a write that came out short; the errno is lost on the way.
_TORCH_SHORT_WRITE = re.compile(r"inline_container|unexpected pos|PytorchStreamWriter")


class Checkpoints:
    """The checkpoints of one run: ``ROOT/checkpoints/step-<n>``.

    The last ``keep`` of them stay, and with ``keep_best`` the one before which the rollouts' mean
    reward was highest, counted from the checkpoint before it. ``standing`` is what the run
    remembers from before, and ``last_step`` the checkpoint that it went on from, 0 for none.
    ``staging`` is where the trainer writes; nothing there is ever a checkpoint to a reader.
    ``unsaved`` says, when the last save failed, which step it was of and what there is instead.
    """

    def __init__(
        self,
        root: Path,
        keep: int,
        emitter: Emitter,
        *,
        keep_best: bool = True,
        identity: Identity | None = None,
        standing: Standing | None = None,
        last_step: int = 0,
    ) -> None:
        self._root, self._keep, self._keep_best = root, keep, keep_best
        self._emitter, self._identity = emitter, identity or Identity()
        self._folder = root / CHECKPOINTS_FOLDER
        self.staging = self._folder / _STAGING
        self.last_step = last_step
        self.unsaved = ""
        self.standing = self._still_there(standing or Standing())
        self._rewards: list[float] = []  # one a step, since the checkpoint before
        # What a killed engine left half written.
        shutil.rmtree(self.staging, ignore_errors=True)
        self.staging.mkdir(parents=True)

    def note(self, reward_mean: float, non_finite_in_a_row: int) -> None:
        """What a step says of the checkpoint that follows it, if one does."""
        if math.isfinite(reward_mean):
            self._rewards.append(reward_mean)
        self.standing = msgspec.structs.replace(
            self.standing, non_finite_in_a_row=non_finite_in_a_row
        )

    def save(
        self, step: int, write: Callable[[], None], *, resumable: bool = True, goes_on: bool = True
    ) -> None:
        """Have ``write`` fill ``staging/checkpoint-<step>`` and publish it.

        ``resumable`` is false within a rollout. Training is told to go on where ``goes_on``, and
        not after the last save. A disk that is full, or any other failure to
        write, raises an alert and not an error: a run that trains on is worth more than one that
        died with the same disk.
        """
        self._emitter.emit(PhaseChanged(phase="saving"))
        standing = self._judged(step)
        try:
            write()
            path, size = self._publish(step, standing, resumable=resumable)
        except (OSError, RuntimeError, SafetensorError) as error:
            # torch words a short write as a RuntimeError, and running out of memory, too
            if is_out_of_memory(error):
                raise
            self._failed(step, error)
        else:
            self.last_step, self.standing, self.unsaved = step, standing, ""
            self._rewards.clear()
            best = standing.best is not None and standing.best.step == step
            self._emitter.emit(CheckpointSaved(step=step, path=path, bytes=size, best=best))
            self._prune()
        if goes_on:
            self._emitter.emit(PhaseChanged(phase="training"))

    def close(self) -> None:
        """Leave nothing half written behind."""
        shutil.rmtree(self.staging, ignore_errors=True)

    def _still_there(self, standing: Standing) -> Standing:
        """Without the best checkpoint, if it is gone, or another run's."""
        best = standing.best
        if best is None:
            return standing
        with contextlib.suppress(Torn, OSError):
            if read_seal(self._folder / f"step-{best.step}").order == (best.attempt, best.step):
                return standing
        return msgspec.structs.replace(standing, best=None)

    def _judged(self, step: int) -> Standing:
        """The standing that this checkpoint makes, if it comes to be."""
        best = self.standing.best
        if self._keep_best and self._rewards:
            reward = sum(self._rewards) / len(self._rewards)
            if best is None or reward > best.reward:
                best = Best(step=step, attempt=self._emitter.attempt, reward=reward)
        return msgspec.structs.replace(self.standing, best=best)

    def _publish(self, step: int, standing: Standing, *, resumable: bool) -> tuple[str, int]:
        written = self.staging / f"checkpoint-{step}"
        final = self._folder / f"step-{step}"
        sizes = file_sizes(written)
        for folder in {(written / name).parent for name in sizes} | {written}:
            sync(folder)
        sums = {}
        for name in sizes:
            sync(written / name)
            sums[name] = sum_of(written / name)
        seal = Seal(
            step=step,
            attempt=self._emitter.attempt,
            saved_at=time.time(),
            resumable=resumable,
            files=sizes,
            sums=sums,
            identity=self._identity,
            standing=standing,
        )
        with _replacing(final, self.staging / f"replaced-{step}"):
            written.rename(final)
            sync(self._folder)
            size = write_seal(final, seal)
        return final.relative_to(self._root).as_posix(), sum(sizes.values()) + size

    def _failed(self, step: int, error: Exception) -> None:
        shutil.rmtree(self.staging, ignore_errors=True)
        with contextlib.suppress(OSError):  # no room for a folder either: the next save makes it
            self.staging.mkdir(parents=True, exist_ok=True)
        last = f"the last one is of step {self.last_step}" if self.last_step else "there is none"
        message = f"the checkpoint of step {step} could not be saved ({_in_words(error)}); {last}"
        self.unsaved = message
        self._emitter.emit(AlertRaised(rule="disk", level="error", step=step, message=message))
        complain(message)

    def _prune(self) -> None:
        """The newest stay, and the best; what is torn is no checkpoint and goes, too."""
        whole: list[tuple[Seal, Path]] = []
        gone: list[Path] = []
        for folder in self._folder.glob("step-*"):
            try:
                whole.append((read_seal(folder), folder))
            except (Torn, OSError):
                gone.append(folder)
        whole.sort(key=lambda one: one[0].order)
        best = self.standing.best if self._keep_best else None
        for seal, folder in whole[: -self._keep]:
            if best is None or seal.order != (best.attempt, best.step):
                gone.append(folder)
        for old in gone:
            try:
                # It is gone at once, also for a volume that is committed meanwhile.
                shutil.rmtree(old.rename(self.staging / f"removed-{old.name}"))
            except OSError as error:
                message = f"cannot remove the old checkpoint {old.name}: {error.strerror}"
                self._emitter.emit(Logged(level="warning", message=message))


class CheckpointPart:
    """What a process does for a checkpoint whose owner is another one: its part, in staging.

    Only the owner judges whether it became a checkpoint.
    """

    unsaved = ""

    def __init__(self, root: Path) -> None:
        self.staging = root / CHECKPOINTS_FOLDER / _STAGING

    def note(self, reward_mean: float, non_finite_in_a_row: int) -> None:
        """The owner keeps count."""

    def save(
        self,
        step: int,  # noqa: ARG002  # as the owner's
        write: Callable[[], None],
        *,
        resumable: bool = True,  # noqa: ARG002  # as the owner's
        goes_on: bool = True,  # noqa: ARG002  # as the owner's
    ) -> None:
        """Have ``write`` write. Out of memory is the only failure that ends the run."""
        try:
            write()
        except (OSError, RuntimeError, SafetensorError) as error:
            if is_out_of_memory(error):
                raise
            complain(f"a part of the checkpoint could not be saved: {_in_words(error)}")

    def close(self) -> None:
        """The owner cleans up."""


def _in_words(error: BaseException) -> str:
    """Why a write failed, without a library's own words where an errno is known."""
    known: BaseException | None = error
    while known is not None:  # torch raises its own on the way out of the one that says why
        found = _SAFETENSORS_ERRNO.search(str(known))
        number = known.errno if isinstance(known, OSError) else int(found[1]) if found else None
        if number is not None:
            return _LIMITS.get(number, os.strerror(number))
        known = known.__cause__ or known.__context__
    if _TORCH_SHORT_WRITE.search(str(error)):
        return "the disk is full or a limit was reached"
    return str(error).partition("\n")[0]


@contextlib.contextmanager
def _replacing(final: Path, aside: Path) -> Iterator[None]:
    """Makes room at ``final``, where an earlier attempt may have come; gives it back on failure."""
    there = final.exists()
    if there:
        final.rename(aside)
    try:
        yield
    except OSError:
        shutil.rmtree(final, ignore_errors=True)
        if there:
            aside.rename(final)
        raise
    if there:
        shutil.rmtree(aside, ignore_errors=True)
