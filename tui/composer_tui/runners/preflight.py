"""What a run is given is looked at before it is launched, wherever it is to run."""

from composer_engine.config import ConfigError, RunConfig
from composer_tui.runs.folder import Target


def check_inputs(config: RunConfig, target: Target) -> None:
    """Raises `ConfigError` for data and a model that the engine would refuse. Reads little."""
    from composer_engine.preflight import input_problems  # no first paint waits for it

    if problems := input_problems(config, in_container=target != "local"):
        raise ConfigError(problems)
