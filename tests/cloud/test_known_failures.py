"""What logs and errors say of known failures: texts as the services and libraries print them."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composer_tui.cloud.known_failures import MOST_CHARACTERS, diagnose

HUB = "https://huggingface.co"
GATED_401 = f"""\
huggingface_hub.errors.GatedRepoError: 401 Client Error. (Request ID: Root=1-693b313c-3a36)

Cannot access gated repo for url {HUB}/google/gemma-2-2b-it/resolve/299a/.gitattributes.
Access to model google/gemma-2-2b-it is restricted. You must have access to it and be \
authenticated to access it. Please log in."""
GATED_403 = f"""\
Make sure to have access to it at {HUB}/google/gemma-3-4b-pt.
403 Client Error. (Request ID: Root=1-6824e511-0a1d;85e8458c)

Cannot access gated repo for url {HUB}/google/gemma-3-4b-pt/resolve/main/config.json.
Access to model google/gemma-3-4b-pt is restricted and you are not in the authorized list. \
Visit {HUB}/google/gemma-3-4b-pt to ask for access."""
OUT_OF_GPU = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.32 GiB. GPU 0 has a total "
    "capacity of 22.03 GiB of which 1.10 GiB is free. Including non-PyTorch memory, this process"
)
UV = """\
  x No solution found when resolving dependencies:
  ╰─▶ Because you require torch==2.1 and torch==2.6, we can conclude that your
      requirements are unsatisfiable."""
PIP = """\
ERROR: Could not find a version that satisfies the requirement flash-atn (from versions: none)
ERROR: No matching distribution found for flash-atn
Image build for im-aLYBWnjqNWtJGEVDUnAv7n failed.
View the build logs:
  modal image logs im-aLYBWnjqNWtJGEVDUnAv7n"""
MODEL_NOT_FOUND = f"""\
huggingface_hub.errors.RepositoryNotFoundError: 401 Client Error. (Request ID: Root=1-x)

Repository Not Found for url: {HUB}/api/models/acme/no-such-model/revision/main.
Please make sure you specified the correct `repo_id` and `repo_type`."""
HUB_429 = """\
huggingface_hub.errors.HfHubHTTPError:

429 Too Many Requests: you have reached your 'api' rate limit.
Retry after 55 seconds (0/500 requests remaining in current 300s window)."""

KNOWN = [
    ("Secret 'hf-read' not found in environment 'main'.", "secret_not_found", "hf-read"),
    ("NotFoundError: No secret named huggingface - you", "secret_not_found", "huggingface"),
    ("(\"Volume 'data' not found in environment 'main'\")", "volume_not_found", "data"),
    ("Environment 'staging' not found", "environment_not_found", "staging"),
    ("Modal profile 'work' was not found in /root/.modal.toml.", "profile_missing", "work"),
    ("Token missing. Could not authenticate client. If you have", "token_missing", "token new"),
    ("modal.exception.AuthError: Token expired", "token_refused", "token new"),
    ("modal.exception.AuthError: Token ID is malformed", "token_refused", "token new"),
    ("Function call failed: workspace billing cycle spend limit reached", "spend_limit", "raise"),
    (GATED_401, "gated_model_no_token", "google/gemma-2-2b-it"),
    (GATED_403, "gated_model_no_access", f"{HUB}/google/gemma-3-4b-pt"),
    ("Invalid user token. The token from HF_TOKEN", "hub_token_refused", "settings/tokens"),
    (MODEL_NOT_FOUND, "model_not_found", "acme/no-such-model"),
    ("OSError: no/where is not a local folder and is not a valid model identifier listed on",
     "model_not_found", "no/where"),
    (PIP, "no_distribution", "flash-atn"),
    (UV, "unsolvable_packages", "versions"),
    ("Image build for im-aLYB timed out. Please try again with a larger `timeout` parameter.",
     "image_timed_out", "modal image logs im-aLYB"),
    ("Image build for im-aLYB failed with the exception:\nboom", "image_failed", "im-aLYB"),
    ("RuntimeError: CUDA error: no kernel image is available for execution on the device",
     "gpu_architecture", "modal.gpu"),
    ("NVIDIA B200 with CUDA capability sm_100 is not compatible with the current PyTorch",
     "gpu_architecture", "sm_100"),
    ("RuntimeError: The NVIDIA driver on your system is too old (found version 11040).",
     "gpu_driver", "11040"),
    ("CUDA driver version is insufficient for CUDA runtime version", "gpu_driver", "CUDA"),
    ("RuntimeError: Found no NVIDIA driver on your system. Please check", "no_gpu", "modal.gpu"),
    (OUT_OF_GPU, "gpu_memory", "2.32 GiB"),
    ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling", "gpu_memory", "micro"),
    ("Memory cgroup out of memory: Killed process 62769 (python)", "host_memory", "memory_mib"),
    ("RuntimeError: [enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory",
     "host_memory", "memory_mib"),
    ("OSError: [Errno 28] No space left on device: '/composer/runs/r1/model.safetensors'",
     "disk_full", "/composer/runs/r1/model.safetensors"),
    ("FunctionTimeoutError: Task's current input in-wrd5Ktt hit its \ntimeout of 2700s",
     "function_timeout", "2700"),
    ("ModuleNotFoundError: No module named 'src'", "missing_module", "src"),
    ("/usr/bin/python: No module named torch.distributed.run", "missing_module", "torch.distrib"),
    (HUB_429, "rate_limit", "Hugging Face"),
    ("requests.exceptions.HTTPError: 429 Client Error: Too Many Requests for url: " + HUB + "/x",
     "rate_limit", "Hugging Face"),
    ("VolumeListFiles rate limit exceeded. Please wait and retry.", "rate_limit", "the service"),
    ("ConnectionError: Could not connect to the Modal server.", "no_modal", "online"),
    (f"OSError: We couldn't connect to '{HUB}' to load the files", "no_hub", "cache"),
    ("gaierror: [Errno -3] Temporary failure in name resolution", "no_connection", "network"),
    ("Runner interrupted due to worker preemption. Your Function", "preempted", "checkpoint"),
    ("Container terminated due to preemption. Your Function will be restarted", "preempted", ""),
    ("  exitcode  : -9 (pid: 4711)", "killed", "memory_mib"),
    ("container exited with exit code: 137", "killed", "memory_mib"),
    ("collecting rollouts\nKilled\n", "killed", "memory_mib"),
    ("Function 'train' (fu-Q0uQANW4) is waiting to be scheduled on a GPU_L40S worker. We",
     "queued", "L40S"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "name", "word"), KNOWN)
def test_a_known_failure_is_named_and_answered(text: str, name: str, word: str) -> None:
    diagnosis = diagnose(f"step 3/10 reward 0.25\n{text}\nsome last line")
    assert diagnosis is not None
    assert diagnosis.name == name
    said = f"{diagnosis.what} -> {diagnosis.fix}"
    assert word in said
    assert diagnosis.what
    assert diagnosis.fix
    assert said.isprintable()
    assert not set("{}|@?") & set(said)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "step 12/100 reward 0.137 loss 1.9 exit",
        "loaded 137 rows; rate 429 rows/s; timeout 9 s",
        "the volume of the secret modules is limited",
        "killed time waiting for the scheduler",
        "exit code: 1370",
    ],
)
def test_an_ordinary_line_is_no_failure(text: str) -> None:
    assert diagnose(text) is None


def test_a_cause_wins_over_what_it_leads_to() -> None:
    log = [
        "Connection reset by peer, retrying",
        "Runner interrupted due to worker preemption.",
        OUT_OF_GPU,
        "  exitcode  : -9 (pid: 4711)",
        "container exited with exit code: 137",
    ]
    diagnosis = diagnose("\n".join(log))
    assert diagnosis is not None
    assert (diagnosis.name, diagnosis.kind) == ("gpu_memory", "oom")


def test_of_two_missing_modules_the_last_ended_the_run() -> None:
    diagnosis = diagnose("No module named 'flash_attn'\nignored\nNo module named 'src'\n")
    assert diagnosis is not None
    assert diagnosis.what.endswith("no module src")


def test_a_local_run_is_not_told_to_change_modals_fields() -> None:
    for text, *_ in KNOWN:
        diagnosis = diagnose(text, "local")
        assert diagnosis is not None
        launches = {"secret_not_found", "volume_not_found", "environment_not_found"}
        if diagnosis.name not in {*launches, "queued", "function_timeout"}:
            assert "modal." not in diagnosis.fix.replace("modal.com", ""), diagnosis


def test_what_may_go_well_again_is_told_from_what_will_not() -> None:
    transient = {d.name for text, *_ in KNOWN if (d := diagnose(text)) and d.transient}
    assert {"preempted", "rate_limit", "no_modal", "queued"} <= transient
    assert not {"gpu_memory", "missing_module", "secret_not_found", "killed"} & transient


def test_a_hostile_name_reaches_no_terminal() -> None:
    diagnosis = diagnose("Secret 'a\x1b]0;owned\x07b\x9b2J' not found in environment 'main'")
    assert diagnosis is not None
    assert f"{diagnosis.what}{diagnosis.fix}".isprintable()


def test_only_the_end_of_an_endless_log_is_read() -> None:
    assert diagnose(OUT_OF_GPU + "\n" + "x" * MOST_CHARACTERS) is None
    assert diagnose("x" * MOST_CHARACTERS * 4 + "\n" + OUT_OF_GPU) is not None


# Beginnings of what the patterns look for: where a careless one would go back and forth.
_PIECES = st.sampled_from(
    ["429 ", "Access to model a/", "exit code ", "Max retries ", "container ran ", "Token ", "' ",
     "AuthError ", "403 Client Error ", "due to ", "\n", " ", "\t", "{", "}", "{name?@|x}", "\\"]
)  # fmt: skip


@given(st.one_of(st.text(), st.lists(_PIECES | st.text(max_size=5), max_size=60).map("".join)))
def test_no_text_makes_it_raise(text: str) -> None:
    for target in ("modal", "local"):
        diagnosis = diagnose(text, target)
        assert diagnosis is None or diagnosis.what.isprintable()


@pytest.mark.parametrize(
    "piece",
    ["x", " ", "429 ", "exit code ", "container a ", "Access to model a/b/", "AuthError Token ",
     "403 Client Error ", "host='huggingface.co' ", "No module named ", "'"],
)  # fmt: skip
def test_no_text_makes_it_slow(piece: str) -> None:
    text = piece * (2 * MOST_CHARACTERS // len(piece))
    started = time.process_time()
    diagnose(text)
    assert time.process_time() - started < 1.5
