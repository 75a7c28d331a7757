"""Tables over label-free features: what is drawn, what is kept, and that a true gain is seen where a shuffled one is not."""

from dataclasses import replace

import numpy as np
import pytest

from fi_jax.evaluation.metrics import average_precision
from fi_jax.experiments import few_labels
from fi_jax.experiments.descriptors import describe, main_directions
from fi_jax.experiments.few_labels import Cell, Faces, as_table, judge, labelled_faces, measure
from fi_jax.experiments.variants import FEW_LABELS, TABLES, Condition, Table, Variant, of_table


def test_average_precision_by_hand():
    scores, truth = np.array([0.9, 0.8, 0.7, 0.1]), np.array([True, False, True, False])
    weights = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [2, 1, 0, 0], [0, 1, 0, 1]], np.float32)
    found = average_precision(scores, truth, weights)
    np.testing.assert_allclose(found[:3], [(1 + 2 / 3) / 2, 1, 1], rtol=1e-6)
    assert np.isnan(found[3])


def test_descriptors_tell_pictures_apart_and_directions_are_whitened():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
    features = np.stack([describe(picture) for picture in pictures[:6]])
    assert features.shape == (6, 1764 + 192) and np.isfinite(features).all() and np.ptp(features, axis=0).max() > 0
    wide = rng.normal(size=(500, 30)) @ rng.normal(size=(30, 30)) + 3
    directions = main_directions(wide.astype(np.float32), 10)
    seen = directions.of(wide)
    np.testing.assert_allclose(seen.T @ seen / 500, np.eye(10), atol=1e-3)
    np.testing.assert_allclose(seen.mean(0), 0, atol=1e-4)


def test_conditions_draw_and_flip():
    rng = np.random.default_rng(1)
    faces = Faces(rng.normal(size=(400, 5)), (rng.random((400, 3)) < 0.5).astype(np.float32), np.arange(400))
    few = labelled_faces(faces, Condition(30), 0)
    assert few.image.shape == (30, 5) and (labelled_faces(faces, Condition(30), 1).image != few.image).any()
    every = labelled_faces(faces, Condition(0, 0.4), 0)
    order = [int(np.flatnonzero((faces.features == row).all(1))[0]) for row in every.image]
    assert (every.labels != faces.labels[order]).mean() == pytest.approx(0.4, abs=0.05)


def test_gains_and_their_intervals_are_paired():
    """A variant that is better by little on every face gains surely, though the metric itself is uncertain."""
    rng = np.random.default_rng(2)
    truth = rng.random((300, 12)) < 0.3
    judged = Faces(np.zeros((300, 1)), truth.astype(np.float32), np.arange(300) // 3)
    table = Table("t", (Variant("none", "neither", {}), Variant("better", "better", {})), (Condition(30),))
    noise = rng.normal(size=(300, 12))
    scores = {
        Cell(table.conditions[0], name, seed): truth * gain + noise + 0.1 * seed
        for name, gain in (("none", 1.0), ("better", 1.2))
        for seed in (0, 1)
    }
    result = measure(table, scores, judged, [0, 1], [f"l{i}" for i in range(12)])
    first, second = result["rows"]
    assert first["map_gain"] == [0, 0, 0] and first["variant"] == "none"
    gain, low, high = second["map_gain"]
    assert 0 < low < gain < high and second["map"] == pytest.approx(first["map"] + gain, abs=0.02)
    assert len(result["rarest"]) == 10
    lines = as_table(result | {"trained_on": 500}, table).to_markdown().splitlines()
    assert "better" in lines[3] and " to " in lines[3] and " to " not in lines[2]
    ones = np.ones((1, 300), np.float32)
    balanced = judge(scores[Cell(table.conditions[0], "none", 0)], truth, np.arange(10), ones)[2, 0]
    yes = scores[Cell(table.conditions[0], "none", 0)] > 0
    by_hand = [(yes[t, i].mean() + (~yes[~t, i]).mean()) / 2 for i, t in enumerate(truth.T)]
    assert balanced == pytest.approx(np.mean(by_hand), abs=1e-6)


def test_every_cell_is_written_before_it_is_measured_and_made_once(tmp_path, monkeypatch):
    rng = np.random.default_rng(3)
    n, names = 40, FEW_LABELS.variants[1:4]
    labels = (rng.random((200, n)) < 0.4).astype(np.float32)
    features = np.concatenate([labels[:, :20], rng.normal(size=(200, few_labels.FEATURES - 20))], 1).astype(np.float32)
    faces = Faces(features, labels, np.arange(200))
    monkeypatch.setattr(few_labels, "read_faces", lambda *_: (faces, faces))
    monkeypatch.setattr(few_labels, "annotation_records", lambda *_: ())
    base = few_labels.base_config("celeba", 16)
    small = replace(base, train=replace(base.train, steps=3), data=replace(base.data, batch_size=8))
    monkeypatch.setattr(few_labels, "base_config", lambda *_: small)
    prompts = {label: rng.normal(size=16) for label in few_labels.find_dataset("celeba").vocabulary.names}
    table = Table("t", names, (Condition(50),))
    result = few_labels.run_table(table, "celeba", tmp_path, tmp_path, prompts, [0])
    files = sorted((tmp_path / "scores").iterdir())
    assert len(files) == len(names) == len(result["rows"]) and np.load(files[0]).shape == (200, n)
    monkeypatch.setattr(few_labels, "_train", None)
    assert few_labels.run_table(table, "celeba", tmp_path, tmp_path, prompts, [0]) == result


def test_a_label_that_no_face_has_is_judged_by_a_head_that_never_saw_it(monkeypatch):
    """Every label is left out once; the seed says with which others."""
    rng = np.random.default_rng(4)
    faces = Faces(rng.normal(size=(30, 5)), (rng.random((30, 10)) < 0.5).astype(np.float32), np.arange(30))
    condition, trained = Condition(folds=3), []
    folds = few_labels.left_out(condition, 10, 1)
    assert len(folds) == 3 and (np.sum(folds, 0) == 1).all()
    assert any((a != b).any() for a, b in zip(folds, few_labels.left_out(condition, 10, 2), strict=True))

    def train(configs, starts, constants, features, epoch):
        trained.append(features.known)
        return [len(trained)]

    monkeypatch.setattr(few_labels, "train_on_features", train)
    monkeypatch.setattr(few_labels, "label_scores", lambda number, judged: np.full(judged.labels.shape, number))
    monkeypatch.setattr(few_labels, "make_constants", lambda *_: None)
    monkeypatch.setattr(few_labels, "fresh_head", lambda *_: None)
    (scores,) = few_labels._train([(Cell(condition, "none", 1), None)], faces, faces, None, None)
    for number, (fold, known) in enumerate(zip(folds, trained, strict=True), 1):
        assert not known[:, fold].any() and known[:, ~fold].all() and (scores[:, fold] == number).all()


def test_tables_are_variants_of_a_config():
    for table in TABLES.values():
        assert len({variant.name for variant in table.variants}) == len(table.variants)
    made = dict(
        (variant.name, config) for variant, config in of_table(few_labels.base_config("celeba", 16), TABLES["missing"])
    )
    assert {config.data.withheld for config in made.values()} == {0.5}
    assert made["logic_vocabulary"].loss.logic_scope == "vocabulary" and made["logic_off"].loss.head_logic == 0
