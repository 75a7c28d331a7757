"""Both libraries that scale crops, against the antialiased bilinear mean computed exactly, and against each other."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fi_jax.pictures import resize
from fi_jax.pictures.crop import crop_square

installed = pytest.mark.skipif(resize.fast is None, reason="cykooz.resizer is not installed")
BOTH = [resize.resize_pillow, pytest.param(resize.resize_fast, marks=installed)]


def weights(length, start, stop, size):
    """Rows of the triangle filter that Pillow documents: as wide as a new pixel, at least one old one."""
    scale = (stop - start) / size
    reach = max(scale, 1.0)
    centres = start + (np.arange(size) + 0.5) * scale
    distance = np.abs(np.arange(length) + 0.5 - centres[:, None]) / reach
    inside = np.arange(length) >= np.maximum(np.floor(centres - reach + 0.5), 0)[:, None]
    inside &= np.arange(length) < np.minimum(np.floor(centres + reach + 0.5), length)[:, None]
    table = np.maximum(0, 1 - distance) * inside
    return table / table.sum(1, keepdims=True)


def exact(image, box, size):
    left, top, right, bottom = box
    rows, columns = weights(image.shape[0], top, bottom, size), weights(image.shape[1], left, right, size)
    return np.einsum("iy,yxc,jx->ijc", rows, image.astype(float), columns, optimize=True)


places = st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0.02, 1))


def box_at(place, height, width):
    """A square box inside the picture, touching its edges where the place says so."""
    side = place[2] * min(height, width)
    left, top = place[0] * (width - side), place[1] * (height - side)
    return (left, top, left + side, top + side)


@pytest.mark.parametrize("scale", BOTH)
@settings(max_examples=100, deadline=None)
@given(st.integers(0, 99), st.integers(4, 90), st.integers(4, 90), st.integers(1, 70), places)
def test_a_value_lies_within_one_of_the_exact_mean(scale, seed, height, width, size, place):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    box = box_at(place, height, width)
    found = scale(image, box, size)
    assert found.shape == (size, size, 3) and found.dtype == np.uint8
    # Two roundings of a half each; the filter's own numbers are rounded to 16 bits and more.
    assert np.abs(found - exact(image, box, size)).max() < 1.01


@installed
@settings(max_examples=60, deadline=None)
@given(st.integers(40, 224), st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0.08, 0.6)))
def test_the_two_agree_on_a_face(size, place):
    from skimage import data

    picture = data.astronaut()
    box = box_at(place, *picture.shape[:2])
    slow, fast = (scale(picture, box, size).astype(int) for scale in (resize.resize_pillow, resize.resize_fast))
    apart = np.abs(fast - slow)
    # Where both lie on two sides of the exact mean, which about one value in a million does, they are 2 apart.
    assert apart.max() <= 2 and (apart > 1).sum() <= 3
    # Both lie as near to the exact mean.
    truth = exact(picture, box, size)
    assert abs(np.abs(fast - truth).mean() - np.abs(slow - truth).mean()) < 0.01
    # Neither is brighter. Where a pixel is a simple fraction of a pixel (4/5, 6/5), the fast one rounds the many ties
    # up, by 0.1 in the mean: so boxes of several sizes.
    sides = place[2] * (1 + 0.017 * np.arange(8))
    boxes = [box_at((*place[:2], side), *picture.shape[:2]) for side in sides]
    brighter = [
        resize.resize_fast(picture, b, size).mean() - resize.resize_pillow(picture, b, size).mean() for b in boxes
    ]
    assert abs(np.mean(brighter)) < 0.02


@installed
def test_crops_use_the_fast_one_and_repeat_on_many_threads():
    image = np.random.default_rng(0).integers(0, 256, (90, 80, 3), dtype=np.uint8)
    box = (10.3, 20.1, 60.8, 70.6)
    expected = crop_square(image, box, 48)
    cut, inside = image[20:71, 10:61], (10.3 - 10, 20.1 - 20, 60.8 - 10, 70.6 - 20)
    assert np.array_equal(expected, resize.resize_fast(cut, inside, 48))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: crop_square(image, box, 48), range(200)))
    assert all(np.array_equal(each, expected) for each in found)


def test_without_the_fast_one_pillow_resizes(monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (90, 80, 3), dtype=np.uint8)
    monkeypatch.setattr(resize, "fast", None)
    assert np.array_equal(resize.resize(image, (1, 2, 61, 62), 40), resize.resize_pillow(image, (1, 2, 61, 62), 40))
