"""Whether a run of this machine can go on where it ended, and as what."""

from collections.abc import Sequence

from composer_engine.config import RunConfig, load
from composer_engine.failures import SetupError
from composer_engine.resume import AUTO, check_config, choose
from composer_tui.runners.local import CannotResume, LocalRun
from composer_tui.runs.folder import RunFolder, this_host
from composer_tui.runs.journal import read_end


def resumable(folder: RunFolder, settings: Sequence[str] = ()) -> RunConfig:
    """The configuration of the next attempt: that of the folder, with ``settings`` over it.

    Raises `CannotResume`; `ConfigError` for a field that must stay as it was; `DamagedFolder`.
    """
    record, run_id = folder.read_record(), folder.run_id
    if record.target != "local":
        raise CannotResume(f"{run_id} did not run on this machine, but on: {record.target}")
    if record.host not in ("", this_host()):
        raise CannotResume(f"{run_id} ran on another machine, {record.host}")
    run = LocalRun(folder)
    if run.alive():
        raise CannotResume(f"{run_id} is still alive")
    run.settle()
    config = load(file=folder.config_path, settings=settings)
    try:
        checkpoint, said = choose(folder.path, AUTO, reads_all=False)
    except SetupError as error:
        raise CannotResume(str(error)) from None
    if checkpoint is None:
        passed = "; ".join(line.message for line in said[:-1])
        more = f" ({passed})" if passed else ""
        raise CannotResume(f"{run_id} has nothing to resume: no whole checkpoint{more}")
    check_config(config, checkpoint)
    finish = read_end(folder.events_path).finish
    done = max(checkpoint.step, finish.steps if finish else 0)
    if done >= config.optimizer.steps:
        raise CannotResume(
            f"{run_id} finished already, at step {done}; for more: --set optimizer.steps=N"
        )
    return config
