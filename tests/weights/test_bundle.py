"""A trained model as a folder: everything comes back; what is missing or damaged is named."""

import json
from dataclasses import replace

import numpy as np
import pytest

from fi_jax.config import Experiment, TrainConfig
from fi_jax.errors import UserError
from fi_jax.files import seal
from fi_jax.weights import bundle
from fi_jax.weights.bundle import TrainedModel, bundled_names, find_model, load_model, read_config, save_model

MODEL = TrainedModel(
    Experiment(name="kept", train=TrainConfig(learning_rate_scales=(("head/.*", 0.1),))),
    {"head/log_scale": np.float32(1.5), "head/out/kernel": np.eye(3, dtype=np.float32)},
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.eye(2, dtype=np.float32),
    {"labels": ["Male", "Smiling"], "note": "gesprochen: ü"},
)


@pytest.fixture
def saved(tmp_path):
    save_model(tmp_path / "runs" / "kept" / "model", MODEL)
    return tmp_path / "runs" / "kept"


def test_everything_comes_back(saved):
    for place in (saved, saved / "model", str(saved)):
        back = load_model(place)
        assert back.config == MODEL.config and back.info == MODEL.info
        assert back.leaves.keys() == MODEL.leaves.keys()
        for name, leaf in MODEL.leaves.items():
            assert back.leaves[name].shape == leaf.shape
            np.testing.assert_array_equal(back.leaves[name], leaf)
        np.testing.assert_array_equal(back.prompts, MODEL.prompts)
        np.testing.assert_array_equal(back.graph, MODEL.graph)


def test_saving_again_replaces(saved):
    save_model(saved / "model", replace(MODEL, info={"labels": []}))
    assert load_model(saved).info == {"labels": []}
    assert sorted(path.name for path in (saved / "model").iterdir()) == [
        "config.json",
        "model.json",
        "weights.safetensors",
    ]


def test_unknown_and_unfinished_models_are_named(tmp_path):
    with pytest.raises(UserError, match="no model 'nanoo': neither a run folder nor bundled"):
        find_model("nanoo")
    (tmp_path / "running").mkdir()
    with pytest.raises(UserError, match="did the training run end"):
        find_model(tmp_path / "running")


def test_bundled_models_are_found_by_name(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "BUNDLED", tmp_path / "bundled")
    save_model(tmp_path / "bundled" / "nano", MODEL)
    assert bundled_names() == ["nano"]
    assert find_model("nano") == tmp_path / "bundled" / "nano"
    with pytest.raises(UserError, match=r"bundled \(nano\); did you mean 'nano'"):
        find_model("nanno")


def test_bundled_files_are_those_that_came_with_the_package(tmp_path, monkeypatch):
    """A bit that flips is named at load; every bundled file has its digest, and the digests are right."""
    for folder in bundle.BUNDLED.iterdir():
        files = {path.name for path in folder.iterdir()}
        assert files == {name for file in files if not file.endswith(".sha256") for name in (file, f"{file}.sha256")}
        bundle.require_intact(folder)
    monkeypatch.setattr(bundle, "BUNDLED", tmp_path / "bundled")
    save_model(tmp_path / "bundled" / "nano", MODEL)
    weights = tmp_path / "bundled" / "nano" / "weights.safetensors"
    seal(weights)
    assert load_model("nano").config == MODEL.config
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UserError, match="weights.safetensors in .*nano is not the file that came with fi_jax"):
        load_model("nano")


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.json", None, "config.json' cannot be read"),
        ("config.json", b'{"name": ', "config.json' is damaged: it is not JSON"),
        ("config.json", b"[]", "config.json' is not a JSON object"),
        ("config.json", b'{"nmae": "x"}', "did you mean 'name'"),
        ("config.json", b'{"train": 3}', "config field 'train' is 3"),
        ("config.json", b"\xff\xfe", "config.json' is damaged: it is not JSON"),
        ("config.json", b'{"train": {"steps": "ten"}}', "config field 'train.steps' is 'ten'; it must be of type int"),
        ("config.json", b'{"train": {"trainable": "x"}}', "config field 'train.trainable' is 'x'; it must be a list"),
        ("config.json", b'{"model": {"image_encoder": {"num_heads": 0}}}', "config.json holds no valid config"),
        ("model.json", b'{"temperatures": {"age": "hot"}}', "model.json, temperatures: age is 'hot'"),
        ("model.json", None, "model.json' cannot be read"),
        ("model.json", b"{", "model.json' is damaged: it is not JSON"),
        ("weights.safetensors", b"xx", "not a readable safetensors file"),
    ],
)
def test_damage_is_one_line(saved, file, content, says):
    path = saved / "model" / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=says) as error:
        load_model(saved)
    assert "\n" not in str(error.value)


def test_weights_without_constants_are_no_model(saved):
    from fi_jax.weights.leaves import save_leaves

    save_leaves(saved / "model" / "weights.safetensors", MODEL.leaves)
    with pytest.raises(UserError, match="lacks constants/prompts, constants/graph"):
        load_model(saved)


def test_configs_of_older_models_get_the_defaults_of_new_fields(saved):
    path = saved / "model" / "config.json"
    values = json.loads(path.read_text())
    del values["train"]["ema"]
    path.write_text(json.dumps(values))
    assert read_config(path).train.ema == TrainConfig().ema
