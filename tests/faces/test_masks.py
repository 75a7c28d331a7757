import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from fi_jax.errors import UserError
from fi_jax.faces import masks
from fi_jax.faces.alignment import is_mirrored

some_masks = npst.arrays(
    np.uint8, npst.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12), elements=st.integers(0, 18)
)


@given(some_masks)
def test_png_round_trip(mask):
    data = masks.encode_mask(mask)
    assert np.array_equal(masks.read_mask(data), mask) and np.array_equal(masks._read_own(data), mask)
    # Large pictures come in several pieces, and text may stand before: then Pillow reads them.
    assert np.array_equal(masks.read_mask(masks.encode_mask(mask, "fi-jax segment")), mask)


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


def eyes_and_mouth(left=(44, 24), right=(20, 24), mouth=(32, 48)):
    mask = np.zeros((64, 64), np.uint8)
    for part, (x, y) in (("l_eye", left), ("r_eye", right), ("u_lip", mouth)):
        mask[y - 2 : y + 2, x - 3 : x + 3] = masks.CLASSES.index(part)
    return mask


def test_a_reordered_palette_is_read_by_colour_another_one_by_value(tmp_path):
    mask = eyes_and_mouth()
    order = np.random.default_rng(0).permutation(19)
    moved = Image.fromarray(np.argsort(order)[mask].astype(np.uint8), mode="P")
    moved.putpalette(masks.PALETTE[order].tobytes())
    moved.save(tmp_path / "moved.png")
    assert np.array_equal(masks.read_mask(tmp_path / "moved.png"), mask)
    # Tools that save space sort the colours and drop those that are not used.
    Image.open(io.BytesIO(masks.encode_mask(mask))).save(tmp_path / "small.png", optimize=True)
    assert np.array_equal(masks.read_mask(tmp_path / "small.png"), mask)
    for palette in (np.arange(57), np.zeros(57), 255 - masks.PALETTE.ravel()):
        other = Image.fromarray(mask, mode="P")
        other.putpalette(palette.astype(np.uint8).tobytes())
        other.save(tmp_path / "other.png")
        assert np.array_equal(masks.read_mask(tmp_path / "other.png"), mask)


def test_maps_of_other_modes_and_turned_maps(tmp_path):
    mask = eyes_and_mouth()
    for kind, values in (("grey", mask), ("deep", mask.astype(np.uint16)), ("rgb", np.repeat(mask[..., None], 3, 2))):
        Image.fromarray(values).save(tmp_path / f"{kind}.png")
        assert np.array_equal(masks.read_mask(tmp_path / f"{kind}.png"), mask)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(mask))).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(masks.read_mask(tmp_path / "turned.png"), mask)
    Image.fromarray(masks.colourise(mask)).save(tmp_path / "colour.png")
    with pytest.raises(UserError, match="colour.png.* is a colour picture; a map is"):
        masks.read_mask(tmp_path / "colour.png")
    Image.fromarray(mask).save(tmp_path / "map.jpg")
    with pytest.raises(UserError, match="map.jpg' is a JPEG"):
        masks.read_mask(tmp_path / "map.jpg")
    Image.fromarray(np.full((4, 4), 300, np.uint16)).save(tmp_path / "big.png")
    with pytest.raises(UserError, match="holds class 300"):
        masks.read_mask(tmp_path / "big.png")


def test_mirrored_maps_are_told_however_the_face_is_turned():
    mask = eyes_and_mouth()
    for turns in range(4):
        assert not is_mirrored(np.rot90(mask, turns))
        assert is_mirrored(np.rot90(mask[:, ::-1], turns))
    assert not is_mirrored(masks.flip(mask))
    # Nothing is said without both eyes and a mouth, or of three in a line.
    assert not is_mirrored(np.where(mask == masks.CLASSES.index("l_eye"), 0, mask)[:, ::-1])
    assert not is_mirrored(eyes_and_mouth(left=(20, 24), right=(44, 24), mouth=(56, 24)))


def test_a_set_of_mirrored_maps_is_refused_and_single_ones_are_not():
    from fi_jax.data.records import FaceRecord
    from fi_jax.faces.map_cache import refuse_mirrored

    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "PNG")
    right, wrong = (masks.encode_mask(mask) for mask in (eyes_and_mouth(), eyes_and_mouth()[:, ::-1]))

    def faces(*maps):
        return [FaceRecord("own", f"{i}.png", "train", buffer.getvalue(), mask=mask) for i, mask in enumerate(maps)]

    refuse_mirrored(faces(*[right] * 6, *[wrong] * 4, None))
    refuse_mirrored(faces(*[wrong] * 4))
    with pytest.raises(UserError, match="swapped in 6 of 10 maps.*'0.png'"):
        refuse_mirrored(faces(*[wrong] * 6, *[right] * 4))
