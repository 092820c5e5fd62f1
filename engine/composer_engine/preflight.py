"""What is wrong with a run's data and model, as far as the machine that has them can see.

The rules are the engine's own, applied to little: a file of any size is looked at in milliseconds.
Imports nothing heavy: whoever launches a run asks before anything is made that costs.
"""

from collections.abc import Callable

from composer_engine.config import BUILTIN, FIELDS, ConfigProblem, RunConfig, looks_like_hub_id
from composer_engine.config_file import expanded
from composer_engine.data import Glance, check_rows, data_file, glance, nothing_to_roll_out
from composer_engine.failures import SetupError
from composer_engine.inputs import is_there_already
from composer_engine.model_folder import model_folder


def input_problems(config: RunConfig, *, in_container: bool) -> list[ConfigProblem]:
    """One for each input that cannot be used. What lies on a container's volume is not seen."""
    problems: list[ConfigProblem] = []
    for look, path in ((_data_problem, config.data.path), (_model_problem, config.model.path)):
        if in_container and is_there_already(path) and path != BUILTIN:
            continue
        found = _said(look, config)
        problems += [found] if found else []
    return problems


def _said(
    look: Callable[[RunConfig], ConfigProblem | None], config: RunConfig
) -> ConfigProblem | None:
    """What a look found, be it returned or raised."""
    try:
        return look(config)
    except SetupError as error:
        field, _, message = str(error).partition(": ")
        if field not in FIELDS:
            field, message = "", str(error)
        return ConfigProblem(field, f"{message}; {error.hint}" if error.hint else message)


def _data_problem(config: RunConfig) -> ConfigProblem | None:
    path = config.data.path
    file = data_file(path)
    seen = glance(
        path,
        config.data.max_rows,
        split=config.data.split,
        rename=config.data.rename,
        reward=config.data.reward,
    )
    if seen.problems:
        return ConfigProblem("data.path", _of_rows(file.name, seen))
    if seen.is_whole and not seen.tasks:
        return ConfigProblem("data.path", f"{path} {nothing_to_roll_out(seen.rows)}")
    if seen.is_whole:
        check_rows(seen.tasks, config.rollout.prompts_per_step)
    return None


def _of_rows(name: str, seen: Glance) -> str:
    (number, message), *others = seen.problems
    more = f" (and {len(others)} more of the first {seen.rows} rows)" if others else ""
    return f"{name} {seen.unit} {number}: {message}{more}"


def _model_problem(config: RunConfig) -> ConfigProblem | None:
    path = config.model.path
    if not path.strip() or expanded(path).is_dir() or not looks_like_hub_id(path):
        model_folder(config.model)
    return None
