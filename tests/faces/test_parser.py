from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fi_jax.data.datasets import open_source
from fi_jax.data.records import FaceRecord
from fi_jax.errors import UserError
from fi_jax.faces import parser_training as training
from fi_jax.faces.masks import flip as flip_mask
from fi_jax.faces.parser import FaceParser, load_parser, mirrored_probabilities, parse, parse_crop, save_parser
from fi_jax.faces.parser_augment import ParserAugmentation, augment
from fi_jax.faces.parser_crossval import (
    Pairs,
    cross_validate,
    folds_of,
    intersection_over_union,
    make_trainer,
    read_pairs,
    report,
    score,
    summary,
    train,
)
from fi_jax.labels.face_parts import CLASSES, FLIPPED, NUM_CLASSES
from fi_jax.models.segformer import Segformer, SegformerConfig

REAL = Path("../shared/data/celebamask_hq")
TINY = SegformerConfig(
    depths=(1, 1),
    hidden_sizes=(8, 16),
    num_heads=(1, 2),
    sr_ratios=(4, 2),
    patch_sizes=(7, 3),
    strides=(2, 2),
    mlp_ratios=(2, 2),
    decoder_hidden_size=32,
    hidden_act="gelu_tanh",
    drop_path=0.0,
)
STILL = ParserAugmentation(
    paste=0.0, min_scale=1.0, max_scale=1.0, aspect=0.0, rotation=0.0, shift=0.0, flip=0.0, brightness=0.0,
    contrast=0.0, saturation=0.0, tint=0.0, gamma=0.0, grey=0.0, blur=0.0, noise=0.0, occlude=0.0,
)  # fmt: skip
SETTINGS = training.ParserTraining(
    model=TINY, augmentation=STILL, input_size=64, source_size=64, steps=60, batch_size=4, learning_rate=3e-3,
    warmup_steps=5, ema=0.9, steps_per_dispatch=20,
)  # fmt: skip


def toy_faces(count=12, size=64, seed=0):
    """Discs of "skin" on dark ground, a bar of one of two "lips" below: enough to learn in seconds."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    images, masks = [], []
    for i in range(count):
        cy, cx, r = rng.uniform(24, 40, 2).tolist() + [rng.uniform(12, 20)]
        mask = np.where((y - cy) ** 2 + (x - cx) ** 2 < r**2, CLASSES.index("skin"), 0)
        lip = CLASSES.index("u_lip") if i % 2 else CLASSES.index("hat")
        mask[int(cy) : int(cy) + 6, int(cx) - 8 : int(cx) + 8] = lip
        colours = np.zeros((NUM_CLASSES, 3))
        colours[[1, CLASSES.index("u_lip"), CLASSES.index("hat")]] = [(200, 150, 120), (220, 20, 40), (20, 40, 220)]
        images.append(np.clip(colours[mask] + rng.normal(0, 10, (size, size, 3)), 0, 255).astype(np.uint8))
        masks.append(mask.astype(np.uint8))
    return Pairs([f"face{i}" for i in range(count)], np.stack(images), np.stack(masks))


transform = jax.jit(augment, static_argnums=(5, 6))


def test_augmentation_at_zero_strength_changes_nothing():
    pairs = toy_faces(3)
    image, mask, inside = transform(jax.random.key(0), pairs.images, pairs.masks, pairs.images, pairs.masks, 64, STILL)
    np.testing.assert_allclose(image, pairs.images, atol=0.5)
    np.testing.assert_array_equal(mask, pairs.masks)
    assert bool(inside.all())


def test_a_flip_swaps_left_and_right_classes():
    rng = np.random.default_rng(0)
    masks = rng.integers(0, NUM_CLASSES, (4, 64, 64)).astype(np.uint8)
    images = np.repeat(masks[..., None], 3, -1) * 10
    always = replace(STILL, flip=1.0)
    image, mask, _ = transform(jax.random.key(1), images, masks, images, masks, 64, always)
    np.testing.assert_array_equal(mask, flip_mask(masks))
    np.testing.assert_allclose(image, images[:, :, ::-1], atol=0.5)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_the_map_moves_with_the_picture(seed):
    """The picture's colour is its class, so the two can be compared after any geometry."""
    size = 64
    blocks = np.kron(np.random.default_rng(seed).integers(0, NUM_CLASSES, (4, 4)), np.ones((16, 16)))
    masks = blocks[None].astype(np.uint8)
    images = np.repeat(masks[..., None], 3, -1) * 13
    strength = replace(STILL, min_scale=0.6, max_scale=1.25, aspect=0.15, rotation=0.4, shift=0.1)
    image, mask, inside = transform(jax.random.key(seed), images, masks, images, masks, size, strength)
    near = np.abs(np.asarray(image)[..., 0] / 13 - np.asarray(mask)) < 0.5
    # Where neighbouring blocks mix, the nearest class and the mixed colour may differ.
    assert near[np.asarray(inside)].mean() > 0.85


def test_accessories_are_pasted_with_their_pixels():
    pairs = toy_faces(2)
    hat = CLASSES.index("hat")
    donor_image, donor_mask = pairs.images[::-1], pairs.masks[::-1]
    image, mask, _ = transform(
        jax.random.key(0), pairs.images, pairs.masks, donor_image, donor_mask, 64, replace(STILL, paste=1.0)
    )
    pasted = donor_mask == hat
    assert pasted.any() and (np.asarray(mask)[pasted] == hat).all()
    np.testing.assert_allclose(np.asarray(image)[pasted], donor_image[pasted], atol=0.5)
    np.testing.assert_array_equal(np.asarray(mask)[~pasted], pairs.masks[~pasted])


def test_loss_is_zero_for_a_perfect_map_only_and_ignores_pixels_outside():
    label = jnp.asarray(toy_faces(2).masks, jnp.int32)
    valid = jnp.ones(label.shape, bool)
    weight = jnp.ones(NUM_CLASSES)
    perfect = jax.nn.one_hot(label, NUM_CLASSES) * 50
    assert float(training.segmentation_loss(perfect, label, valid, weight, 1.0)) < 1e-5
    wrong = perfect.at[:, :8].set(jax.nn.one_hot(5, NUM_CLASSES) * 50)
    assert float(training.segmentation_loss(wrong, label, valid, weight, 1.0)) > 1
    assert float(training.segmentation_loss(wrong, label, valid.at[:, :8].set(False), weight, 1.0)) < 1e-5


def test_class_weights_and_repeat_factors():
    masks = np.zeros((10, 4, 4), np.uint8)
    masks[:, 0] = 1
    masks[0, 1, 0] = CLASSES.index("hat")
    weight = training.class_weights(masks, 0.25)
    frequency = np.bincount(masks.ravel(), minlength=NUM_CLASSES) / masks.size
    assert np.isclose((weight * frequency).sum(), 1, atol=1e-5)
    assert weight[0] < weight[1] < weight[CLASSES.index("hat")]
    np.testing.assert_allclose(training.repeat_factors(training.classes_shown(masks), 0.4), [2.0] + [1.0] * 9)


def test_held_out_pictures_are_never_drawn():
    pairs = toy_faces(12)
    held_out = np.arange(12) < 4
    pictures = training.on_device(pairs.images, pairs.masks, SETTINGS, held_out)
    for log_weight in (pictures.log_weight, pictures.log_donor):
        drawn = np.asarray(jax.random.categorical(jax.random.key(0), log_weight, shape=(2000,)))
        assert drawn.min() >= 4 and len(np.unique(drawn)) >= 4
    with pytest.raises(UserError, match="every picture is held out"):
        training.on_device(pairs.images, pairs.masks, SETTINGS, np.ones(12, bool))


def test_folds_depend_on_names_alone_and_cover_everything():
    names = [f"{i}.jpg" for i in range(400)]
    fold = folds_of(names, 5)
    assert set(fold) == set(range(5)) and np.bincount(fold).min() > 50
    np.testing.assert_array_equal(folds_of(names[::-1], 5), fold[::-1])


def test_intersection_over_union_by_hand():
    confusion = np.zeros((NUM_CLASSES, NUM_CLASSES), int)
    confusion[0, 0], confusion[0, 1], confusion[1, 1], confusion[1, 0] = 6, 2, 3, 1
    iou = intersection_over_union(confusion)
    np.testing.assert_allclose(iou[:2], [6 / 9, 3 / 6])
    assert np.isnan(iou[2:]).all()
    scores = summary(confusion, np.array([1.0, 0.5] + [0.0] * 17))
    assert np.isclose(scores["mean"], (6 / 9 + 3 / 6) / 2) and np.isclose(scores["mean_frequent"], 6 / 9)


def test_mirrored_prediction_commutes_with_mirroring():
    model = Segformer(TINY)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    image = toy_faces(2).images
    plain = mirrored_probabilities(TINY, variables, image)
    mirrored = mirrored_probabilities(TINY, variables, image[:, :, ::-1])
    np.testing.assert_allclose(plain, mirrored[:, :, ::-1][..., FLIPPED], atol=1e-5)


@pytest.mark.slow
def test_scanned_and_single_steps_agree():
    pairs = toy_faces(6)
    small = replace(SETTINGS, batch_size=2)
    trainer = training.ParserTrainer(small, training.class_weights(pairs.masks, 0.25))
    pictures = training.on_device(pairs.images, pairs.masks, small)
    key = jax.random.key(3)
    _, together = trainer.run(trainer.init(jax.random.key(0)), key, pictures, 2)
    state = trainer.init(jax.random.key(0))
    single = []
    for _ in range(2):
        state, loss = trainer.run(state, key, pictures, 1)
        single.append(float(loss[0]))
    np.testing.assert_allclose(together, single, rtol=1e-4)


@pytest.mark.slow
def test_learns_validates_and_survives_storage(tmp_path, monkeypatch):
    pairs = toy_faces(16)
    lines = []
    monkeypatch.setattr("fi_jax.faces.parser_crossval.log.info", lines.append)
    trainer = make_trainer(pairs, SETTINGS)
    scores = cross_validate(trainer, pairs, 2)["cross_validation"]
    parser = train(trainer, pairs)
    assert scores["iou"]["skin"] > 0.6 and scores["iou"]["background"] > 0.8
    assert "| skin | 100% |" in report(scores)
    assert any("fold 1" in text for text in lines)

    for precision in ("float32", "float16", "int8"):
        save_parser(tmp_path / precision, parser, precision)
        again = load_parser(str(tmp_path / precision))
        assert (again.config, again.input_size, again.info) == (parser.config, parser.input_size, parser.info)
        same = parse(again.config, again.variables, pairs.images) == parse(
            parser.config, parser.variables, pairs.images
        )
        assert np.mean(same) > {"float32": 0.99999, "float16": 0.99, "int8": 0.97}[precision]
    assert score(parser, pairs)["iou"]["skin"] > 0.6
    assert parse_crop(parser, pairs.images[0].repeat(3, 0).repeat(3, 1)).shape == (192, 192)


def test_damaged_parsers_are_named(tmp_path):
    variables = jax.jit(Segformer(TINY).init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    save_parser(tmp_path, FaceParser(TINY, 64, variables), "float16")
    description = (tmp_path / "parser.json").read_text()
    (tmp_path / "parser.json").write_text(description.replace('"decoder_hidden_size": 32', '"decoder_hidden_size": 48'))
    with pytest.raises(UserError, match="does not fit parser.json"):
        load_parser(str(tmp_path))
    (tmp_path / "parser.json").write_text(description[:100])
    with pytest.raises(UserError, match="parser.json is damaged"):
        load_parser(str(tmp_path))
    (tmp_path / "parser.json").write_text(description)
    weights = (tmp_path / "weights.safetensors").read_bytes()
    (tmp_path / "weights.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_parser(str(tmp_path))
    (tmp_path / "parser.json").unlink()
    with pytest.raises(UserError, match="no face parser in"):
        load_parser(str(tmp_path))


def test_settings_and_data_are_checked():
    with pytest.raises(UserError, match="is not a multiple of"):
        replace(SETTINGS, input_size=101)
    with pytest.raises(UserError, match="needs steps and batch_size above 0"):
        replace(SETTINGS, steps=0)
    with pytest.raises(UserError, match="have segmentation maps"):
        read_pairs([FaceRecord("x", "k", "train", b"")], 64)


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.skipif(not REAL.exists(), reason="the research data sets are not beside the checkout")
def test_loss_falls_on_real_pairs():
    pairs = read_pairs(open_source("celebamask_hq", REAL).records("all")[:60], 96)
    settings_ = replace(SETTINGS, augmentation=ParserAugmentation(), source_size=96, steps=80, batch_size=8)
    trainer = training.ParserTrainer(settings_, training.class_weights(pairs.masks, 0.25))
    _, losses = trainer.fit(training.on_device(pairs.images, pairs.masks, settings_), 0, "real")
    assert losses[-10:].mean() < 0.75 * losses[:5].mean()
