"""Pictures for the encoders: normalisation, colour-coded maps, and augmentation whose map follows the picture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fi_jax.config import ModelConfig, VitConfig
from fi_jax.labels.face_parts import FLIPPED, PALETTE
from fi_jax.models.pixels import encoder_pixels, map_to_pixels, to_pixels
from fi_jax.training import augment as module
from fi_jax.training.augment import Augmentation, augment

STILL = Augmentation(
    min_scale=1, max_scale=1, max_shift=0, aspect=0, rotation=0, flip=0, brightness=0, contrast=0, saturation=0, grey=0,
    blur=0, coarse=0, erase=0,
)  # fmt: skip
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (3, 24, 24, 3), dtype=np.uint8)
MASK = RNG.integers(0, 19, (3, 24, 24), dtype=np.uint8)
# Before the tests choose a way themselves.
CHOICE = module._one_by_one
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def encoder(size: int) -> VitConfig:
    return VitConfig(image_size=size, patch_size=4)


@pytest.mark.parametrize(("where", "count", "alone"), [("cpu", 1, True), ("cpu", 8, False), ("tpu", 1, False)])
def test_faces_come_one_by_one_on_a_lone_cpu(monkeypatch, where, count, alone):
    """A plan for TPUs is made on a CPU: where the step will run decides."""
    monkeypatch.setattr(module, "platform", lambda: where)
    monkeypatch.setattr(jax, "device_count", lambda: count)
    assert CHOICE() is alone


@pytest.fixture(params=[True, False], ids=["one by one", "together"], autouse=True)
def one_by_one(request, monkeypatch):
    """Both ways through a batch: the loop of a lone CPU, and all faces at once."""
    monkeypatch.setattr(module, "_one_by_one", lambda: request.param)


def compiled(strength):
    # A function of its own each time: what was traced for the other way must not be found again.
    return jax.jit(lambda key, image, mask: augment(key, image, mask, strength))


def changed(**strength) -> tuple[np.ndarray, np.ndarray]:
    from dataclasses import replace

    image, mask = compiled(replace(STILL, **strength))(jax.random.key(0), IMAGE, MASK)
    return np.asarray(image), np.asarray(mask)


def test_pixels_are_normalised_as_clip_does():
    np.testing.assert_allclose(to_pixels(jnp.asarray(IMAGE), encoder(24)), (IMAGE / 255.0 - MEAN) / STD, atol=1e-6)
    assert to_pixels(jnp.asarray(IMAGE), encoder(8)).shape == (3, 8, 8, 3)


def test_maps_become_their_palette_even_when_resized():
    pixels = map_to_pixels(jnp.asarray(MASK), encoder(24))
    np.testing.assert_allclose(pixels, (PALETTE[MASK] / 255.0 - MEAN) / STD, atol=1e-5)
    back = np.asarray(map_to_pixels(jnp.asarray(MASK), encoder(12))) * STD + MEAN
    # Nearest: no colour in between.
    distances = np.abs(back[..., None, :] * 255 - PALETTE).max(-1).min(-1)
    assert distances.max() < 1e-2


def test_the_second_encoder_sees_what_the_config_says():
    vit = VitConfig(image_size=24, patch_size=8, hidden_size=12, num_heads=1)
    for sees, expected in (
        ("map", map_to_pixels(jnp.asarray(MASK), vit)),
        ("other_map", map_to_pixels(jnp.asarray(MASK[[2, 0, 1]]), vit)),
        ("picture", to_pixels(jnp.asarray(IMAGE), vit)),
    ):
        config = ModelConfig(image_encoder=vit, segmentation_encoder=vit, segmentation_input=sees)
        pixels, second = encoder_pixels(jnp.asarray(IMAGE), jnp.asarray(MASK), config)
        np.testing.assert_array_equal(pixels, to_pixels(jnp.asarray(IMAGE), vit))
        np.testing.assert_array_equal(second, expected)


def test_zero_strength_changes_nothing():
    image, mask = changed()
    np.testing.assert_allclose(image, IMAGE, atol=2e-3)
    np.testing.assert_array_equal(mask, MASK)


def test_a_flip_mirrors_both_and_swaps_left_and_right():
    image, mask = changed(flip=1)
    np.testing.assert_allclose(image, IMAGE[:, :, ::-1], atol=2e-3)
    np.testing.assert_array_equal(mask, np.asarray(FLIPPED)[MASK[:, :, ::-1]])
    assert (np.asarray(FLIPPED) != np.arange(19)).any()


def test_the_map_follows_the_geometry():
    """A picture that shows its own map still does after crop, turn and shift."""
    y, x = np.mgrid[:48, :48]
    square = ((abs(y - 20) < 10) & (abs(x - 26) < 8)).astype(np.uint8)
    picture = np.repeat(square[None, ..., None] * 255, 3, -1).astype(np.uint8)
    geometry = Augmentation(
        rotation=0.3, flip=0, brightness=0, contrast=0, saturation=0, grey=0, blur=0, coarse=0, erase=0
    )
    run = compiled(geometry)
    for seed in range(5):
        image, mask = run(jax.random.key(seed), picture, square[None])
        agree = (np.asarray(image)[0, ..., 0] > 127) == (np.asarray(mask)[0] == 1)
        assert agree.mean() > 0.99
        assert (np.asarray(mask)[0] != square).any()


def test_colours_leave_the_map_alone():
    image, mask = changed(brightness=0.3, contrast=0.3, saturation=0.5, blur=1.0, grey=0.5, erase=1.0)
    np.testing.assert_array_equal(mask, MASK)
    assert np.abs(image - IMAGE).max() > 5
    assert image.min() >= 0 and image.max() <= 255


def test_a_key_decides_everything_and_faces_differ():
    run = compiled(Augmentation())
    same = np.repeat(IMAGE[:1], 3, 0), np.repeat(MASK[:1], 3, 0)
    one, two, other = (run(jax.random.key(seed), *same)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, two)
    assert np.abs(np.asarray(one - other)).max() > 1
    assert np.abs(np.asarray(one[0] - one[1])).max() > 1


@pytest.mark.parametrize("seed", range(3))
def test_the_classes_are_still_classes(seed):
    _, mask = compiled(Augmentation())(jax.random.key(seed), IMAGE, MASK)
    assert np.asarray(mask).min() >= 0 and np.asarray(mask).max() <= 18


def test_one_by_one_and_together_give_the_same(monkeypatch):
    found = []
    for way in (True, False):
        monkeypatch.setattr(module, "_one_by_one", lambda way=way: way)
        found.append([np.asarray(array) for array in compiled(Augmentation())(jax.random.key(0), IMAGE, MASK)])
    (image, mask), (other, other_mask) = found
    # A place that falls between two 256ths of a pixel may be rounded either way: 1 of 255 in a picture of noise.
    assert np.abs(image - other).max() < 1.2 and (np.abs(image - other) > 1e-3).mean() < 5e-3
    assert (mask != other_mask).mean() < 5e-3


def test_the_blur_reads_neighbours_never_the_other_side():
    """A picture that is dark left and above, and shifted nowhere, stays dark there."""
    picture = np.zeros((1, 24, 24, 3), np.uint8)
    picture[:, -1], picture[:, :, -1] = 255, 255
    image, _ = compiled(Augmentation(**{**vars(STILL), "blur": 1.0}))(jax.random.key(0), picture, MASK[:1])
    assert np.asarray(image)[0, 0, :-1].max() == 0 and np.asarray(image)[0, :-1, 0].max() == 0


def test_a_coarse_picture_keeps_shapes_and_loses_fine_patterns():
    y, x = np.mgrid[:56, :56]
    board, halves = np.uint8(255 * ((x + y) % 2)), np.uint8(255 * (x >= 28))
    picture = np.repeat(np.stack([board, halves])[..., None], 3, -1)
    still = compiled(Augmentation(**{**vars(STILL), "coarse": 1.0}))
    image = np.asarray(still(jax.random.key(0), picture, np.zeros((2, 56, 56), np.uint8))[0])
    assert np.abs(image[0, 4:-4, 4:-4] - 127.5).max() < 20
    assert image[1, :, :22].max() < 2 and image[1, :, 34:].min() > 253
    assert 5 < image[1, 0, 27, 0] < 127 < image[1, 0, 28, 0] < 250


def test_farther_faces_have_the_edge_repeated_around_them():
    """At twice the side, the middle half shows the picture and the border its edge."""
    image, mask = changed(min_scale=2, max_scale=2)
    np.testing.assert_array_equal(np.asarray(mask)[:, :6], np.repeat(np.asarray(mask)[:, :1], 6, 1))
    assert np.abs(image[:, 6:18, 6:18].mean((1, 2)) - IMAGE.mean((1, 2))).max() < 6
