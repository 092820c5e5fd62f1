"""What the engine and whoever launches it agree on, beside the events: names, and no code."""

ENGINE_PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "peft")
"""What the extra ``engine`` brings, as import names."""

HEARTBEAT_VARIABLE = "COMPOSER_HEARTBEAT_FD"
"""Environment: the read end of a pipe. When it ends, the launching program is gone."""

EVENTS_FILE = "events.jsonl"
PROCESS_FILE = "process.json"
STOP_FILE = "stop"
CHECKPOINTS_FOLDER = "checkpoints"
