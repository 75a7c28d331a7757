from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fi_jax.faces.alignment import FRAME, Similarity, align, fit, landmarks, warp
from fi_jax.labels.face_parts import CLASSES

REAL = Path("../shared/data/celebamask_hq")
turns = st.floats(-180, 180)


def similarity(angle, zoom=1.0, shift=0j):
    return Similarity(zoom * np.exp(1j * np.deg2rad(angle)), shift)


@given(turns, st.floats(0.1, 10), st.complex_numbers(max_magnitude=100))
def test_a_similarity_is_recovered(angle, zoom, shift):
    true = similarity(angle, zoom, shift)
    found = fit(FRAME * 100, true(FRAME * 100))
    np.testing.assert_allclose([found.scale, found.shift], [true.scale, true.shift], atol=1e-6, rtol=1e-6)
    np.testing.assert_allclose(true.inverse()(true(FRAME)), FRAME, atol=1e-9)


def test_landmarks_are_the_centres_of_eyes_and_mouth():
    mask = np.zeros((40, 60), np.uint8)
    for part, (x, y) in {"l_eye": (40, 10), "r_eye": (20, 12), "u_lip": (30, 30), "l_lip": (30, 32)}.items():
        mask[y : y + 2, x : x + 4] = CLASSES.index(part)
    np.testing.assert_allclose(landmarks(mask), [42 + 11j, 22 + 13j, 32 + 32j])
    mask[mask == CLASSES.index("l_eye")] = 0
    assert landmarks(mask) is None and align(None, 64) is None


@given(turns, st.floats(20, 200))
def test_faces_are_brought_to_the_frame_and_other_triangles_are_not_trusted(angle, size):
    points = similarity(angle, size, 50 + 20j)(FRAME)
    found = align(points, 112)
    np.testing.assert_allclose(found(points), FRAME * 112, atol=1e-6)
    # Eyes on the wrong sides, a mouth between the eyes, all in one place.
    for wrong in (points[[1, 0, 2]], points[[0, 1, 0]], np.full(3, 30 + 30j)):
        assert align(wrong, 112) is None


def test_the_warp_turns_scales_and_repeats_the_edge():
    y, x = np.mgrid[:50, :50]
    image = np.stack([2 * x, 2 * y, 0 * x], -1).astype(np.uint8)
    assert np.array_equal(warp(image, Similarity(1, 0), 50), image)
    assert np.array_equal(warp(image, Similarity(1j, 50), 50), np.rot90(image, -1))
    large = warp(image, Similarity(2, 0), 100).astype(int)
    assert np.abs(large[10:90, 10:90, 0] - (np.arange(10, 90) - 0.5)).max() <= 1
    moved = warp(image, Similarity(1, 20), 50)
    assert (moved[:, :20, 0] == 0).all() and np.array_equal(moved[:, 20:], image[:, :30])


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.skipif(not REAL.exists(), reason="the research data sets are not beside the checkout")
def test_turned_faces_are_turned_back():
    """Errors of the parsed map's landmarks, in eye distances, against the release's own maps."""
    from PIL import Image

    from fi_jax.faces.masks import flip, is_mirrored, read_mask
    from fi_jax.faces.parser import load_parser, parse_crop

    parser, errors = load_parser(), []
    for path in sorted((REAL / "masks").glob("*.png"))[::120]:
        mask = read_mask(path)
        # Some of the release's maps have left and right swapped: mirroring both swaps them back.
        mask = flip(mask)[:, ::-1] if is_mirrored(mask) else mask
        true = landmarks(mask) * (256 / mask.shape[0])
        image = np.asarray(Image.open(REAL / "images" / f"{path.stem}.jpg").convert("RGB").resize((256, 256)))
        for angle in (-30, 0, 30):
            turned = similarity(angle)
            turned = Similarity(turned.scale, 128 * (1 + 1j) * (1 - turned.scale))
            found = landmarks(parse_crop(parser, warp(image, turned, 256)))
            aligned = align(found, 112)
            assert abs(np.rad2deg(np.angle(aligned.scale)) + angle) < 12
            errors.append(abs(found - turned(true)).mean() / abs(true[0] - true[1]))
    assert np.median(errors) < 0.03 and max(errors) < 0.12
