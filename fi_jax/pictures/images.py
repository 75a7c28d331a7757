"""Decodes image files and cuts square crops from them; masks are cut with the same geometry."""

import io
import os
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from fi_jax.errors import UserError
from fi_jax.pictures.readable import Box, Readable
from fi_jax.pictures.resize import resize

# Larger pictures are refused: one of 200 megapixels already takes 600 MB decoded.
MAX_PIXELS = 200_000_000

_ORIENTATION_TAG = 0x0112
# How numpy undoes each EXIF orientation (array `y x c`).
_UPRIGHT = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


def read_bytes(source: Readable | bytes, name: str = "") -> bytes:
    """Returns the bytes of an image file; a file that is missing or cannot be opened is a `UserError`."""
    if isinstance(source, bytes):
        return source
    try:
        return _read_file(source) if isinstance(source, Path) else source.read_bytes()
    except FileNotFoundError:
        raise UserError(f"image '{name or source}' does not exist") from None
    except OSError as error:
        raise UserError(f"image '{name or source}' cannot be read ({error.strerror})") from None


def _read_file(path: Path) -> bytes:
    # Half the system calls of `Path.read_bytes`. Each of them hands Python's lock to another decoding thread.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        size = os.fstat(descriptor).st_size
        data = os.read(descriptor, size)
    finally:
        os.close(descriptor)
    # A pipe has no size, and a signal or a network may cut a read short.
    return data if size and len(data) == size else path.read_bytes()


def decode(source: Readable | bytes, name: str = "") -> UInt8[np.ndarray, "y x 3"]:
    """Decodes an image file to RGB, upright as its EXIF orientation says.

    Args:
      source: a path (or another `Readable`), or the bytes of an image file.
      name: what errors call the picture; the path by default.

    Raises:
      UserError: the file is missing, is not an image, is truncated or damaged, or has more than
        `MAX_PIXELS` pixels. A picture is never returned in part.
    """
    return _decode(source, name)[0]


def load_square(
    source: Readable | bytes, box: Box | None, size: int, name: str = ""
) -> UInt8[np.ndarray, "size size 3"]:
    """Decodes the square around `box` at `size`×`size`: `crop_square(decode(source), box, size)`, but faster.

    A JPEG is decoded at the smallest of its scales (eighths) at which the square still has `size`
    pixels, so that little is left to resize. Errors are those of `decode` and `crop_square`.
    """
    image, eighths, (height, width) = _decode(source, name, box, size)
    if eighths != 8:
        square = square_box(box, height, width)
        _check_inside(square, box, height, width)
        left, top, right, bottom = (edge * eighths / 8 for edge in square)
        box = (left, top, right, bottom)
    return crop_square(image, box, size)


def _decode(
    source: Readable | bytes, name: str, box: Box | None = None, size: int = 0
) -> tuple[np.ndarray, int, tuple[int, int]]:
    """Returns the upright picture, the eighths of its full scale, and its full height and width.

    With `size`, a JPEG may come at a reduced scale that keeps the square around `box` at `size` pixels.
    """
    name = name or ("the given bytes" if isinstance(source, bytes) else str(source))
    data = read_bytes(source, name)
    if not data:
        raise UserError(f"'{name}' is an empty file, not an image")
    # The marker sits in the first segments; looking for it is far cheaper than parsing every header.
    marked = b"Exif\x00\x00" in data[:65536] or (data[:4] == b"\x89PNG" and b"eXIf" in data)
    upright = _UPRIGHT.get(_orientation(data)) if marked else None
    decoded = _decode_jpeg(data, name, box, size) if data[:2] == b"\xff\xd8" else None
    pixels, eighths, (height, width) = decoded or _decode_any(data, name)
    if upright:
        pixels = np.ascontiguousarray(upright(pixels))
        if (height > width) != (pixels.shape[0] > pixels.shape[1]):
            height, width = width, height
    return pixels, eighths, (height, width)


def _decode_jpeg(data: bytes, name: str, box: Box | None, size: int):
    """The fast path; None sends odd but maybe valid files (CMYK, stray bytes) to the slow one."""
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        _check_size(height, width, name)
        eighths = 8
        if size:
            side = max(height, width) if box is None else max(box[2] - box[0], box[3] - box[1])
            eighths = min(max(int(np.ceil(8 * size / side)) if side > 0 else 8, 1), 8)
        if eighths == 8:
            return simplejpeg.decode_jpeg(data, "RGB"), 8, (height, width)
        low_height, low_width = -(-height * eighths // 8), -(-width * eighths // 8)
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=low_height, min_width=low_width)
        if pixels.shape[:2] != (low_height, low_width):
            return simplejpeg.decode_jpeg(data, "RGB"), 8, (height, width)
        return pixels, eighths, (height, width)
    except ValueError:
        return None


def _decode_any(data: bytes, name: str):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                _check_size(image.height, image.width, name)
                return np.asarray(image.convert("RGB")), 8, (image.height, image.width)
    except UnidentifiedImageError:
        raise UserError(f"'{name}' is not an image that can be read") from None
    except Image.DecompressionBombError:
        raise UserError(f"'{name}' has more than {MAX_PIXELS // 1_000_000} megapixels; scale it down") from None
    except UserError:
        raise
    # Decoders raise many types on damaged data (OSError, SyntaxError, struct.error, ValueError, ...).
    except Exception as error:
        raise UserError(f"'{name}' is a damaged or truncated image ({error})") from None


def _check_size(height: int, width: int, name: str) -> None:
    if height * width > MAX_PIXELS:
        raise UserError(f"'{name}' is {width}x{height}, over {MAX_PIXELS // 1_000_000} megapixels; scale it down")


def _orientation(data: bytes) -> int:
    # Damaged EXIF says nothing of the pixels, which decoded well: take the picture as it stands.
    try:
        with Image.open(io.BytesIO(data)) as image:
            return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:
        return 1


def picture_size(source: Readable | bytes, name: str = "") -> tuple[int, int]:
    """Returns the height and width of a picture as `decode` would give it, reading its header only."""
    name = name or ("the given bytes" if isinstance(source, bytes) else str(source))
    data = read_bytes(source, name)
    try:
        with Image.open(io.BytesIO(data)) as image:
            height, width = image.height, image.width
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        return decode(data, name).shape[:2]
    return (width, height) if _orientation(data) >= 5 else (height, width)


def thumbnail(source: Readable | bytes, size: int, name: str = "") -> UInt8[np.ndarray, "y x"]:
    """Returns a grey `size`×`size` miniature (aspect ratio not kept), decoded at reduced scale where JPEG allows."""
    data = read_bytes(source, name)
    if data[:2] == b"\xff\xd8":
        try:
            grey = simplejpeg.decode_jpeg(data, "GRAY", min_height=size, min_width=size, min_factor=1)[:, :, 0]
            return np.asarray(Image.fromarray(grey).resize((size, size), Image.Resampling.BOX))
        except ValueError:
            pass
    pixels = Image.fromarray(decode(data, name or str(source)[:200]))
    return np.asarray(pixels.convert("L").resize((size, size), Image.Resampling.BOX))


def grey(image: UInt8[np.ndarray, "y x 3"]) -> UInt8[np.ndarray, "y x"]:
    """Returns the brightness of a picture (ITU-R 601 weights)."""
    return np.asarray(Image.fromarray(image).convert("L"))


def square_box(box: Box | None, height: int, width: int) -> Box:
    """Returns the square around a box's centre whose side is the box's longer one (pixels, may overrun).

    `None` stands for the whole picture of `height` × `width` pixels.
    """
    left, top, right, bottom = box if box is not None else (0.0, 0.0, float(width), float(height))
    if not (right > left and bottom > top):
        raise UserError(f"box {box} is empty; it must be left,top,right,bottom with left < right and top < bottom")
    side = max(right - left, bottom - top)
    x, y = (left + right) / 2, (top + bottom) / 2
    return (x - side / 2, y - side / 2, x + side / 2, y + side / 2)


def enlarge(box: Box, factor: float) -> Box:
    """Returns `box` scaled by `factor` about its centre (pixels, may overrun the picture)."""
    left, top, right, bottom = box
    x, y, w, h = (left + right) / 2, (top + bottom) / 2, (right - left) * factor, (bottom - top) * factor
    return (x - w / 2, y - h / 2, x + w / 2, y + h / 2)


def crop_square(image: UInt8[np.ndarray, "y x 3"], box: Box | None, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Cuts the square around `box` and scales it to `size`×`size` (antialiased bilinear).

    The box is squared by `square_box`; where it overruns the picture, the picture's edge is repeated.
    """
    image, square = _padded(image, box, mode="edge")
    if image.shape[:2] == (size, size) and square == (0, 0, size, size):
        return image
    return resize(image, square, size)


def crop_square_mask(mask: UInt8[np.ndarray, "y x"], box: Box | None, size: int) -> UInt8[np.ndarray, "size size"]:
    """Cuts a map of class indices with `crop_square`'s geometry (nearest; 0 where the box overruns)."""
    mask, square = _padded(mask, box, mode="constant")
    if mask.shape == (size, size) and square == (0, 0, size, size):
        return mask
    return np.asarray(Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST, box=square))


def _check_inside(square: Box, box: Box | None, height: int, width: int) -> None:
    left, top, right, bottom = square
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        raise UserError(f"box {box} lies outside the {width}x{height} picture")


def _padded(image: np.ndarray, box: Box | None, mode: Literal["edge", "constant"]) -> tuple[np.ndarray, Box]:
    """Returns the picture cut or padded to whole pixels around the square box, and the box inside it."""
    height, width = image.shape[:2]
    left, top, right, bottom = square_box(box, height, width)
    _check_inside((left, top, right, bottom), box, height, width)
    # Cutting first keeps the padding of a huge picture small.
    x0, y0, x1, y1 = int(np.floor(left)), int(np.floor(top)), int(np.ceil(right)), int(np.ceil(bottom))
    cut = image[max(y0, 0) : min(y1, height), max(x0, 0) : min(x1, width)]
    pad: list[tuple[int, int]] = [(max(-y0, 0), max(y1 - height, 0)), (max(-x0, 0), max(x1 - width, 0))]
    if any(before or after for before, after in pad):
        cut = np.pad(cut, pad + [(0, 0)] * (image.ndim - 2), mode=mode)
    return np.ascontiguousarray(cut), (left - x0, top - y0, right - x0, bottom - y0)
