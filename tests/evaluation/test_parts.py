"""A cell's file of predictions: made once, made again when faces or labels change, without the faces that are damaged."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from fi_jax.config import DataConfig, Experiment, ModelConfig
from fi_jax.errors import UserError
from fi_jax.evaluation.cells import Assignment
from fi_jax.evaluation.parts import EvaluationOptions, fill_part
from fi_jax.evaluation.predictions import read_predictions
from fi_jax.inference.answerer import OptionProbabilities
from fi_jax.labels.registry import vocabulary

CELL = Assignment("utkface", "training-free", 0)


class Uniform:
    """Answers every question with equal probabilities, and counts how often it was loaded."""

    vocabulary, is_instruction_tuned, info = vocabulary("all"), True, {}
    config = Experiment(
        name="uniform", data=DataConfig(vocabulary="all", image_size=16), model=ModelConfig(use_segmentation=False)
    )
    loaded = 0

    def load(self):
        self.loaded += 1
        return self

    def answerable(self, questions):
        return list(questions)

    def answer(self, image, mask, questions, *, by_llm=True):
        p = np.zeros((len(image), len(questions), 20), np.float32)
        for i, q in enumerate(questions):
            p[:, i, : len(q.options)] = 1 / len(q.options)
        return OptionProbabilities(p, None, None)


@pytest.fixture
def root(utkface_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("FI_JAX_CACHE", str(tmp_path / "cache"))
    shutil.copytree(utkface_folder, tmp_path / "faces")
    return tmp_path / "faces"


def fill(root, out, model, **options):
    return fill_part(out, CELL, str(root), EvaluationOptions("all", **options), "uniform", model.load)


def test_a_table_is_opened_by_its_schema_and_goes_by_its_name(root, tmp_path):
    names = sorted(path.name for path in root.rglob("*.jpg"))[:4]
    (tmp_path / "t.csv").write_text("file,badge\n" + "".join(f"{name},{i % 2}\n" for i, name in enumerate(names)))
    schema = tmp_path / "t.yaml"
    schema.write_text(
        f"name: own\ntable: t.csv\nimages: {next(root.rglob(names[0])).parent}\npicture: file\n"
        'labels: {badge: {type: yes/no, question: "Is there a badge?", prompt: A badge.}}\n'
    )
    cell = Assignment(f"table:{schema}", "training-free", 0)
    part = fill_part(tmp_path / "out", cell, "", EvaluationOptions("all"), "uniform", Uniform().load)
    lines = list(read_predictions(part.path))
    assert part.path.name.startswith("own-") and {line.dataset for line in lines} == {"own"} and len(lines) == 4


def test_a_part_is_made_once_and_again_when_labels_or_pictures_change(root, tmp_path):
    model, out = Uniform(), tmp_path / "out"
    first = fill(root, out, model)
    assert fill(root, out, model) == first and model.loaded == 1
    # The same data in another folder is the same data.
    moved = root.rename(tmp_path / "elsewhere")
    assert fill(moved, out, model) == first and model.loaded == 1
    # UTKFace writes its labels into the names: gender 0 is male.
    face = sorted((moved / "UTKFace").iterdir())[0]
    age, gender, *rest = face.name.split("_")
    face.rename(face.with_name("_".join([age, str(1 - int(gender)), *rest])))
    second = fill(moved, out, model)
    assert second.path != first.path and model.loaded == 2
    other = sorted((moved / "UTKFace").iterdir())[1]
    shutil.copyfile(sorted((moved / "UTKFace").iterdir())[2], other)
    assert fill(moved, out, model).path not in (first.path, second.path) and model.loaded == 3


def test_a_damaged_part_is_made_again(root, tmp_path):
    model, out = Uniform(), tmp_path / "out"
    part = fill(root, out, model)
    for text in ("", "[]", '{"baseline": 3, "unreadable": {}}'):
        part.path.with_suffix(".json").write_text(text)
        assert fill(root, out, model) == part
    assert model.loaded == 4
    whole = part.path.read_text()
    part.path.write_text(whole.replace("0.", "0.0", 1))
    assert fill(root, out, model) == part and part.path.read_text() == whole


def test_damaged_pictures_are_left_out_and_listed(root, tmp_path):
    faces = sorted((root / "UTKFace").iterdir())
    faces[3].write_bytes(b"no picture")
    part = fill(root, tmp_path / "out", Uniform())
    assert list(part.unreadable) == [f"utkface/{faces[3].name}"]
    assert len({p.image for p in read_predictions(part.path)}) == len(faces) - 1
    for face in faces:
        face.write_bytes(b"no picture")
    with pytest.raises(UserError, match="no picture can be read"):
        fill(root, tmp_path / "out", Uniform())


def test_all_questions_are_asked_but_only_annotated_ones_have_truths(root, tmp_path):
    part = fill(root, tmp_path / "out", Uniform(), all_questions=True, limit=2)
    lines = list(read_predictions(part.path))
    annotated = {p.question for p in lines if p.label is not None}
    assert annotated == {"gender", "race:utkface", "age_group", "age_years"}
    assert {"Smiling", "Goatee", "expression"} <= {p.question for p in lines}
    # Nobody's race is guessed where it is not the set's own question.
    assert {p.question for p in lines if p.task == "race"} == {"race:utkface"}


def test_a_limit_takes_faces_in_hash_order(root, tmp_path):
    part = fill(root, tmp_path / "out", Uniform(), limit=8)
    names = {p.image for p in read_predictions(part.path)}
    assert len(names) == 8 and names != {path.name for path in sorted((root / "UTKFace").iterdir())[:8]}


def test_a_split_without_faces_is_refused(root, tmp_path):
    for face in (root / "UTKFace").iterdir():
        face.unlink()
    with pytest.raises(UserError):
        fill_part(tmp_path, CELL, str(root), replace(EvaluationOptions(), split="val"), "x", Uniform().load)
