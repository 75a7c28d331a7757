"""`fi-jax pack`: smaller weights, temperatures from validation answers alone, nothing overwritten."""

import json

import numpy as np
import pytest

from fi_jax.cli.configs import load_config
from fi_jax.cli.main import main
from fi_jax.evaluation.calibration import apply_temperature
from fi_jax.evaluation.predictions import Prediction, write_predictions
from fi_jax.weights.bundle import TrainedModel, load_model, save_model


@pytest.fixture
def model_folder(tmp_path):
    rng = np.random.default_rng(0)
    leaves = {"head/out/kernel": rng.normal(size=(64, 64)).astype(np.float32)}
    config = load_config(
        "tiny", ["--data.sources.0.root", "/home/somebody/faces", "--train.init-from", "/home/somebody/a"]
    )
    model = TrainedModel(config, leaves, np.zeros((82, 48), np.float32), np.eye(82, dtype=np.float32))
    save_model(tmp_path / "run" / "model", model)
    return tmp_path / "run"


def answers(split: str, temperature: float = 2.0, count: int = 4000) -> list[Prediction]:
    """Yes/no answers that are too sure: the truth is drawn after softening them."""
    rng = np.random.default_rng(1)
    said = rng.uniform(0.02, 0.98, count)
    true = rng.uniform(size=count) < apply_temperature(np.stack([said, 1 - said], -1), temperature)[:, 0]
    return [
        Prediction(
            f"{i}.jpg",
            "celeba",
            "attribute",
            "Smiling",
            "Yes" if t else "No",
            "Yes" if p > 0.5 else "No",
            {"Yes": float(p), "No": float(1 - p)},
            split=split,
        )
        for i, (p, t) in enumerate(zip(said, true, strict=True))
    ]


def test_packs_half_precision_and_the_temperature_that_made_the_answers(model_folder, tmp_path):
    write_predictions(tmp_path / "val" / "predictions.jsonl", answers("val"))
    out = tmp_path / "packed"
    assert main(["pack", str(model_folder), "--out", str(out), "--calibrate", str(tmp_path / "val")]) == 0
    packed, whole = load_model(out), load_model(model_folder)
    assert packed.info["temperatures"]["attribute"] == pytest.approx(2.0, rel=0.1)
    assert np.allclose(packed.leaves["head/out/kernel"], whole.leaves["head/out/kernel"], rtol=1e-3)
    assert (out / "weights.safetensors").stat().st_size < (model_folder / "model/weights.safetensors").stat().st_size
    config = (out / "config.json").read_text()
    assert json.loads(config)["name"] == "tiny" and "/somebody" not in config


def test_the_packed_model_says_which_questions_see_the_face_nearer(model_folder, tmp_path, capsys):
    out = ["--out", str(tmp_path / "packed")]
    assert main(["pack", str(model_folder), *out, "--nearer", "gender", "smiles"]) == 2
    assert "smiles" in capsys.readouterr().err and not (tmp_path / "packed").exists()
    assert main(["pack", str(model_folder), *out, "--nearer", "gender", "Male"]) == 0
    assert load_model(tmp_path / "packed").info["nearer"] == ["gender", "Male"]


def test_test_faces_are_refused_and_nothing_is_written(model_folder, tmp_path, capsys):
    write_predictions(tmp_path / "test" / "predictions.jsonl", answers("test", count=10))
    out = tmp_path / "packed"
    assert main(["pack", str(model_folder), "--out", str(out), "--calibrate", str(tmp_path / "test")]) == 2
    assert "validation only" in capsys.readouterr().err and not out.exists()


def test_a_folder_that_exists_is_kept(model_folder, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("")
    assert main(["pack", str(model_folder), "--out", str(tmp_path / "there")]) == 2
    assert "exists" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["mine"]


def test_how_the_model_answers_can_be_set(model_folder, tmp_path):
    assert main(["pack", str(model_folder), "--out", str(tmp_path / "packed"), "--dtype", "bfloat16", "--mirror"]) == 0
    packed = load_model(tmp_path / "packed")
    assert packed.config.model.dtype == "bfloat16" and packed.info["mirror"]
    assert "mirror" not in load_model(model_folder).info
    assert load_model(model_folder).config.model.dtype == "float32"


@pytest.mark.parametrize(
    ("trained", "flags", "packed"),
    [
        ("bfloat16", ["--dtype", "float32"], "xla"),
        ("float32", [], "xla"),
        ("bfloat16", [], "flash"),
        ("float32", ["--dtype", "bfloat16"], "flash"),
    ],
)
def test_a_float32_model_has_no_flash_attention(tmp_path, trained, flags, packed):
    config = load_config("tiny", ["--model.dtype", trained, "--model.attention", "flash"])
    leaves = {"head/out/kernel": np.zeros((4, 4), np.float32)}
    model = TrainedModel(config, leaves, np.zeros((82, 48), np.float32), np.eye(82, dtype=np.float32))
    save_model(tmp_path / "run" / "model", model)
    assert main(["pack", str(tmp_path / "run"), "--out", str(tmp_path / "packed"), *flags]) == 0
    assert load_model(tmp_path / "packed").config.model.attention == packed
