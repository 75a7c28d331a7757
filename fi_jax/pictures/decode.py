"""Image files -> upright 8-bit sRGB pixels, at full or reduced scale, for every reader."""

import contextlib
import re
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

# As many zeros as no encoder writes, and copying programs leave. The longest run of 6,000 photographs is 4.
_HOLE = bytes(16)
_AFTER_SCAN = re.compile(rb"\xff[^\0\xd0-\xd7\xff]")


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
    """Tells whether a run of zeros stands in a JPEG's picture where no encoder writes one: a hole in a copied file.

    Zeros decode, often without a warning, into what the code of zeros stands for. In a table of AC coefficients that
    is a coefficient, so a run would be whole blocks of one and the same, or an end of blocks, which a progressive file
    counts and never repeats. Not judged: tables of sequential files where it means "the rest of the block is flat", and
    scans of DC coefficients. There zeros may be a flat picture's; holes leave too many blocks, which the decoder sees.
    """
    if _HOLE not in data:
        return False
    place, progressive, code_of_zeros = 2, False, {}
    while True:
        for marker, start, end in segments(data, place):
            place, progressive = end, progressive or marker == 0xC2
            # Huffman tables: class and number, 16 counts, symbols; the first symbol has the code of zeros.
            table = start + 4
            while marker == 0xC4 and table + 17 < end:
                code_of_zeros[data[table]] = data[table + 17]
                table += 17 + sum(data[table + 1 : table + 17])
        begin = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if data[place : place + 2] != b"\xff\xda" or begin > len(data):
            return False
        first_coefficient, _, refines = data[begin - 3 : begin]
        symbol = code_of_zeros.get(0x10 | (data[place + 6] & 15))
        after = _AFTER_SCAN.search(data, begin)
        end = after.start() if after else len(data)
        # A scan that refines coefficients has their single bits too, up to 937 of them in a row.
        refines = progressive and refines >> 4
        judged = first_coefficient > 0 and symbol is not None if progressive else symbol not in (None, 0)
        judged = judged and not (refines and (symbol or 0) & 15 == 0)
        if judged and data.find(_HOLE * (16 if refines else 1), begin, end) >= 0:
            return True
        if not after or data[end + 1] == 0xD9:
            return False
        place = end


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
