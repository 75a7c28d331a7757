"""Image files -> upright 8-bit sRGB pixels, at full or reduced scale, for every reader."""

import contextlib
from typing import NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

from fi_jax.pictures.colour import to_srgb
from fi_jax.pictures.header import (
    Header,
    Readable,
    before_scan,
    name_of,
    named_errors,
    read_bytes,
    read_header,
    segments,
    upright,
)

# As many zeros as no encoder writes, and copying programs leave.
_HOLE = bytes(256)


class Decoded(NamedTuple):
    """An upright picture, perhaps at a reduced scale."""

    pixels: UInt8[np.ndarray, "y x 3"]
    # Its scale, in eighths of the full one.
    eighths: int
    # The full size.
    height: int
    width: int


def decode(source: Readable | bytes, name: str = "") -> UInt8[np.ndarray, "y x 3"]:
    """Decodes an image file to 8-bit sRGB, upright as its EXIF or XMP orientation says.

    Colour profiles are applied, deeper pixels scaled, and transparent ones shown on white (`pictures.colour`).

    Args:
      source: a path (or another `Readable`), or the bytes of an image file.
      name: what errors call the picture; the path by default.

    Raises:
      UserError: the file is missing, is of a kind that is not read, is truncated or damaged, or has more than
        `MAX_PIXELS` pixels. A picture is never returned in part.
    """
    return decode_for(source, None, None, name).pixels


def decode_for(source: Readable | bytes, size: int | None, side: float | None = None, name: str = "") -> Decoded:
    """As `decode`, but a JPEG may come at the smallest scale at which `side` pixels are still `size`.

    `side` None stands for the picture's longer side; `size` None for the full scale.
    """
    name = name or name_of(source)
    data = read_bytes(source, name)
    with named_errors(data, name):
        header = read_header(data, name)
        side = max(header.height, header.width) if side is None else side
        eighths = min(max(int(np.ceil(8 * size / side)), 1), 8) if size and side > 0 and not header.image else 8
        if header.image:
            pixels = to_srgb(header.image, name)
        else:
            pixels, eighths = _decode_jpeg(data, header, eighths)
            if header.icc or pixels.shape[2] == 4:
                image = Image.fromarray(255 - pixels, "CMYK") if pixels.shape[2] == 4 else Image.fromarray(pixels)
                image.info["icc_profile"] = header.icc
                pixels = to_srgb(image.convert("L") if header.jpeg_space == "Gray" else image, name)
    return Decoded(upright(pixels, header.orientation), eighths, *header.upright_size)


def picture_size(source: Readable | bytes, name: str = "") -> tuple[int, int]:
    """Returns the height and width of a picture as `decode` would give it, reading its header only."""
    name = name or name_of(source)
    data = read_bytes(source, name)
    with named_errors(data, name):
        return read_header(data, name).upright_size


def _decode_jpeg(data: bytes, header: Header, eighths: int) -> tuple[UInt8[np.ndarray, "y x c"], int]:
    """Decodes at `eighths` of the full scale, or fully where that is not possible; returns the scale too.

    The decoder is strict: what it could only guess at is an error.
    """
    if _has_hole(data):
        raise ValueError("a part of it was overwritten with zeros")
    space = "CMYK" if header.jpeg_space in ("CMYK", "YCCK") else "RGB"
    if eighths < 8:
        low = (-(-header.height * eighths // 8), -(-header.width * eighths // 8))
        pixels = _strict(data, space, min_height=low[0], min_width=low[1])
        if pixels.shape[:2] == low:
            return pixels, eighths
    return _strict(data, space), 8


def _strict(data: bytes, space: str, **scale: int) -> UInt8[np.ndarray, "y x c"]:
    try:
        return simplejpeg.decode_jpeg(data, space, **scale)
    except ValueError as error:
        # Pieces of a profile that do not fit do not damage the picture.
        if "ICC" not in str(error):
            raise
        kept = [data[start:end] for marker, start, end in segments(data) if marker != 0xE2]
        return simplejpeg.decode_jpeg(data[:2] + b"".join(kept) + data[len(before_scan(data)) :], space, **scale)


def _has_hole(data: bytes) -> bool:
    """Tells whether 256 bytes of a JPEG's picture are zero where no encoder writes them: a hole in a copied file.

    Zeros decode, often without a warning. They are the picture's own where the luminance's code of zeros means "the
    rest of the block is flat", as in tables made for flat pictures. Progressive files are not judged.
    """
    if _HOLE not in data:
        return False
    start = 2
    for marker, place, end in segments(data):
        start = end
        if 0xC2 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return False
        # Huffman tables: class and number, 16 counts, symbols; the first symbol has the code of zeros.
        place += 4
        while marker == 0xC4 and place + 17 < end:
            if data[place] == 0x10 and data[place + 17] == 0:
                return False
            place += 17 + sum(data[place + 1 : place + 17])
    return _HOLE in data[start : data.find(b"\xff\xd9", start)]


def thumbnail(source: Readable | bytes, size: int, name: str = "") -> UInt8[np.ndarray, "y x"]:
    """Returns a grey `size`×`size` miniature (aspect ratio not kept), decoded at reduced scale where JPEG allows."""
    name = name or name_of(source)
    data = read_bytes(source, name)
    image = None
    if data[:2] == b"\xff\xd8":
        # What this refuses (four channels, damage) is left to `decode`.
        with contextlib.suppress(ValueError):
            stored = simplejpeg.decode_jpeg(data, "GRAY", min_height=size, min_width=size, min_factor=1)[:, :, 0]
            image = upright(stored, read_header(data, name).orientation)
    image = grey(decode(data, name)) if image is None else image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BOX))


def grey(image: UInt8[np.ndarray, "y x 3"]) -> UInt8[np.ndarray, "y x"]:
    """Returns the brightness of a picture (ITU-R 601 weights)."""
    return np.asarray(Image.fromarray(image).convert("L"))
