import time

import numpy as np
import pytest

from fi_jax.data.datasets import open_source
from fi_jax.data.examples import make_example
from fi_jax.data.records import encode_labels
from fi_jax.data.synthetic.face import draw_face, traits_of
from fi_jax.errors import UserError
from fi_jax.faces.masks import read_mask
from fi_jax.knowledge.correlation import conditional, empty, update
from fi_jax.labels.face_parts import CLASSES, NUM_CLASSES
from fi_jax.labels.registry import vocabulary
from fi_jax.labels.rule_tables import rules_for
from fi_jax.pictures.decode import decode

FACES = vocabulary("faces")


@pytest.fixture(scope="module")
def drawn():
    return [draw_face(5, i) for i in range(150)]


@pytest.fixture(scope="module")
def annotated():
    records = open_source("synthetic_faces", "count=3000").records("all")
    labels, known = zip(*(encode_labels(record, FACES) for record in records), strict=True)
    return np.stack(labels), np.stack(known)


def test_a_face_is_a_pure_function_of_seed_and_index():
    first, again, other, seed = draw_face(0, 3), draw_face(0, 3), draw_face(0, 4), draw_face(1, 3)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.mask, again.mask)
    assert (first.labels, first.age) == (again.labels, again.age)
    assert np.abs(first.image.astype(int) - other.image).mean() > 5
    assert np.abs(first.image.astype(int) - seed.image).mean() > 5
    assert first.image.shape == (128, 128, 3) and first.mask.shape == (128, 128)
    assert first.image.dtype == first.mask.dtype == np.uint8
    assert draw_face(0, 3, 96).image.shape == (96, 96, 3)


def test_every_class_is_drawn_and_face_parts_are_always_there(drawn):
    shown = np.stack([np.bincount(face.mask.ravel(), minlength=NUM_CLASSES) for face in drawn])
    assert (shown > 0).any(0).all() and shown.shape[1] == NUM_CLASSES
    for part in ("skin", "nose", "u_lip", "l_lip", "neck"):
        assert (shown[:, CLASSES.index(part)] > 5).all(), part
    share = shown.mean(0) / shown[0].sum()
    assert 0.12 < share[CLASSES.index("skin")] < 0.4 and 0.08 < share[CLASSES.index("hair")] < 0.4


def test_the_map_agrees_with_the_labels(drawn):
    for face in drawn:
        count = dict(zip(CLASSES, np.bincount(face.mask.ravel(), minlength=NUM_CLASSES), strict=True))
        assert (count["eye_g"] > 0) == face.labels["Eyeglasses"]
        assert (count["hat"] > 0) == face.labels["Wearing_Hat"]
        assert (count["ear_r"] > 0) == face.labels["Wearing_Earrings"]
        assert (count["neck_l"] > 0) == face.labels["Wearing_Necklace"]
        assert (count["mouth"] > 0) == face.labels["Mouth_Slightly_Open"]
        assert (count["hair"] == 0) == face.labels["Bald"]
        if not face.labels["Eyeglasses"]:
            assert count["l_eye"] > 3 and count["r_eye"] > 3


def test_left_is_the_persons_left(drawn):
    columns = np.arange(128)
    for face in drawn[:40]:
        for left, right in (("l_brow", "r_brow"), ("l_eye", "r_eye"), ("l_ear", "r_ear")):
            at = [
                (columns * (face.mask == CLASSES.index(part)).sum(0)).sum()
                / np.maximum((face.mask == CLASSES.index(part)).sum(), 1)
                for part in (left, right)
            ]
            assert at[0] > at[1] or min(at) == 0


def test_colours_follow_labels(drawn):
    def brightness(face, part):
        return face.image[face.mask == CLASSES.index(part)].mean()

    def mean(part, label):
        return np.mean(
            [brightness(f, part) for f in drawn if f.labels[label] and (f.mask == CLASSES.index(part)).any()]
        )

    assert mean("hair", "Black_Hair") < mean("hair", "Brown_Hair") < mean("hair", "Blond_Hair")
    assert mean("hair", "Black_Hair") + 60 < mean("hair", "Gray_Hair")
    assert mean("skin", "Pale_Skin") > mean("skin", "Young")


def test_labels_obey_every_rule(annotated):
    labels, known = annotated
    on = {name: labels[:, i] > 0.5 for i, name in enumerate(FACES.names)}
    rules = rules_for(FACES)
    assert len(rules) > 30
    for rule in rules:
        members = np.stack([on[name] for name in rule.labels], 1)
        if rule.kind == "implies":
            broken = on[rule.premise] & ~members.any(1)
        elif rule.kind == "excludes":
            broken = on[rule.premise] & members.any(1)
        elif "years:0-4" in rule.labels:
            # Two-hot: half way between two bins neither is above one half.
            broken = ~np.isclose(labels[:, [FACES.index(name) for name in rule.labels]].sum(1), 1)
        else:
            broken = members.sum(1) > 1 if rule.kind == "at_most_one" else members.sum(1) != 1
        assert np.stack([known[:, FACES.index(name)] for name in rule.labels], 1).all(), rule
        assert not broken.any(), str(rule)


def test_unknown_attributes_are_masked_and_the_others_vary(annotated):
    labels, known = annotated
    unknown = {name for i, name in enumerate(FACES.names) if not known[:, i].all()}
    assert unknown == {"Attractive", "High_Cheekbones", "Oval_Face", "Pointy_Nose"}
    for i, name in enumerate(FACES.names):
        if name not in unknown:
            assert 0.004 < labels[:, i].mean() < 0.9 or name.startswith("years:"), name


def test_labels_occur_together_as_real_ones_do(annotated):
    labels, known = annotated
    p = conditional(update(empty(len(FACES)), labels, known))

    def given(a, b):
        return p[FACES.index(a), FACES.index(b)]

    assert given("Heavy_Makeup", "Wearing_Lipstick") > 0.8 and given("Heavy_Makeup", "Male") == 0
    assert given("Goatee", "Male") == 1 and given("Gray_Hair", "Young") < 0.3
    assert given("Smiling", "Mouth_Slightly_Open") > 2 * given("expression:neutral", "Mouth_Slightly_Open")
    assert given("Wearing_Necktie", "Male") > 0.9 and given("age:70+", "Gray_Hair") > given("age:20-29", "Gray_Hair")


def test_source_splits_and_draws_on_demand():
    source = open_source("synthetic_faces", "count=200,seed=9")
    parts = {split: source.records(split) for split in ("train", "val", "test")}
    assert sum(map(len, parts.values())) == 200 and len(parts["train"]) > 130 and all(parts.values())
    longer = open_source("synthetic_faces", "seed=9,count=300").records("all")
    assert [r.key for r in longer[:200]] == [r.key for r in source.records("all")]
    record = source.records("all")[7]
    face = draw_face(9, 7)
    np.testing.assert_array_equal(decode(record.image), face.image)
    np.testing.assert_array_equal(read_mask(record.mask), face.mask)
    assert record.age == face.age and dict(record.labels) == dict(face.labels)
    example = make_example(record, FACES, 64)
    assert example["image"].shape == (64, 64, 3) and example["mask"].max() > 0
    assert len(open_source("synthetic_faces").records("all")) == 2000


@pytest.mark.parametrize("root", ["count=0", "some/folder", "count=-3", "count=10;seed=2"])
def test_bad_roots_are_refused(root):
    with pytest.raises(UserError, match="count"):
        open_source("synthetic_faces", root)


def test_fast_enough_for_the_demo():
    start = time.process_time()
    for i in range(40):
        draw_face(2, i)
    # About 100 a second on an idle core.
    assert 40 / (time.process_time() - start) > 25
    assert traits_of(2, 0) == draw_face(2, 0).traits
