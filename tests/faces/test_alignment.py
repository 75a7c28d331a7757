import io
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fi_jax.config import DataConfig
from fi_jax.data.pipeline import open_dataset
from fi_jax.data.records import FaceRecord
from fi_jax.data.synthetic.face import draw_face
from fi_jax.faces import framing
from fi_jax.faces.alignment import (
    FRAME,
    NEAR,
    PARTS,
    Similarity,
    align,
    fit,
    into_frame,
    is_mirrored,
    nearer,
    part_centres,
)
from fi_jax.faces.map_cache import cached_map, keep_map, load_mask
from fi_jax.faces.masks import encode_mask, flip
from fi_jax.labels.face_parts import CLASSES
from fi_jax.labels.registry import vocabulary
from fi_jax.pictures.crop import crop_square, crop_square_mask, load_square

REAL = Path("../shared/data/celebamask_hq")
turns = st.floats(-180, 180)


def similarity(angle, zoom=1.0, shift=0j):
    return Similarity(zoom * np.exp(1j * np.deg2rad(angle)), shift)


def saved(image) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def turned(image, to_new: Similarity, size: int) -> np.ndarray:
    """The picture after the similarity, nearest pixels; its edge is repeated."""
    line = np.arange(size) + 0.5
    source = to_new.inverse()(line[None, :] + 1j * line[:, None])
    y, x = (np.clip(np.floor(v), 0, n - 1).astype(int) for v, n in zip((source.imag, source.real), image.shape))
    return image[y, x]


@given(turns, st.floats(0.1, 10), st.complex_numbers(max_magnitude=100))
def test_a_similarity_is_recovered(angle, zoom, shift):
    true = similarity(angle, zoom, shift)
    found = fit(FRAME * 100, true(FRAME * 100), np.arange(1.0, 7))
    np.testing.assert_allclose([found.scale, found.shift], [true.scale, true.shift], atol=1e-6, rtol=1e-6)
    np.testing.assert_allclose(true.inverse()(true(FRAME)), FRAME, atol=1e-9)
    np.testing.assert_allclose(true.after(true)(FRAME), true(true(FRAME)), atol=1e-6)


def test_parts_are_those_of_the_classes():
    names = [tuple(CLASSES[i] for i in part) for part in PARTS]
    assert names == [("l_eye",), ("r_eye",), ("mouth", "u_lip", "l_lip"), ("l_brow",), ("r_brow",), ("nose",)]
    mask = np.zeros((40, 60), np.uint8)
    for part, (x, y) in {"l_eye": (40, 10), "r_eye": (20, 12), "u_lip": (30, 30), "l_lip": (30, 32)}.items():
        mask[y : y + 2, x : x + 4] = CLASSES.index(part)
    np.testing.assert_allclose(part_centres(mask)[:3], [42 + 11j, 22 + 13j, 32 + 32j])
    assert np.isnan(part_centres(mask)[3:]).all() and not is_mirrored(mask)
    # Swapped sides are put right; without the mouth nothing is trusted.
    swapped = flip(mask)[:, ::-1]
    assert is_mirrored(swapped) and np.array_equal(part_centres(swapped)[:3], part_centres(mask)[:3])
    assert align(part_centres(mask)) is not None and align(part_centres(mask * (mask < 10))) is None


@given(turns, st.floats(20, 200), st.sets(st.sampled_from([0, 1, 3, 4, 5]), max_size=3))
def test_faces_are_brought_to_the_frame_and_other_shapes_are_not_trusted(angle, size, hidden):
    points = similarity(angle, size, 50 + 20j)(FRAME)
    points[list(hidden)] = np.nan
    np.testing.assert_allclose(align(points)(points), np.where(np.isnan(points), np.nan, FRAME), atol=1e-6)
    points = similarity(angle, size, 50 + 20j)(FRAME)
    # Eyes on the wrong sides, the mouth between the eyes, all in one place, too little to be seen.
    for wrong in (points[[1, 0, 2, 4, 3, 5]], points[[0, 1, 5, 3, 4, 2]], np.full(6, 30 + 30j)):
        assert align(wrong) is None
    assert align(np.where(np.arange(6) < 2, points, np.nan)) is None


@pytest.mark.parametrize("angle,zoom", [(0, 1), (25, 0.8), (-40, 1.2), (90, 1)])
def test_a_drawn_face_comes_back_however_it_is_turned(angle, zoom):
    drawn = draw_face(3, 128)
    upright = framing.align_face(partial(crop_square, drawn.image), drawn.mask, None, (128, 128), 96)
    move = similarity(angle, zoom)
    move = Similarity(move.scale, (64 + 64j) - move.scale * (66 + 61j))
    image, mask = turned(drawn.image, move, 128), turned(drawn.mask, move, 128)
    found = framing.align_face(partial(crop_square, image), mask, None, (128, 128), 96)
    assert upright.frame == found.frame == "aligned"
    assert align(part_centres(found.mask)).scale == pytest.approx(1 / 96, rel=0.02)
    inner = np.s_[30:80, 30:66]
    assert (found.mask[inner] == upright.mask[inner]).mean() > 0.93
    assert np.abs(found.image[inner].astype(int) - upright.image[inner]).mean() < 12


def test_what_is_not_trusted_stays_in_its_box():
    drawn = draw_face(3, 128)
    cut = partial(crop_square, drawn.image)
    empty = framing.align_face(cut, np.zeros((64, 64), np.uint8), (10, 20, 110, 120), (128, 128), 48)
    assert empty.frame == "box" and np.array_equal(empty.image, crop_square(drawn.image, (10, 20, 110, 120), 48))
    # A face that is tiny in its box, and one that lies outside the picture, are others than was meant.
    tiny = np.zeros((128, 128), np.uint8)
    tiny[50:70, 50:70] = drawn.mask[::6, ::6][1:21, 1:21]
    assert align(part_centres(tiny)) is not None
    assert into_frame(cut, tiny, (0, 0, 128, 128), (128, 128), 48) is None
    assert into_frame(cut, drawn.mask, (-100, -100, 28, 28), (128, 128), 48) is None


def test_a_face_is_brought_nearer_once():
    """Its map says where its parts are, whatever the map's size; who is near already, or not trusted, stays."""
    drawn = draw_face(3, 128)
    image, mask = nearer(drawn.image, drawn.mask[::2, ::2])
    assert image.shape == drawn.image.shape and mask.shape == (64, 64)
    parts = part_centres(mask) / 64
    assert abs(parts - NEAR)[:3].max() < 0.04 and abs(parts[0] - parts[1]) == pytest.approx(0.386, abs=0.03)
    # The picture moves with its map: here it is the map.
    again = nearer(np.repeat(drawn.mask[..., None], 3, -1), drawn.mask)
    assert (again[0][..., 0] == again[1]).mean() > 0.85 and (again[1][::2, ::2] == mask).mean() > 0.95
    assert nearer(*again)[0] is again[0]
    assert nearer(drawn.image, np.zeros_like(drawn.mask))[0] is drawn.image


def test_the_config_says_how_faces_are_cut():
    drawn = draw_face(3, 128)
    box = framing.frame_face(drawn.image, None, DataConfig(image_size=64), "", own=drawn.mask)
    assert box.frame == "box" and np.array_equal(box.image, crop_square(drawn.image, None, 64))
    aligned = framing.frame_face(drawn.image, None, DataConfig(image_size=64, frame="aligned"), "", own=drawn.mask)
    assert aligned.frame == "aligned" and aligned.image.shape == (64, 64, 3)


def test_data_sets_give_the_same_face_whatever_its_map_and_box(tmp_path):
    """A map of the whole picture, and the parser's of a box in the cache: `ask`, training and evaluation agree."""
    face = draw_face(3, 128)
    picture, box = saved(face.image), (4.0, 10.0, 124.0, 126.0)
    own = FaceRecord("celebamask_hq", "a", "train", picture, mask=encode_mask(face.mask))
    boxed = FaceRecord("expw", "b", "train", picture, box=box)
    keep_map(Path(cached_map(tmp_path, picture, box)), crop_square_mask(face.mask, box, 128))
    config = DataConfig(frame="aligned", image_size=64, mask_cache=str(tmp_path))
    first, second = (open_dataset([record], config, vocabulary("celeba"))[0] for record in (own, boxed))
    shown = framing.frame_face(face.image, None, config, "", own=face.mask)
    assert np.array_equal(first["image"], shown.image) and (first["mask"] == shown.mask).mean() > 0.98
    assert np.abs(second["image"].astype(int) - first["image"]).mean() < 3
    assert (second["mask"] == first["mask"]).mean() > 0.95
    error = abs(part_centres(first["mask"]) / 64 - FRAME) / abs(FRAME[0] - FRAME[1])
    assert error[:3].max() < 0.25
    plain = open_dataset([boxed], replace(config, frame="box"), vocabulary("celeba"))[0]
    assert np.array_equal(plain["image"], load_square(picture, box, 64))
    assert np.array_equal(plain["mask"], load_mask(boxed, 64, tmp_path))


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.skipif(not REAL.exists(), reason="the research data sets are not beside the checkout")
def test_turned_faces_are_turned_back():
    """Errors of the parsed map's eyes and mouth in the frame, in eye distances, against the release's own maps."""
    from fi_jax.faces.masks import read_mask
    from fi_jax.faces.parser import load_parser, parse_crop

    parser, errors = load_parser(), []
    for path in sorted((REAL / "masks").glob("*.png"))[::120]:
        mask = read_mask(path)
        # Some of the release's maps have left and right swapped: mirroring both swaps them back.
        mask = flip(mask)[:, ::-1] if is_mirrored(mask) else mask
        true = part_centres(mask) * (256 / mask.shape[0])
        image = np.asarray(Image.open(REAL / "images" / f"{path.stem}.jpg").convert("RGB").resize((256, 256)))
        for angle in (-30, 0, 30):
            move = similarity(angle)
            move = Similarity(move.scale, 128 * (1 + 1j) * (1 - move.scale))
            found = align(part_centres(parse_crop(parser, turned(image, move, 256))))
            assert abs(np.rad2deg(np.angle(found.scale)) + angle) < 12
            errors.append(abs(found(move(true)) - align(true)(true))[:3].mean() / abs(FRAME[0] - FRAME[1]))
    assert np.median(errors) < 0.03 and max(errors) < 0.12
