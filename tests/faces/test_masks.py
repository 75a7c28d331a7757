import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from fi_jax.errors import UserError
from fi_jax.faces import masks

some_masks = npst.arrays(
    np.uint8, npst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12), elements=st.integers(0, 18)
)


@given(some_masks)
def test_png_round_trip(mask):
    assert np.array_equal(masks.read_mask(masks.encode_mask(mask)), mask)


@given(some_masks)
def test_flip_twice_is_nothing_and_sides_swap(mask):
    flipped = masks.flip(mask)
    assert np.array_equal(masks.flip(flipped), mask)
    for left, right in (("l_eye", "r_eye"), ("l_brow", "r_brow"), ("l_ear", "r_ear")):
        a, b = masks.CLASSES.index(left), masks.CLASSES.index(right)
        assert np.array_equal(flipped == a, (mask == b)[:, ::-1])
    assert np.array_equal(flipped == masks.CLASSES.index("hair"), (mask == masks.CLASSES.index("hair"))[:, ::-1])


def test_colours_are_distinct_and_batches_work():
    assert len({tuple(colour) for colour in masks.PALETTE}) == 19
    batch = np.arange(19, dtype=np.uint8).reshape(1, 1, 19)
    assert np.array_equal(masks.colourise(batch)[0, 0], masks.PALETTE)


def test_unknown_class_and_damage_are_refused(tmp_path):
    bad = np.full((4, 4), 19, np.uint8)
    with pytest.raises(UserError, match="class 19"):
        masks.read_mask(masks.encode_mask(bad))
    whole = masks.encode_mask(np.arange(16, dtype=np.uint8).reshape(4, 4).repeat(16, 0).repeat(16, 1))
    (tmp_path / "m.png").write_bytes(whole[:-20])
    with pytest.raises(UserError, match="m.png"):
        masks.read_mask(tmp_path / "m.png")
    with pytest.raises(UserError, match="gone.png"):
        masks.read_mask(tmp_path / "gone.png")


def test_written_file_is_whole_and_alone(tmp_path):
    mask = np.eye(5, dtype=np.uint8)
    masks.write_mask(tmp_path / "a" / "m.png", mask)
    assert np.array_equal(masks.read_mask(tmp_path / "a" / "m.png"), mask)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["m.png"]


def test_parts_are_merged_in_class_order(tmp_path):
    skin, hair = np.zeros((6, 6), np.uint8), np.zeros((6, 6), np.uint8)
    skin[1:5], hair[:3] = 255, 255
    Image.fromarray(skin).save(tmp_path / "00007_skin.png")
    Image.fromarray(np.repeat(hair[..., None], 3, 2)).save(tmp_path / "00007_hair.png")
    merged = masks.read_mask(masks.PartFiles(tmp_path, "00007"))
    assert (merged[:3] == 13).all() and (merged[3:5] == 1).all() and (merged[5] == 0).all()
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(tmp_path / "00007_hat.png")
    with pytest.raises(UserError, match="differ in size"):
        masks.read_mask(masks.PartFiles(tmp_path, "00007"))
    with pytest.raises(UserError, match="no mask part"):
        masks.read_mask(masks.PartFiles(tmp_path, "00008"))
