"""What the engine and whoever launches it agree on, beside the events: names, and no code."""

ENGINE_PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "peft")
"""What the extra ``engine`` brings, as import names."""

HEARTBEAT_VARIABLE = "COMPOSER_HEARTBEAT_FD"
"""Environment: the read end of a pipe. When it ends, the launching program is gone."""

VERSION_VARIABLE = "COMPOSER_ENGINE_VERSION"
"""Environment: the version of an engine that was brought along, and not installed."""

OPENING_VARIABLE = "COMPOSER_OPENING"
"""Environment: a line that the engine tells before anything else."""

EVENTS_FILE = "events.jsonl"
PROCESS_FILE = "process.json"
STOP_FILE = "stop"
CHECKPOINTS_FOLDER = "checkpoints"
NOTICE_FILE = "notice"  # a line that the engine is to tell; used up when it has
SPENDING_FILE = "spending.json"  # what a run's attempts in containers have cost
LEASE_FILE = "lease.json"  # the newest lease that a container of the run was told of
SPEC_FILE = "spec.json"  # a run as its container was asked for it: a `CloudSpec`
PREEMPTED = "Modal took the container away: it was preempted, or the app was stopped"
"""As the content of a stop file: the attempt ends as preempted, not as finished."""

CONFIG_FILE = "config.toml"

# What a run on Modal is known by, from any machine that has a token.
TAG_RUN = "composer.run"  # the run's id, as `app_name` spells it
TAG_OWNER = "composer.owner"  # user at host
TAG_LEASE_UNTIL = "composer.lease_until"  # unix seconds, as at the launch
TAG_CAP_USD = "composer.cap_usd"
CONTROL_DICT = "composer-control"
"""A `modal.Dict`. ``<app name>/ask`` is a `ControlAsk`, ``<app name>/beat`` a `ControlBeat`, as
JSON text: what is asked of a run from outside, and what its container says of itself."""

RUNS_MOUNT = "/composer/runs"  # in the container; a run's folder is RUNS_MOUNT/<run id>
CACHE_MOUNT = "/composer/cache"
INPUTS_MOUNT = "/composer/inputs"  # local data and models that a run was given
