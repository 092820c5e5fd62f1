"""A configuration either becomes a run or says where and why it cannot."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from composer_engine.config import (
    FIELDS,
    ConfigError,
    RunConfig,
    build,
    config_hash,
    differences,
    field_text,
    get_field,
    load,
    looks_like_hub_id,
    parse_field,
    preset_names,
    to_toml,
)
from composer_engine.config_file import ConfigSyntaxError, Value, read_table
from composer_engine.rules import pointless


def complaint(preset: str | None = None, file: Path | None = None, *settings: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(preset, file, settings)
    return str(caught.value)


@pytest.mark.parametrize("name", preset_names())
def test_every_shipped_preset_is_a_run_and_survives_its_own_toml(name: str, tmp_path: Path) -> None:
    config = load(name)
    saved = tmp_path / "saved.toml"
    saved.write_text(to_toml(config), "utf-8")
    assert load(file=saved) == config


def test_a_setting_wins_over_a_file_and_a_file_over_a_preset(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[optimizer]\nsteps = 7\nseed = 5\n")
    config = load("smoke", file, ["optimizer.seed=9"])
    assert config.optimizer.steps == 7
    assert config.optimizer.seed == 9
    assert config.rollout.max_completion_tokens == load("smoke").rollout.max_completion_tokens


def test_the_three_weights_are_three_names_with_their_documented_defaults() -> None:
    loss = RunConfig().loss
    assert (loss.sdpo_weight, loss.replay_weight, loss.dpo_beta) == (0.1, 0.05, 0.1)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("loss.sdpo_wieght=1", "did you mean loss.sdpo_weight?"),
        ("steps=10", "did you mean optimizer.steps?"),
        ("optimizer.steps=ten", "expected a whole number, not 'ten'"),
        ("optimizer.steps=0", "expected a whole number >= 1, not '0'"),
        ("optimizer.learning_rate=nan", "expected a number"),
        ("optimizer.learning_rate=inf", "expected a number"),
        ("loss.sdpo_weight=inf", "expected a number"),
        ("model.dtype=fp8", "expected one of float32, bfloat16, float16, not 'fp8'"),
        ("name=../../etc", "letters, digits"),
        ("hints.feedback_template=nothing", "must hold {prompt} and {hint}"),
        ("optimizer.micro_batches=5", "must divide the 32 completions"),
        ("optimizer.warmup_steps=151", "more than the run's 150 steps"),
        ("report.samples_per_report=33", "more than the 32 completions"),
        ("loss.top_k_tail=true", "there is no tail without loss.top_k"),
        ("hints.sources=", "is empty, so nobody can teach"),
        ("hints.sources=siblng", "expected any of feedback, sibling, reference, not 'siblng'"),
        ("hints.sources=siblng", "did you mean sibling?"),
        ("hints.sources=sibling,sibling", "names sibling twice"),
        ("hints.reference_template={prompt}", "must hold {answer}"),
        ("report.sinks=wandb,wandb", "names wandb twice"),
        ("model.revision=main", "only a hub id (owner/name) has one, and builtin is none"),
        ("model.lora_dora=true", "set model.lora_rank, too"),
        ("model.lora_rank=8", "too small for an adapter"),
        ("model.dtype=float16", "float16 trains on CUDA only"),
        ("rollout.backend=vllm", "vllm needs CUDA"),
        ("data.rename=a:prompt,b:prompt", "makes two columns into prompt"),
        ("data.rename=a:prompt,a:answer", "renames a twice"),
        ("loss.teacher=liv", "expected one of live, frozen, ema, not 'liv'; did you mean live?"),
        ("optimizer.steps", "has no '='"),
        ("=3", "'=3' names no field"),
        ("modal=1", "is a section; its fields are gpu, "),
        ("modal.gpus=1", "did you mean modal.gpu?"),
        ("loss.zzz=1", "those of loss are sdpo_weight, "),
        ("modal.gpu=none, L4", "none means CPU only"),
        ("modal.gpu=H 100", "cannot be 'H 100': H100, or H100:2 for two"),
        ("modal.runs_volume=a b", "letters, digits, '.', '_' and '-'"),
        ("modal.cap_usd=-1", "expected a number > 0, not '-1'"),
    ],
)
def test_a_bad_setting_gets_one_line_that_names_it(setting: str, words: str) -> None:
    said = complaint("smoke", None, setting)
    assert words in said
    assert "\n" not in said
    assert said.startswith("--set")
    field = setting.partition("=")[0]
    assert said.count(field + ":") <= 1


@pytest.mark.parametrize("words", ["", "none", "CPU", " None "])
def test_no_gpu_can_be_asked_for_in_plain_words(words: str, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(f'[modal]\ngpu = "{words}"\n')
    assert load("smoke", None, [f"modal.gpu={words}"]).modal.gpu == ()
    assert load("smoke", file).modal.gpu == ()
    assert load("smoke", None, ["modal.gpu=L4, H100:2"]).modal.gpu == ("L4", "H100:2")


@pytest.mark.parametrize("channel", ["sdpo", "replay"])
def test_channels_alternate_only_where_there_are_both(channel: str) -> None:
    said = complaint("smoke", None, "loss.alternate_channels=true", f"loss.{channel}_weight=0")
    assert f"nothing to alternate with: loss.{channel}_weight is 0" in said


def test_float16_weights_need_an_adapter_and_a_hub_id_may_have_a_revision() -> None:
    float16 = ("model.path=owner/name", "model.device=cuda", "model.dtype=float16")
    assert "cannot be trained themselves" in complaint("smoke", None, *float16)
    config = load("smoke", settings=(*float16, "model.lora_rank=8", "model.revision=main"))
    assert pointless(config) == []


def test_what_has_no_effect_is_told_and_not_refused() -> None:
    idle = ("loss.teacher_ema_rate=0.5", "loss.top_k_of=student", "loss.clip_epsilon=0.3")
    said = pointless(load("smoke", settings=(*idle, "model.lora_alpha=8")))
    assert [line.partition(" ")[0] for line in said] == [
        "loss.teacher_ema_rate",
        "loss.top_k_of",
        "model.lora_alpha",
        "loss.clip_epsilon",
    ]
    assert pointless(load("smoke")) == []


@pytest.mark.parametrize(
    ("path", "is_one"),
    [
        ("Qwen/Qwen2.5-0.5B", True),
        ("data/tasks.jsonl", False),
        ("./owner/name", False),
        ("/owner/name", False),
        ("~/name", False),
        ("owner/name/more", False),
        ("builtin", False),
    ],
)
def test_a_hub_id_is_an_owner_and_a_name(path: str, is_one: bool) -> None:
    assert looks_like_hub_id(path) is is_one


@pytest.mark.parametrize("suffix", ["toml", "yaml"])
def test_a_bad_value_in_a_file_is_named_by_file_and_line(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"run.{suffix}"
    file.write_text(
        {
            "toml": '# a comment\nname = "x"\n\n[ optimizer ]\nseed = 1\n  "steps" = "many"\n',
            "yaml": "# a comment\nname: x\n\noptimizer:\n  seed: 1\n  steps: many\n",
        }[suffix]
    )
    assert f"{file}:6: optimizer.steps: expected a whole number, not 'many'" in complaint(
        None, file
    )


def test_every_mistake_of_a_file_is_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("optimizer:\n  steps: 0\n  sed: 1\nloss:\n  jsd_beta: 2\n")
    said = complaint(None, file).splitlines()
    assert [line.removeprefix(str(file)).split(": ")[0] for line in said] == [":2", ":3", ":5"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.toml", "a = \n", "a.toml:1"),
        ("a.toml", "[x]\na = 1\na = 2\n", "a.toml"),
        ("a.yaml", "a: [\n", "a.yaml"),
        ("a.yaml", "- 1\n- 2\n", "expected sections and fields"),
        ("a.yaml", "name: !!python/object/apply:os.system ['true']\n", "a.yaml:1"),
        ("a.yaml", "? [a]\n: 1\n", "must be plain text"),
        ("a.txt", "name = 'x'\n", "is a .toml, .yaml or .json file"),
        ("a.yaml", "&a [*a]\n", "a.yaml"),
        ("a.yaml", "name: &a {x: *a}\n", "a.yaml"),
        ("a.yaml", "name: 2026-99-99\n", "a.yaml:1"),
        ("a.yaml", "name: a\nname: b\n", "a.yaml:2: name is given twice"),
        ("a.yaml", "loss: &a {a: &b {b: &c {c: 1}}}\n", "nested too deep"),
        ("a.toml", "x = " + "[" * 9999, "nested too deep"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_by_name(
    name: str, text: str, words: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_text(text)
    assert words in complaint(None, file)


def test_a_file_that_is_not_there_or_not_text_is_refused_by_name(tmp_path: Path) -> None:
    assert "cannot read it: No such file" in complaint(None, tmp_path / "none.toml")
    binary = tmp_path / "b.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "is not UTF-8" in complaint(None, binary)
    assert "there is no preset 'smokey'; there are: " in complaint("smokey")


def test_scientific_notation_in_yaml_is_a_number(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("optimizer:\n  learning_rate: 1e-5\n")
    assert load(file=file).optimizer.learning_rate == 1e-5


@given(st.text(max_size=200))
def test_no_file_text_raises_anything_but_a_config_error(text: str) -> None:
    for kind in ("toml", "yaml"):
        try:
            build(_values(text, kind))
        except (ConfigError, ConfigSyntaxError):
            continue


def _values(text: str, kind: str) -> list[Value]:
    return read_table(text, "toml" if kind == "toml" else "yaml", "file")


@given(st.sampled_from(list(FIELDS)), st.text(max_size=60))
def test_whatever_is_typed_into_a_field_is_a_value_or_one_problem(path: str, text: str) -> None:
    try:
        value = parse_field(path, text)
    except ConfigError as error:
        assert len(error.problems) == 1
        assert "\n" not in str(error)
    else:
        assert parse_field(path, field_text(value)) == value


@pytest.mark.parametrize("path", FIELDS)
def test_every_field_explains_itself_and_reads_back_its_own_default(path: str) -> None:
    field = FIELDS[path]
    assert field.description
    assert field.source
    assert field.range
    is_number = isinstance(field.default, int | float) and not isinstance(field.default, bool)
    assert bool(field.unit) == is_number  # one without a unit says that it has none
    assert parse_field(path, field_text(field.default)) == field.default
    assert get_field(RunConfig(), path) == field.default


def test_a_range_is_what_is_checked() -> None:
    assert FIELDS["loss.jsd_beta"].range == "0 to 1"
    assert FIELDS["loss.clip_epsilon"].range == "> 0 and < 1"
    assert FIELDS["rollout.completions_per_prompt"].measure == "completions, >= 2"
    assert FIELDS["loss.jsd_beta"].measure == "0 to 1"
    assert FIELDS["model.dtype"].measure == ""
    assert FIELDS["report.sinks"].range == "at most 3; each: tensorboard, wandb, trackio"


def test_the_hash_follows_the_values_and_nothing_else() -> None:
    assert config_hash(load("smoke")) == config_hash(load("smoke"))
    changed = load("smoke", settings=["optimizer.seed=1"])
    assert config_hash(changed) != config_hash(load("smoke"))
    assert differences(changed, load("smoke")) == [("optimizer.seed", 0, 1)]
