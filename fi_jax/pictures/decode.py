"""Image files -> upright 8-bit RGB: reading, orientation, size and damage are decided here for every reader."""

import io
import os
import warnings
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from fi_jax.errors import UserError

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


class Readable(Protocol):
    """Whatever gives the bytes of a file: a `pathlib.Path`, a record in a shard, a face drawn on demand."""

    def read_bytes(self) -> bytes:
        """Returns the whole file."""
        ...


class Decoded(NamedTuple):
    """An upright picture, perhaps at a reduced scale."""

    pixels: UInt8[np.ndarray, "y x 3"]
    # Its scale, in eighths of the full one.
    eighths: int
    # The full size.
    height: int
    width: int


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
    return decode_for(source, None, None, name).pixels


def decode_for(source: Readable | bytes, size: int | None, side: float | None = None, name: str = "") -> Decoded:
    """As `decode`, but a JPEG may come at the smallest scale at which `side` pixels are still `size`.

    `side` None stands for the picture's longer side; `size` None for the full scale.
    """
    name = name or _name_of(source)
    data = read_bytes(source, name)
    if not data:
        raise UserError(f"'{name}' is an empty file, not an image")
    # The marker sits in the first segments; looking for it is far cheaper than parsing every header.
    marked = b"Exif\x00\x00" in data[:65536] or (data[:4] == b"\x89PNG" and b"eXIf" in data)
    upright = _UPRIGHT.get(_orientation(data)) if marked else None
    decoded = _decode_jpeg(data, name, size, side) if data[:2] == b"\xff\xd8" else None
    pixels, eighths, height, width = decoded or _decode_any(data, name)
    if upright:
        pixels = np.ascontiguousarray(upright(pixels))
        if (height > width) != (pixels.shape[0] > pixels.shape[1]):
            height, width = width, height
    return Decoded(pixels, eighths, height, width)


def _name_of(source: Readable | bytes) -> str:
    return "the given bytes" if isinstance(source, bytes) else str(source)


def _decode_jpeg(data: bytes, name: str, size: int | None, side: float | None) -> Decoded | None:
    """The fast path; None sends odd but maybe valid files (CMYK, stray bytes) to the slow one."""
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        _check_size(height, width, name)
        side = max(height, width) if side is None else side
        eighths = min(max(int(np.ceil(8 * size / side)), 1), 8) if size and side > 0 else 8
        if eighths < 8:
            low = (-(-height * eighths // 8), -(-width * eighths // 8))
            pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=low[0], min_width=low[1])
            if pixels.shape[:2] == low:
                return Decoded(pixels, eighths, height, width)
        return Decoded(simplejpeg.decode_jpeg(data, "RGB"), 8, height, width)
    except ValueError:
        return None


def _decode_any(data: bytes, name: str) -> Decoded:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                _check_size(image.height, image.width, name)
                return Decoded(np.asarray(image.convert("RGB")), 8, image.height, image.width)
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
    name = name or _name_of(source)
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
