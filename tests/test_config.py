"""Configs: every field checked when made, through JSON and back, and dotted names."""

import json
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fi_jax.cli.configs import load_config, override
from fi_jax.config import (
    DataConfig,
    Experiment,
    KnowledgeConfig,
    LlmConfig,
    LoraConfig,
    LossConfig,
    MeshConfig,
    ModelConfig,
    RopeScaling,
    SourceConfig,
    TrainConfig,
    VitConfig,
)
from fi_jax.config_tree import RETIRED, flat_fields, from_dict, to_dict
from fi_jax.errors import UserError, did_you_mean, require_choice
from fi_jax.experiments.configs import config_names


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LoraConfig(rank=-1), "lora.rank is -1"),
        (lambda: TrainConfig(learning_rate=float("inf")), "learning_rate is inf; it must be finite"),
        *(
            (lambda name=name: Experiment(name=name), "folder under the runs")
            for name in ("", ".", "../x", "/x", "a\nb")
        ),
        (lambda: LoraConfig(alpha=0.0), "lora.alpha"),
        # The other targets are right: a typo would silently train less.
        (lambda: VitConfig(image_size=30, patch_size=8), "image_size 30 is not a multiple of patch_size 8"),
        (lambda: VitConfig(hidden_size=100, num_heads=16), "hidden_size 100"),
        (lambda: VitConfig(image_size=112, patch_size=16, merge=2), "merge 2 does not divide the 7x7"),
        (lambda: VitConfig(num_layers=2, feature_layer=-4), "feature_layer -4"),
        (lambda: VitConfig(hidden_act="swish"), "hidden_act.*swish"),
        (lambda: RopeScaling(kind="yarn"), "kind.*yarn"),
        (lambda: LlmConfig(num_heads=9, num_kv_heads=2), "num_heads 9"),
        (lambda: LlmConfig(head_dim=7), "head_dim 7"),
        (lambda: KnowledgeConfig(tau=1.5), "knowledge.tau"),
        (lambda: KnowledgeConfig(omega=1.0), "knowledge.omega"),
        (lambda: KnowledgeConfig(depth=0), "knowledge.depth"),
        (lambda: KnowledgeConfig(graph="cooccurence"), "did you mean 'cooccurrence'"),
        (lambda: ModelConfig(dtype="float16"), "dtype.*float16"),
        (lambda: ModelConfig(remat="some"), "remat.*some"),
        (lambda: DataConfig(batch_size=0), "data.batch_size"),
        (lambda: DataConfig(max_unreadable=1.1), "data.max_unreadable"),
        (lambda: DataConfig(questions_per_face=-1), "questions_per_face"),
        (lambda: DataConfig(template="llama"), "template.*llama"),
        (lambda: LossConfig(logic=-1.0), "loss.logic"),
        (lambda: LossConfig(logic_form="lpc"), "did you mean 'lcp'"),
        (lambda: TrainConfig(steps=0), "train.steps"),
        (lambda: TrainConfig(stage="instruction"), "did you mean 'instruct'"),
        (lambda: TrainConfig(accumulate=0), "train.accumulate"),
        (lambda: TrainConfig(ema=1.0), "train.ema"),
        # Both divide the step's number in the loop.
        (lambda: TrainConfig(log_every=0), "train.log_every"),
        (lambda: TrainConfig(checkpoint_every=0), "train.checkpoint_every"),
        (lambda: TrainConfig(keep_checkpoints=0), "train.keep_checkpoints"),
        (lambda: TrainConfig(warmup_steps=-1), "train.warmup_steps"),
        (lambda: TrainConfig(learning_rate=-1.0), "train.learning_rate"),
        (lambda: TrainConfig(patience=2), "train.patience needs train.evaluate_every"),
        (lambda: MeshConfig(-1, -1, 1), "at most one axis"),
        (lambda: MeshConfig(0, 1, 1), "sizes are positive"),
        (lambda: Experiment(data=DataConfig(batch_size=6), train=TrainConfig(accumulate=4)), "not a multiple"),
    ],
)
def test_a_bad_value_is_refused_in_one_line(make, says):
    with pytest.raises(UserError, match=says) as error:
        make()
    assert "\n" not in str(error.value)


def test_configs_are_frozen():
    with pytest.raises(FrozenInstanceError):
        Experiment().name = "other"


@pytest.mark.parametrize("name", config_names())
def test_released_configs_survive_json(name):
    config = load_config(name)
    assert from_dict(Experiment, json.loads(json.dumps(to_dict(config)))) == config


def test_unknown_keys_are_named():
    values = to_dict(Experiment())
    values["train"]["lerning_rate"] = 1
    with pytest.raises(UserError, match="'lerning_rate'.*did you mean 'learning_rate'"):
        from_dict(Experiment, values)


def test_fields_that_are_gone_are_read_over_and_explained(monkeypatch):
    monkeypatch.setitem(RETIRED, "train.momentum", "AdamW has train.adam_b2")
    old = to_dict(Experiment())
    old["train"]["momentum"] = 100
    assert from_dict(Experiment, old) == Experiment()
    with pytest.raises(UserError, match="--train.momentum is gone: AdamW has"):
        override(Experiment(), ["--train.momentum", "5"])


def test_flat_fields_name_every_leaf():
    config = Experiment(data=DataConfig(sources=(SourceConfig("utkface", "here"),)))
    fields = dict(flat_fields(config))
    assert fields["model.llm.lora.rank"] == 0
    assert fields["data.sources.0.root"] == "here"
    assert "model" not in fields


@settings(max_examples=10)
@given(st.integers(1, 10**6), st.floats(1e-8, 1.0), st.booleans(), st.sampled_from(["align", "instruct"]))
def test_overrides_reach_their_field(steps, rate, augment, stage):
    flags = ["--train.steps", str(steps), f"--train.learning-rate={rate}", "--train.stage", stage]
    flags += ["--data.augment" if augment else "--data.no-augment"]
    config = override(Experiment(), flags)
    assert config.train == replace(TrainConfig(), steps=steps, learning_rate=rate, stage=stage)
    assert config.data == replace(DataConfig(), augment=augment)


def test_sources_are_overridden_by_their_place():
    config = Experiment(data=DataConfig(sources=(SourceConfig("utkface", "a"), SourceConfig("expw", "b"))))
    changed = override(config, ["--data.sources.1.root", "c"])
    assert [source.root for source in changed.data.sources] == ["a", "c"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--train.lerning-rate", "1"], "unknown option '--train.lerning-rate'; did you mean '--train.learning_rate'"),
        (["--learning-rate", "1"], "did you mean"),
        (["--train.steps", "ten"], "--train.steps"),
        (["--train.steps"], "--train.steps"),
        (["--train.stage", "aligned"], "--train.stage"),
        (["--train.steps", "0"], "train.steps is 0"),
        (["stray"], "stray"),
    ],
)
def test_bad_overrides_are_one_line(flags, says):
    with pytest.raises(UserError, match=says) as error:
        override(Experiment(), flags)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def config(:", "SyntaxError"),
        ("x = 1", "no function config"),
        ("def config():\n    return 3", "returns int"),
        ("from fi_jax.config import *\ndef config():\n    return Experiment(nmae='x')", "nmae"),
        (
            "from fi_jax.config import *\ndef config():\n    return Experiment(train=TrainConfig(steps=0))",
            "train.steps",
        ),
        ("import no_such_module_at_all", "no_such_module_at_all"),
        # Nothing was done, which is no success.
        ("raise SystemExit(0)", "SystemExit: 0"),
        (r"raise ValueError('two\nlines')", "two lines"),
    ],
)
def test_a_broken_config_file_is_one_line(tmp_path, text, says):
    file = tmp_path / "broken.py"
    file.write_text(text)
    with pytest.raises(UserError, match=says) as error:
        load_config(str(file))
    assert "\n" not in str(error.value)


def test_guesses():
    assert did_you_mean("tinny", ["tiny", "nano"]) == "; did you mean 'tiny'?"
    assert did_you_mean("zzzz", ["tiny", "nano"]) == ""
    with pytest.raises(UserError, match=r"config 'tinny' is unknown \(known: tiny, nano\)"):
        require_choice("config", "tinny", ["tiny", "nano"])
