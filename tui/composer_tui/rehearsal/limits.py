"""What Modal refuses, or would run differently from what was meant: pure rules about a function."""

from modal_proto import api_pb2

LONGEST_TIMEOUT_SECONDS = 86400
_MOST_GPUS = 8
_FEWER_GPUS = {"A10": 4, "A10G": 4}
GPU_NAMES = frozenset(
    {
        "T4",
        "L4",
        "A10",
        "A10G",
        "L40S",
        "A100",
        "A100-40GB",
        "A100-80GB",
        "RTX-PRO-6000",
        "H100",
        "H100!",
        "H200",
        "B200",
        "B200+",
        "B300",
    }
)


def objections(function: api_pb2.Function) -> list[str]:
    """Why Modal would not run this function: one line each, none when it would."""
    return [
        *_about_gpu(function),
        *_about_timeouts(function),
        *_about_containers(function),
    ]


def not_imitated(function: api_pb2.Function) -> list[str]:
    """What this function asks for that only Modal has: a few words each."""
    asked = {
        "web functions": bool(function.webhook_config.type),
        "servers": function.is_server,
        "clusters": function._experimental_group_size > 0,  # noqa: SLF001  # the proto's own name
        "cloud bucket mounts": bool(function.cloud_bucket_mounts),
        "network file systems": bool(function.shared_volume_mounts),
        "proxies": bool(function.proxy_id),
        "interactive functions (modal run -i)": bool(function.pty_info.pty_type),
        "functions that build an image (run_function)": function.is_builder_function,
    }
    return [words for words, is_asked in asked.items() if is_asked]


def ignored(function: api_pb2.Function) -> list[str]:
    """What this function asks for that is taken and has no effect here: a few words each."""
    asked = {
        "memory snapshots": function.checkpointing_enabled,
        "the schedule": function.schedule.WhichOneof("schedule_oneof") is not None,
        "the region": bool(function.scheduler_placement.regions),
        "the cloud": bool(function.cloud_provider_str),
        "block_network": function.block_network,
        "CPU, memory and disk limits": _has_limits(function.resources),
        "the GPU (the devices of this machine are used as they are)": _asks_gpu(function),
    }
    return [words for words, is_asked in asked.items() if is_asked]


def _asks_gpu(function: api_pb2.Function) -> bool:
    return function.resources.gpu_config.count > 0 or bool(function.resources.gpu_config.gpu_type)


def _has_limits(resources: api_pb2.Resources) -> bool:
    return bool(resources.milli_cpu_max or resources.memory_mb_max or resources.ephemeral_disk_mb)


def _about_gpu(function: api_pb2.Function) -> list[str]:
    if not _asks_gpu(function):
        return []
    name, count = function.resources.gpu_config.gpu_type, function.resources.gpu_config.count
    if name not in GPU_NAMES:
        known = ", ".join(sorted(GPU_NAMES))
        return [f"unknown GPU type {name!r}: it must be one of {known}"]
    most = _FEWER_GPUS.get(name, _MOST_GPUS)
    lines = []
    if not 1 <= count <= most:
        lines.append(f"a container can have 1 to {most} GPUs of type {name}, not {count}")
    if function.scheduler_placement.nonpreemptible:
        lines.append("nonpreemptible=True is not available for a function that asks for a GPU")
    return lines


def _about_timeouts(function: api_pb2.Function) -> list[str]:
    seconds = function.timeout_secs
    if 1 <= seconds <= LONGEST_TIMEOUT_SECONDS:
        return []
    return [
        f"timeout must be from 1 to {LONGEST_TIMEOUT_SECONDS} seconds (24 hours), not {seconds}"
    ]


def _about_containers(function: api_pb2.Function) -> list[str]:
    settings = function.autoscaler_settings
    lines = []
    if settings.scaledown_window and not 2 <= settings.scaledown_window <= 3600:  # noqa: PLR2004  # Modal's numbers
        lines.append(f"scaledown_window must be from 2 to 3600, not {settings.scaledown_window}")
    if settings.max_containers and settings.min_containers > settings.max_containers:
        lines.append("min_containers must not be more than max_containers")
    return lines
