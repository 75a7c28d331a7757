import io

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from fi_jax.errors import UserError
from fi_jax.pictures import crop as cropping
from fi_jax.pictures import decode as decoding
from fi_jax.pictures import header


def smooth(height, width, seed=0):
    low = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(low).resize((width, height), Image.Resampling.BICUBIC))


def encoded(pixels, kind="JPEG", mode=None, **options):
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "kind,mode",
    [
        ("JPEG", None),
        ("JPEG", "L"),
        ("JPEG", "CMYK"),
        ("PNG", None),
        ("PNG", "P"),
        ("PNG", "RGBA"),
        ("WEBP", None),
        ("BMP", None),
    ],
)
def test_decodes_as_pil_does(kind, mode):
    data = encoded(smooth(50, 37), kind, mode)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(decoding.decode(data).astype(int) - expected).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_is_undone(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(smooth(48, 32), kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    found = decoding.decode(data)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 2
    assert decoding.picture_size(data) == expected.shape[:2]
    # The fast path decodes at a reduced scale and must turn the box with the picture.
    box = (2.0, 10.0, 30.0, 38.0)
    slow = cropping.crop_square(found, box, 8).astype(int)
    assert np.abs(cropping.load_square(data, box, 8).astype(int) - slow).mean() < 6


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2000), st.sampled_from(["JPEG", "PNG"]))
def test_a_truncated_file_is_refused_never_half_returned(cut, kind):
    data = encoded(smooth(64, 64), kind)
    whole = decoding.decode(data)
    try:
        found = decoding.decode(data[: max(len(data) - 1 - cut, 0)], "photo.jpg")
    except UserError as error:
        assert "photo.jpg" in str(error)
    else:
        # Only the end marker is missing: every pixel is there.
        assert np.array_equal(found, whole)


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.9])
def test_truncated_jpeg_raises(cut):
    data = encoded(smooth(128, 128), quality=95)
    with pytest.raises(UserError, match="damaged or truncated"):
        decoding.decode(data[: int(len(data) * cut)])


def test_bad_files_are_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.jpg"):
        decoding.decode(tmp_path / "nowhere.jpg")
    text = tmp_path / "notes.jpg"
    text.write_text("not a picture")
    with pytest.raises(UserError, match="notes.jpg' is not an image"):
        decoding.decode(text)
    empty = tmp_path / "empty.jpg"
    empty.touch()
    with pytest.raises(UserError, match="empty file"):
        decoding.decode(empty)


def test_files_that_cannot_be_a_picture_are_not_read(tmp_path):
    sparse = tmp_path / "dump.jpg"
    with sparse.open("wb") as opened:
        opened.truncate(3_000_000_000)
    with pytest.raises(UserError, match="dump.jpg' has 3.0 GB, too much for a picture"):
        decoding.decode(sparse)
    with pytest.raises(UserError, match="cannot be read"):
        decoding.decode(tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        decoding.decode(tmp_path / "a\0b.jpg")


def test_too_many_pixels_are_refused(monkeypatch):
    monkeypatch.setattr(header, "MAX_PIXELS", 1000)
    for kind in ("JPEG", "PNG"):
        with pytest.raises(UserError, match="megapixels"):
            decoding.decode(encoded(smooth(64, 64), kind))


def ramp(height, width):
    """Red is the column, green the row."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8)


def test_crop_square_geometry():
    crop = cropping.crop_square(ramp(100, 120), (20, 30, 60, 70), 40)
    assert np.array_equal(crop, ramp(100, 120)[30:70, 20:60])
    # A box that is not square is squared about its centre.
    wide = cropping.crop_square(ramp(100, 120), (20, 40, 60, 60), 40)
    assert np.array_equal(wide, crop)


def test_overrun_repeats_the_edge():
    crop = cropping.crop_square(ramp(100, 100), (-20, 10, 20, 50), 40)
    assert (crop[:, :20, 0] == 0).all() and (crop[:, 20:, 0] == np.arange(20)).all()
    mask = cropping.crop_square_mask(np.full((100, 100), 7, np.uint8), (80, 80, 120, 120), 40)
    assert (mask[:20, :20] == 7).all() and (mask[20:] == 0).all() and (mask[:, 20:] == 0).all()


def test_whole_picture_is_padded_to_a_square():
    crop = cropping.crop_square(np.full((30, 60, 3), 9, np.uint8), None, 60)
    assert crop.shape == (60, 60, 3) and (crop == 9).all()


@pytest.mark.parametrize("box", [(200, 0, 220, 20), (-30, 0, -10, 20), (0, 150, 10, 160)])
def test_box_outside_is_refused(box):
    data = encoded(ramp(100, 100))
    with pytest.raises(UserError, match="outside the 100x100 picture"):
        cropping.crop_square(ramp(100, 100), box, 8)
    with pytest.raises(UserError, match="outside the 100x100 picture"):
        cropping.load_square(data, box, 8)


def test_empty_box_is_refused():
    with pytest.raises(UserError, match="empty"):
        cropping.crop_square(ramp(10, 10), (5, 5, 5, 9), 8)


def waves(height, width):
    """Colour waves as long as two thirds of the picture: no filter can blur them, every shift shows."""
    y, x = np.mgrid[:height, :width] * (2 * np.pi * 1.5 / max(height, width))
    planes = np.stack([np.sin(x), np.sin(y), np.sin(x + y + 1)], -1)
    return (127.5 + 120 * planes).astype(np.uint8)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(40, 300),
    st.integers(40, 300),
    st.integers(16, 64),
    st.tuples(st.floats(-0.3, 0.6), st.floats(-0.3, 0.6), st.floats(0.35, 1.0)),
)
def test_reduced_decoding_gives_the_same_crop(height, width, size, place):
    left, top, side = place[0] * width, place[1] * height, place[2] * max(height, width)
    box = (left, top, left + side, top + side)
    assume(left + side > 1 and top + side > 1)
    data = encoded(waves(height, width), quality=95)
    slow = cropping.crop_square(decoding.decode(data), box, size).astype(int)
    fast = cropping.load_square(data, box, size)
    assert fast.shape == (size, size, 3)
    # Beyond the picture its edge is repeated, and at a reduced scale the edge is a mean of several rows.
    inside = cropping.crop_square_mask(np.ones((height, width), np.uint8), box, size) > 0
    assume(inside.mean() > 0.1)
    assert np.abs(fast - slow)[inside].mean() < 3


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 40), st.floats(0, 40), st.floats(20, 40), st.integers(8, 48))
def test_mask_and_picture_share_geometry(left, top, side, size):
    # A disc drawn in both: the crops must agree except along its edge.
    y, x = np.mgrid[:80, :80]
    disc = (x - 40) ** 2 + (y - 40) ** 2 < 30**2
    box = (left, top, left + side, top + side)
    picture = cropping.crop_square(np.repeat((disc * 255).astype(np.uint8)[..., None], 3, 2), box, size)
    mask = cropping.crop_square_mask(disc.astype(np.uint8), box, size)
    assert ((picture[..., 0] > 127) != (mask > 0)).mean() < 0.12
