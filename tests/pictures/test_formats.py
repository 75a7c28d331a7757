"""What people's files hold: turned, deep, transparent, profiled, damaged, of kinds that are not read."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin
from skimage import data as pictures

from fi_jax.errors import UserError
from fi_jax.pictures import colour, header
from fi_jax.pictures.crop import crop_square, load_square
from fi_jax.pictures.decode import decode, picture_size, thumbnail

ORIENTATION = 0x0112
XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="{}"/></x:xmpmeta>'


def corners(height=48, width=32):
    """Four flat quarters: red, green; blue, white."""
    image = np.zeros((height, width, 3), np.uint8)
    y, x = height // 2, width // 2
    image[:y, :x], image[:y, x:], image[y:, :x], image[y:, x:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255,) * 3
    return image


def saved(image, kind, **options):
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, kind, **options)
    return buffer.getvalue()


def exif(value):
    tags = Image.Exif()
    tags[ORIENTATION] = value
    return tags.tobytes()


def stored_for(orientation):
    """The pixels that a camera stores of `corners()` with this orientation."""
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda a: np.rot90(a, -1),
    }
    return np.ascontiguousarray(undo[orientation](corners()))


def ztxt_profile(data, payload):
    """Inserts ImageMagick's way of keeping EXIF in a PNG: hexadecimal in a compressed text chunk."""
    text = b"\nexif\n%8d\n" % len(payload) + b"\n".join(re.findall(b".{1,72}", payload.hex().encode())) + b"\n"
    body = b"zTXt" + b"Raw profile type exif\0\0" + zlib.compress(text)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return data[:33] + chunk + data[33:]


def itxt(text):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", text)
    return info


def icc_segments(data, kilobytes):
    """Puts APP2 segments behind a JPEG's start, before everything else."""
    body = b"ICC_PROFILE\0\1\1" + bytes(60_000)
    segment = b"\xff\xe2" + struct.pack(">H", len(body) + 2) + body
    return data[:2] + segment * (kilobytes * 1000 // len(segment) + 1) + data[2:]


TURNED = {
    "jpeg": lambda image, o: saved(image, "JPEG", quality=95, subsampling=0, exif=exif(o)),
    "jpeg behind icc": lambda image, o: icc_segments(saved(image, "JPEG", quality=95, subsampling=0, exif=exif(o)), 70),
    "jpeg xmp": lambda image, o: saved(image, "JPEG", quality=95, subsampling=0, xmp=XMP.format(o).encode()),
    "png": lambda image, o: saved(image, "PNG", exif=exif(o)),
    "png ztxt": lambda image, o: ztxt_profile(saved(image, "PNG"), b"Exif\0\0" + exif(o)),
    "png xmp": lambda image, o: saved(image, "PNG", pnginfo=itxt(XMP.format(o))),
    "webp": lambda image, o: saved(image, "WEBP", lossless=True, exif=exif(o)),
    "webp xmp": lambda image, o: saved(image, "WEBP", lossless=True, xmp=XMP.format(o).encode()),
    "tiff": lambda image, o: saved(image, "TIFF", tiffinfo={ORIENTATION: o}),
    "tiff lzw": lambda image, o: saved(image, "TIFF", compression="tiff_lzw", tiffinfo={ORIENTATION: o}),
    "tiff xmp": lambda image, o: saved(image, "TIFF", tiffinfo={700: XMP.format(o).encode()}),
    "avif": lambda image, o: saved(image, "AVIF", quality=95, exif=exif(o)),
}


def check_upright(data):
    found = decode(data)
    assert found.shape == picture_size(data) + (3,) == (48, 32, 3)
    # The middle of each quarter: compression blurs the edges.
    for y, x in ((12, 8), (12, 24), (36, 8), (36, 24)):
        assert np.abs(found[y, x].astype(int) - corners()[y, x]).max() < 40, (y, x)
    square = load_square(data, (0, 0, 32, 32), 16)
    assert np.abs(square.astype(int) - crop_square(found, (0, 0, 32, 32), 16)).mean() < 6
    bright = thumbnail(data, 8).astype(int)
    assert bright[6, 6] > 200 and bright[6, 2] < 60


@pytest.mark.parametrize("kind", TURNED)
def test_every_format_is_upright_and_of_one_size(kind):
    for orientation in range(1, 9):
        check_upright(TURNED[kind](stored_for(orientation), orientation))


@pytest.mark.parametrize("kind", [kind for kind in TURNED if "xmp" not in kind and kind != "tiff lzw"])
@pytest.mark.parametrize("value", [0, 9, 65535])
def test_orientations_that_do_not_exist_mean_upright(kind, value):
    check_upright(TURNED[kind](corners(), value))


def test_damaged_exif_is_ignored():
    data = bytearray(saved(stored_for(1), "JPEG", quality=95, subsampling=0, exif=exif(1)))
    place = data.index(b"Exif\0\0")
    data[place + 6 : place + 20] = b"\xff" * 14
    check_upright(bytes(data))


RAMP = np.linspace(0, 1, 256).reshape(16, 16)


def deep(values, kind="PNG", **options):
    return saved(Image.fromarray(values), kind, **options)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(lambda: deep(np.round(RAMP * 65535).astype(np.uint16)), id="16-bit png"),
        pytest.param(lambda: deep(np.round(RAMP * 65535).astype(np.uint16), "TIFF"), id="16-bit tiff"),
        pytest.param(lambda: deep(np.round(RAMP * (2**31 - 1)).astype(np.int32), "TIFF"), id="signed 32-bit tiff"),
        pytest.param(lambda: deep(RAMP.astype(np.float32), "TIFF"), id="float tiff"),
        pytest.param(lambda: deep(np.round(RAMP * 65535).astype(np.uint16), "JPEG2000"), id="16-bit jpeg 2000"),
    ],
)
def test_deep_pictures_are_scaled_by_their_range(data):
    found = decode(data())
    assert np.abs(found - 255 * RAMP[..., None]).max() < 1
    assert (found[..., 0] == found[..., 1]).all() and (found[..., 0] == found[..., 2]).all()


def test_unsigned_32_bit_and_white_is_zero():
    values = np.round(RAMP * (2**32 - 1)).astype(np.uint32)
    data = bytearray(deep(values.view(np.int32), "TIFF"))
    # Pillow writes signed numbers: set the sample format (tag 339) to unsigned.
    place = data.index(struct.pack("<HHI", 339, 3, 1))
    data[place + 8] = 1
    assert np.abs(decode(bytes(data)) - 255 * RAMP[..., None]).max() < 1
    assert (
        np.abs(
            decode(deep(np.round(RAMP * 65535).astype(np.uint16), "TIFF", tiffinfo={262: 0}))
            - 255 * (1 - RAMP)[..., None]
        ).max()
        < 1.01
    )


def test_16_bit_colours_keep_their_high_bits():
    rows = b"".join(b"\0" + np.full((8, 3), (65535, 32896, 257), ">u2").tobytes() for _ in range(8))
    body = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", body), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(b)) + t + b + struct.pack(">I", zlib.crc32(t + b)) for t, b in chunks
    )
    assert (decode(data) == (255, 128, 1)).all()


@pytest.mark.parametrize("values", [RAMP * 255, RAMP - 0.01, np.full((4, 4), np.nan)])
def test_floats_outside_0_to_1_are_refused(values):
    with pytest.raises(UserError, match=r"'scan.tif' holds numbers from .* must keep to 0..1"):
        decode(deep(values.astype(np.float32), "TIFF"), "scan.tif")


def swapped_channels():
    """An sRGB profile whose red and blue colorants are exchanged."""
    icc = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(icc[128:132], "big")
    table = {bytes(icc[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, blue = table[b"rXYZ"], table[b"bXYZ"]
    icc[red : red + 4], icc[blue : blue + 4] = icc[blue : blue + 4], icc[red : red + 4]
    return bytes(icc)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_colour_profiles_are_applied(kind):
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}, "AVIF": {"quality": 95}}
    data = saved(corners(), kind, icc_profile=swapped_channels(), **options.get(kind, {}))
    found = decode(data)[[12, 12, 36, 36], [8, 24, 8, 24]].astype(int)
    assert np.abs(found - [(0, 0, 255), (0, 255, 0), (255, 0, 0), (255, 255, 255)]).max() < 40


def test_srgb_is_left_alone_and_broken_profiles_are_noted(monkeypatch):
    lines = []
    monkeypatch.setattr(colour.log, "warning", lines.append)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain = saved(pictures.astronaut(), "JPEG", quality=92)
    assert np.array_equal(decode(saved(pictures.astronaut(), "JPEG", quality=92, icc_profile=srgb)), decode(plain))
    assert not lines
    for broken in (b"no profile at all", srgb[:200], ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()):
        found = decode(saved(pictures.astronaut(), "JPEG", quality=92, icc_profile=broken))
        assert np.array_equal(found, decode(plain))
    assert len(lines) == 3 and all("ignored" in line for line in lines)


def test_transparent_pixels_are_white():
    rgba = np.concatenate([corners(), np.full((48, 32, 1), 255, np.uint8)], -1)
    rgba[:24, :, 3] = 0
    rgba[24:, :16, 3] = 128
    expected = corners().astype(int)
    expected[:24] = 255
    expected[24:, :16] = (127, 127, 255)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        assert np.abs(decode(saved(rgba, kind, **options)).astype(int) - expected).max() <= 1
    palette = Image.fromarray(corners()).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    hidden = np.asarray(palette)[0, 0]
    for kind in ("PNG", "GIF"):
        found = decode(saved(palette, kind, transparency=int(hidden)))
        assert (found[:24, :16] == 255).all() and (found[24:, :16] == (0, 0, 255)).all()
    grey = np.array([[0, 1000], [40000, 65535]], np.uint16)
    assert decode(saved(grey, "PNG", transparency=1000))[0, 1].tolist() == [255] * 3
    both = Image.merge("LA", [Image.new("L", (4, 4), 10), Image.new("L", (4, 4), 0)])
    assert (decode(saved(both, "PNG")) == 255).all()


def test_cmyk_is_strict_too():
    cmyk = Image.fromarray(corners()).convert("CMYK")
    data = saved(cmyk, "JPEG", quality=95)
    found = decode(data)[[12, 12, 36, 36], [8, 24, 8, 24]].astype(int)
    assert np.abs(found - [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]).max() < 40
    assert load_square(data, None, 8).shape == (8, 8, 3) and thumbnail(data, 8).shape == (8, 8)
    large = saved(Image.fromarray(pictures.astronaut()).convert("CMYK"), "JPEG", quality=90)
    with pytest.raises(UserError, match="damaged or truncated"):
        decode(large[:20000] + bytes(3000) + large[23000:])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "is HEIC; save it as JPEG or PNG"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic", "is HEIC"),
        (b"\xff\x0a\xfa\x7f\x01", "is JPEG XL; save it as JPEG or PNG"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "is JPEG XL"),
        (b"FUJIFILMCCD-RAW 0201", "is a camera's raw file; export it as JPEG or PNG first"),
        (b"II*\0\x10\0\0\0CR\2\0", "is a camera's raw file"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1", "is a camera's raw file"),
        (b"IIU\0\x18\0\0\0", "is a camera's raw file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'>", "is a vector graphic"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image that can be read"),
    ],
)  # fmt: skip
def test_kinds_that_are_not_read_are_named(data, message):
    for read in (decode, picture_size):
        with pytest.raises(UserError, match=f"'x.jpg' {message}"):
            read(data, "x.jpg")


def test_raw_files_that_look_like_tiff_are_named():
    for tags in ({254: 1}, {50706: b"\1\4\0\0"}):
        with pytest.raises(UserError, match="camera's raw file"):
            decode(saved(corners(), "TIFF", tiffinfo=tags), "x.dng")


def png_claiming(height, width, data=b"x\x9c\x03\x00\x00\x00\x00\x01"):
    body = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", body), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(b)) + t + b + struct.pack(">I", zlib.crc32(t + b)) for t, b in chunks
    )


def test_the_limit_is_ours_and_the_same_for_all_readers():
    from fi_jax.faces.masks import read_mask

    bitmap = saved(np.zeros((2, 2, 3), np.uint8), "BMP")
    huge = bitmap[:18] + struct.pack("<ii", 40_000, 35_000) + bitmap[26:]
    jpeg = bytearray(saved(corners(), "JPEG"))
    place = jpeg.index(b"\xff\xc0")
    jpeg[place + 5 : place + 9] = struct.pack(">HH", 35_000, 40_000)
    for data in (png_claiming(35_000, 40_000), huge, bytes(jpeg)):
        for read in (decode, picture_size, read_mask):
            with pytest.raises(UserError, match="'x.png' (is 40000x35000, |has )over 200 megapixels"):
                read(data, "x.png")
    # Pillow's own limit, 179 megapixels, does not come through.
    assert Image.MAX_IMAGE_PIXELS == header.MAX_PIXELS
    with pytest.raises(UserError, match="claims 14141x14071 pixels in .* bytes; it is damaged, or a bomb"):
        picture_size(png_claiming(14_071, 14_141), "x.png")
    padded = png_claiming(14_071, 14_141, bytes(30_000))
    assert picture_size(padded) == (14_071, 14_141)


@pytest.mark.parametrize("shape", [(4000, 1), (1, 28_000), (2, 40_000)])
def test_thin_pictures_are_cut_in_little_memory(shape):
    image = np.full((*shape, 3), 90, np.uint8)
    for box in (None, (0, 0, shape[1], shape[0])):
        assert (crop_square(image, box, 16) == 90).all()
    assert (load_square(saved(image, "PNG"), None, 16) == 90).all()


def test_huge_boxes_are_refused_and_huge_squares_cut_at_a_reduced_scale():
    image = np.asarray(Image.fromarray(pictures.astronaut()).resize((9000, 6000)))
    mask = (image[..., 0] > 127).astype(np.uint8)
    from fi_jax.pictures.crop import crop_square_mask

    square = crop_square(image, None, 64).astype(int)
    padded = np.pad(image, ((1500, 1500), (0, 0), (0, 0)), mode="edge")
    assert np.abs(square - np.asarray(Image.fromarray(padded).resize((64, 64), Image.Resampling.BILINEAR))).mean() < 1.5
    maps = crop_square_mask(mask, None, 64)
    assert not maps[:10].any() and ((square[..., 0] > 127) == maps)[12:52].mean() > 0.9
    for box in ((0, 0, 1e9, 1e9), (-1e308, 0, 1e308, 1), (0, 0, np.inf, 5), (0, 0, 200_000, 10)):
        with pytest.raises(UserError, match="times as large|not finite"):
            crop_square(image, box, 16)
        with pytest.raises(UserError, match="times as large|not finite"):
            load_square(saved(corners(), "JPEG"), box, 16)
