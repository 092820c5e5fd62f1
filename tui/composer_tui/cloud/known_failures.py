"""Failures that others had before, known by what they print, and what mends each.

A table and no more: no clock, no file, no network. Log text is hostile, so every pattern is bounded
and what it captures is cleaned.
"""

import re
from collections import deque
from collections.abc import Mapping
from typing import Literal, NamedTuple

from composer_engine.protocol import FailureKind
from composer_tui.runs.folder import Target
from composer_tui.runs.sanitise import clean

MOST_CHARACTERS = 1 << 16
"""Only the end of a longer text is looked at: what ended a run stands there."""

FailureName = Literal[
    "environment_not_found",
    "secret_not_found",
    "volume_not_found",
    "token_missing",
    "token_refused",
    "profile_missing",
    "spend_limit",
    "gated_model_no_access",
    "gated_model_no_token",
    "hub_token_refused",
    "model_not_found",
    "no_distribution",
    "unsolvable_packages",
    "image_timed_out",
    "image_failed",
    "missing_module",
    "gpu_memory",
    "gpu_architecture",
    "gpu_driver",
    "no_gpu",
    "host_memory",
    "disk_full",
    "function_timeout",
    "rate_limit",
    "no_modal",
    "no_hub",
    "no_connection",
    "killed",
    "preempted",
    "queued",
]


class Diagnosis(NamedTuple):
    """What a text says went wrong.

    ``what`` is half a sentence, ``fix`` a command or a field to change; both are clean, one line.
    ``transient``: the same attempt again, with nothing changed, may go well.
    """

    name: FailureName
    kind: FailureKind
    what: str
    fix: str
    transient: bool = False


class _Signature(NamedTuple):
    """``what``, ``fix`` and ``local_fix`` name the pattern's groups in braces.

    ``local_fix`` is for a run on this machine, where ``fix`` does not do. A group's number is no
    part of its name: ``repo1`` and ``repo2`` are one thing that is said in two ways.
    """

    name: FailureName
    kind: FailureKind
    pattern: re.Pattern[str]
    what: str
    fix: str
    local_fix: str = ""
    transient: bool = False


def diagnose(text: str, target: Target = "modal") -> Diagnosis | None:
    """The most telling known failure that a log or an error's text shows, or None.

    Where several match, causes win over their consequences, as the table is ordered; of one kind,
    the last in the text counts.
    """
    end = text[-MOST_CHARACTERS:]
    for signature in _SIGNATURES:
        if last := deque(signature.pattern.finditer(end), maxlen=1):
            return _diagnosis(signature, last[0], target)
    return None


def _diagnosis(signature: _Signature, match: re.Match[str], target: Target) -> Diagnosis:
    groups = match.groupdict().items()
    said = {name.rstrip("123"): clean(value).strip() for name, value in groups if value}
    fix = signature.fix if target != "local" else signature.local_fix or signature.fix
    return Diagnosis(
        signature.name,
        signature.kind,
        _filled(signature.what, said),
        _filled(fix, said),
        signature.transient,
    )


def _filled(template: str, said: Mapping[str, str]) -> str:
    # `{x?a|b}` is a when the text named x, else b; @ in it is x itself.
    def value(match: re.Match[str]) -> str:
        word = said.get(match["name"], "")
        return match["yes"].replace("@", word) if word else match["no"]

    return _FIELD.sub(value, template)


_FIELD = re.compile(r"\{(?P<name>\w+)\?(?P<yes>[^|{}]*)\|(?P<no>[^|{}]*)\}")


def _re(*alternatives: str) -> re.Pattern[str]:
    return re.compile("|".join(alternatives), re.IGNORECASE)


_NAME = r"[^'\"\s]{1,100}"
_CREATE_IT = "composer-tui secrets create {name?@|NAME} --from-env VARIABLE"
_HUB_LOGIN = "composer-tui secrets create huggingface --from-env HF_TOKEN"
_GPU_MEMORY_FIX = (
    "raise optimizer.micro_batches, set model.gradient_checkpointing = true, "
    "or lower rollout.max_completion_tokens"
)
_HOST_MEMORY_FIX = "raise modal.memory_mib, or lower rollout.prompts_per_step"
_LOCAL_HOST_MEMORY_FIX = "raise optimizer.micro_batches, or lower rollout.prompts_per_step"

# Causes first. What a launch prints, then what a build prints, then what a run prints, then what is
# printed by everything that ends.
_SIGNATURES: tuple[_Signature, ...] = (
    _Signature(
        "secret_not_found",
        "config",
        _re(
            rf"Secret '(?P<name1>{_NAME})' not found",
            rf"No secret named (?P<name2>{_NAME})",
            "could not find secret",
        ),
        "Modal has no secret {name?'@'|of that name}",
        f"{_CREATE_IT}, or take it out of modal.secrets",
    ),
    _Signature(
        "volume_not_found",
        "config",
        _re(rf"Volume '(?P<name1>{_NAME})' not found", rf"No volume named (?P<name2>{_NAME})"),
        "Modal has no volume '{name?@|}'",
        "composer-tui volumes put {name?@|NAME} FILE --create, or correct modal.runs_volume",
    ),
    _Signature(
        "environment_not_found",
        "config",
        _re(rf"Environment '(?P<name>{_NAME})' (?:was )?not found"),
        "Modal has no environment '{name?@|}'",
        "modal environment list, then correct modal.environment",
    ),
    _Signature(
        "profile_missing",
        "config",
        _re(rf"Modal profile '(?P<name>{_NAME})' was not found"),
        "there is no Modal profile '{name?@|}'",
        "modal profile list, then: modal profile activate NAME",
    ),
    _Signature(
        "token_missing",
        "config",
        _re(r"Token missing\. Could not authenticate"),
        "this machine has no Modal token",
        "modal token new",
    ),
    _Signature(
        "token_refused",
        "config",
        _re(
            r"AuthError[^\n]{0,20}?Token[^\n]{0,60}",
            r"Token validation failed",
            r"Status\.UNAUTHENTICATED",
        ),
        "Modal refused the token: it is wrong, or has expired",
        "modal token new",
    ),
    _Signature(
        "spend_limit",
        "budget",
        _re(
            r"spend(?:ing)? limit (?:has been )?(?:reached|exceeded)",
            r"exceeded (?:its|the|your) (?:spend|budget|billing)",
        ),
        "the Modal workspace has reached its spend limit",
        "raise the limit at https://modal.com/settings/usage, or wait for the next billing cycle",
    ),
    _Signature(
        "gated_model_no_access",
        "config",
        _re(
            r"Access to model (?P<repo1>[\w./-]{1,120}) is restricted and you are not in the "
            r"authorized list",
            r"403 Client Error[^\n]{0,200}\s{1,4}Cannot access gated repo for url "
            r"https://[\w.-]{1,60}/(?:api/models/)?(?P<repo2>[\w.-]{1,60}/[\w.-]{1,60})",
        ),
        "{repo?@|this} is a gated model, and this Hugging Face account may not read it",
        "ask for access at https://huggingface.co/{repo?@|}",
    ),
    _Signature(
        "hub_token_refused",
        "config",
        _re(
            r"Invalid user token",
            r"Invalid credentials in Authorization header",
            r"Invalid username or password",
        ),
        "Hugging Face refused the token",
        f"make one at https://huggingface.co/settings/tokens, then: {_HUB_LOGIN}",
        "make one at https://huggingface.co/settings/tokens, then: hf auth login",
    ),
    _Signature(
        "gated_model_no_token",
        "config",
        _re(
            r"Access to model (?P<repo1>[\w./-]{1,120}) is restricted",
            r"Cannot access gated repo for url "
            r"https://[\w.-]{1,60}/(?:api/models/)?(?P<repo2>[\w.-]{1,60}/[\w.-]{1,60})",
            r"GatedRepoError",
            r"You are trying to access a gated repo",
        ),
        "{repo?@|this} is a gated model, and no Hugging Face token was given",
        f"accept its terms on its page, then: {_HUB_LOGIN}",
        "accept its terms on its page, then: hf auth login",
    ),
    _Signature(
        "model_not_found",
        "config",
        _re(
            r"Repository Not Found for url: https://[\w.-]{1,60}/(?:api/(?:models|datasets)/)?"
            r"(?P<repo1>[\w.-]{1,60}/[\w.-]{1,60})",
            r"RepositoryNotFoundError",
            r"(?P<repo2>[\w./-]{1,120}) is not a local folder and is not a valid model identifier",
        ),
        "Hugging Face shows no {repo?@|such model}: the name is wrong, or it is private",
        f"correct model.path or data.path; for a private one: {_HUB_LOGIN}",
        "correct model.path or data.path; for a private one: hf auth login",
    ),
    _Signature(
        "no_distribution",
        "config",
        _re(
            r"No matching distribution found for (?P<package1>[\w.\[\]<>=!~,-]{1,80})",
            r"Could not find a version that satisfies the requirement "
            r"(?P<package2>[\w.\[\]<>=!~,-]{1,80})",
        ),
        "the image asks for {package?@|a package}, which the package index does not have",
        "correct the name or the version (the index may have none for this Python)",
    ),
    _Signature(
        "unsolvable_packages",
        "config",
        _re(
            r"No solution found when resolving dependencies",
            r"requirements are unsatisfiable",
            r"ResolutionImpossible",
            r"these package versions have conflicting dependencies",
        ),
        "the image's packages contradict each other",
        "loosen or align the versions that the lines above name, then build again",
    ),
    _Signature(
        "image_timed_out",
        "timeout",
        _re(r"Image build for (?P<image>im-\w{1,40}) timed out"),
        "the image {image?@|} took too long to build",
        "modal image logs {image?@|}",
        transient=True,
    ),
    _Signature(
        "gpu_architecture",
        "config",
        _re(
            r"with CUDA capability (?P<sm>sm_\w{1,6}) is not compatible",
            r"no kernel image is available for execution on the device",
            r"cudaErrorNoKernelImageForDevice",
        ),
        "the installed torch has no code for this GPU{sm? (@)|}",
        "choose another GPU in modal.gpu",
        "install a torch that was built for it: https://pytorch.org/get-started/locally/",
    ),
    _Signature(
        "gpu_driver",
        "config",
        _re(
            r"NVIDIA driver on your system is too old \(found version (?P<version>\d{1,8})\)",
            r"CUDA driver version is insufficient for CUDA runtime version",
            r"forward compatibility was attempted on non supported HW",
            r"Driver/library version mismatch",
        ),
        "the NVIDIA driver does not fit the installed torch{version? (driver speaks CUDA @)|}",
        "pin a torch that was built for an older CUDA",
        "update the NVIDIA driver (after an update: restart), or install a torch for an older CUDA",
    ),
    _Signature(
        "no_gpu",
        "config",
        _re(
            r"Found no NVIDIA driver on your system",
            r"Torch not compiled with CUDA enabled",
            r"No CUDA GPUs are available",
        ),
        "torch sees no GPU there",
        "name a GPU in modal.gpu, or set model.device = cpu",
        "set model.device = cpu, or run it on Modal; nvidia-smi says what is here",
    ),
    _Signature(
        "gpu_memory",
        "oom",
        _re(
            r"CUDA out of memory(?:\. Tried to allocate (?P<size>[\d.]{1,12} [KMGT]?i?B))?",
            r"CUDA error: out of memory",
            r"CUBLAS_STATUS_ALLOC_FAILED",
            r"torch\.(?:cuda\.)?OutOfMemoryError",
        ),
        "the GPU's memory is full{size?: @ more did not fit|}",
        f"{_GPU_MEMORY_FIX}; or choose a larger GPU in modal.gpu",
        _GPU_MEMORY_FIX,
    ),
    _Signature(
        "host_memory",
        "oom",
        _re(
            r"Out of memory: Kill(?:ed)? process",
            r"oom[-_]kill",
            r"OOMKilled",
            r"^MemoryError\b|\nMemoryError\b",
            r"can't allocate memory",
            r"Cannot allocate memory",
            r"(?:container|runner|task) [^\n]{0,40}ran out of memory",
            r"exceeded its memory limit",
        ),
        "the host memory is full",
        _HOST_MEMORY_FIX,
        _LOCAL_HOST_MEMORY_FIX,
    ),
    _Signature(
        "disk_full",
        "runner",
        _re(
            r"No space left on device(?:: '(?P<path>[^'\n]{1,200})')?",
            r"Errno 28\b",
            r"Disk quota exceeded",
        ),
        "the disk is full{path?: @|}",
        "composer-tui volumes ls composer-runs, then volumes rm what is old; lower checkpoint.keep",
        "du -sh on the runs folder, then delete old checkpoints; lower checkpoint.keep",
    ),
    _Signature(
        "function_timeout",
        "timeout",
        _re(
            r"hit its\s{1,4}timeout of (?P<seconds>\d{1,7})\s?s",
            r"FunctionTimeoutError",
        ),
        "Modal ended the attempt at its timeout{seconds? of @ s|}",
        "raise modal.timeout_seconds, or lower optimizer.steps; the last checkpoint is kept",
    ),
    _Signature(
        "missing_module",
        "config",
        _re(
            r"ModuleNotFoundError: No module named '?(?P<module1>[\w.]{1,80})",
            r"No module named '?(?P<module2>[\w.]{1,80})",
        ),
        "the Python there has no module {module?@|}",
        "add it to the image with .uv_pip_install(...), or .add_local_python_source(...) for code "
        "of your own (composer-tui export-app writes the file to change)",
        'pip install "composer-tui[engine]", or the package that has it',
    ),
    _Signature(
        "image_failed",
        "config",
        _re(r"Image build for (?P<image>im-\w{1,40}) (?:failed|terminated)"),
        "the image {image?@|} could not be built",
        "modal image logs {image?@|}",
    ),
    _Signature(
        "rate_limit",
        "runner",
        _re(
            r"429 (?:Client Error: )?Too Many Requests[^\n]{0,200}?(?P<hub1>huggingface|hf)\.co",
            r"429[^\n]{0,40}Too Many Requests",
            r"(?P<hub2>you have reached your '[\w ]{1,40}' rate limit)",
            r"We had to rate limit (?P<hub3>you)",
            r"rate limit exceeded",
        ),
        "{hub?Hugging Face|the service} refuses more requests for some minutes",
        f"{{hub?wait; with a token the limit is higher: {_HUB_LOGIN}|wait, then try again}}",
        "wait, then try again{hub?; with a token the limit is higher: hf auth login|}",
        transient=True,
    ),
    _Signature(
        "no_modal",
        "runner",
        _re(
            r"Could not connect to the Modal server",
            r"(?:Cannot connect to host|Failed to resolve|resolve host)[^\n]{0,40}modal\.com",
        ),
        "Modal cannot be reached from here",
        "composer-tui doctor --online; https://status.modal.com says whether it is down",
        transient=True,
    ),
    _Signature(
        "no_hub",
        "runner",
        _re(
            r"We couldn't connect to 'https://huggingface\.co'",
            r"OfflineModeIsEnabled",
            r"outgoing traffic has been disabled",
            r"LocalEntryNotFoundError",
            r"host='huggingface\.co'[^\n]{0,200}Max retries exceeded",
        ),
        "Hugging Face cannot be reached there, and the cache does not have the file",
        "try again; https://status.huggingface.co says whether it is down",
        "check the network and HF_HUB_OFFLINE; the preset smoke needs neither",
        transient=True,
    ),
    _Signature(
        "no_connection",
        "runner",
        _re(
            r"Max retries exceeded with url",
            r"Temporary failure in name resolution",
            r"Name or service not known",
            r"Connection (?:refused|reset by peer|timed out)",
            r"Network is unreachable",
        ),
        "a network connection failed",
        "check the network, then try again",
        transient=True,
    ),
    _Signature(
        "preempted",
        "preempted",
        _re(
            r"(?:interrupted|terminated) due to\s{1,4}(?:worker )?preemption",
            r"Simulated preemption interrupt",
            r"Worker disappeared",
        ),
        "Modal took the machine back (preemption)",
        "nothing: it goes on from its last checkpoint; a lower checkpoint.every_steps loses less",
        transient=True,
    ),
    _Signature(
        "killed",
        "killed",
        _re(
            r"exit(?: ?code|ed with(?: (?:status|code))?| status)\s{0,4}[:=]?\s{0,4}(?:-9|137)\b",
            r"Signal 9 \(SIGKILL\)",
            r"died with <Signals\.SIGKILL: 9>",
            r"^Killed$|\nKilled(?=\n|$)",
        ),
        "something killed it with SIGKILL, most often because the host memory was full",
        _HOST_MEMORY_FIX,
        _LOCAL_HOST_MEMORY_FIX,
    ),
    _Signature(
        "queued",
        "runner",
        _re(
            r"waiting to be scheduled on an? (?:GPU_)?(?P<gpu>[\w.-]{1,40}) worker",
            r"Insufficient capacity",
            r"no workers available",
        ),
        "Modal has no {gpu?@|such} worker free yet (waiting costs nothing)",
        "name more GPUs in modal.gpu (the first to be had is taken), or leave modal.region empty",
        transient=True,
    ),
)
