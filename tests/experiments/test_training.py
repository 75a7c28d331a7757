"""From Python: a run that validates, its evaluation, and a fine-tuning on a table whose head is fitted first."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

import fi_jax
from fi_jax.errors import UserError
from fi_jax.experiments.training import train_runs
from fi_jax.parallel.hosts import Hosts
from fi_jax.weights.bundle import load_model

COMMON = {
    "model.use_segmentation": False,
    "train.steps": 2,
    "train.warmup_steps": 0,
    "train.checkpoint_every": 2,
    "data.batch_size": 8,
    "data.augment": False,
}
SCHEMA = """
name: own
table: t.csv
picture: file
split: part
labels: {bright: {type: yes/no, question: "Is the picture bright?", prompt: A bright picture.}}
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("python")
    faces = {"data.sources": [{"name": "synthetic_faces", "root": "count=40"}]}
    validated = {"train.evaluate_every": 1, "train.evaluate_faces": 4}
    config = fi_jax.load_config("tiny", COMMON | faces | validated | {"name": "base", "data.limit": 20})
    return fi_jax.train(config, folder / "runs")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(24):
        pixels = rng.integers(0, 90, (40, 40, 3)) + 160 * (i % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:02d}.png")
        rows.append((f"{i:02d}.png", i % 2, "train" if i < 16 else "test"))
    with (folder / "t.csv").open("w", newline="") as opened:
        csv.writer(opened).writerows([("file", "bright", "part"), *rows])
    (folder / "own.yaml").write_text(SCHEMA)
    return folder / "own.yaml"


@pytest.mark.slow
def test_a_run_validates_and_is_evaluated(base, tmp_path):
    assert base.is_finished and base.best is not None
    assert {"loss", "val/accuracy", "val/best", "val/llm/synthetic_faces/gender/accuracy"} <= base.metrics.keys()
    lines = [json.loads(line) for line in (base.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "val/accuracy" in line] == [0, 1, 2]
    found = fi_jax.evaluate(
        base.best, {"synthetic_faces": "count=40"}, tmp_path, split="val", limit=4, head_only=True
    ).values()
    assert 0 <= found["head", "synthetic_faces", "gender", "accuracy"] <= 1


@pytest.mark.slow
def test_the_head_learns_a_table_first_and_keeps_what_it_said(base, table, tmp_path):
    changes = {
        "name": "own",
        "data.sources": [{"name": f"table:{table}"}],
        "data.vocabulary": "faces+tables",
        "train.init_from": str(base.folder),
        "train.head_steps": 200,
        "train.trainable": ["llm/.*/lora_[ab]"],
        "loss.head_bce": 0.0,
    }
    config = fi_jax.load_config("tiny", COMMON | changes)
    run = fi_jax.train(config, tmp_path / "runs")
    found = fi_jax.evaluate(run.folder, {f"table:{table}": ""}, tmp_path / "out", head_only=True).values()
    assert found["head", "own", "attribute", "mean_accuracy"] == 1.0
    # The stage after it leaves the head as it was fitted.
    head, trained, before = load_model(run.folder / "head"), load_model(run.folder), load_model(base.folder)
    for path in ("head/image/kernel", "knowledge/layer_0/kernel"):
        np.testing.assert_array_equal(head.leaves[path], trained.leaves[path])
        assert np.abs(head.leaves[path] - before.leaves[path]).max() > 0
    photos = sorted(table.parent.glob("*.png"))
    asked = fi_jax.load(base.folder).questions[:10]
    said = [
        [face[0].answers[0].probabilities for face in fi_jax.load(model).predict(photos, questions=asked[:1], by="head", whole=True)]
        for model in (base.folder, run.folder)
    ]  # fmt: skip
    assert np.abs(np.subtract(*said)).mean() < 0.05
    with pytest.raises(UserError, match="set train.head_steps to 0"):
        train_runs([config], [tmp_path / "other"], Hosts())
