"""What an image file says before its pixels: kind, size, orientation, colour profile; every refusal is named here."""

import contextlib
import io
import os
import stat
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from fi_jax.errors import UserError

# Larger pictures are refused: one of 200 megapixels already takes 600 MB decoded.
MAX_PIXELS = 200_000_000
MAX_BYTES = 2_000_000_000
# Above so many pixels, a file must hold a byte for so many of them; one that does not is a bomb, or damaged.
_ALWAYS_PIXELS, _MAX_PIXELS_A_BYTE = 16_000_000, 10_000
# Pillow refuses twice this number by itself, at 179 megapixels unless told otherwise. The limit is ours.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS

# A JPEG's marker and the length of what it marks.
_SEGMENT = struct.Struct(">HH")
_ORIENTATION_TAG = 0x0112
# How numpy undoes each EXIF orientation (array `y x c`); other values mean upright.
_UPRIGHT = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}
# Bytes without which a PNG says nothing of its orientation: looking for them is far cheaper than parsing.
_PNG_MARKS = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
# The same of a JPEG: the EXIF tag of the orientation in both orders of bytes, XMP's name of it, a colour profile.
_JPEG_MARKS = (b"\x01\x12", b"\x12\x01", b"Orientation", b"ICC_PROFILE")
# Pillow reads more; some of that through other programs (EPS), none of it photographs.
_FORMATS = (
    "AVIF", "BMP", "DDS", "DIB", "GIF", "ICO", "JPEG2000", "PCX", "PNG", "PPM", "PSD", "SGI", "TGA", "TIFF", "WEBP"
)  # fmt: skip

# Files that are known and not read: the place and value of their first bytes, and what to do.
_RAW = "a camera's raw file; export it as JPEG or PNG first"
# TIFF tags: a thumbnail comes first, DNG version, Canon's raw segments.
_NEW_SUBFILE_TYPE, _RAW_TAGS = 254, (50706, 50752)
_NOT_READ = (
    (4, (b"ftypheic", b"ftypheix", b"ftypheim", b"ftyphevc", b"ftypmif1", b"ftypmsf1"), "HEIC; save it as JPEG or PNG"),
    (0, (b"\xff\x0a", b"\0\0\0\x0cJXL "), "JPEG XL; save it as JPEG or PNG"),
    (0, (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"\0MRM", b"FOVb"), _RAW),
    (4, (b"ftypcrx ",), _RAW),
    (8, (b"CR\2\0",), _RAW),
    (0, (b"II*\0", b"MM\0*"), "a TIFF of a kind that is not read; save it with 8 bits a channel"),
    (0, (b"version https://git-lfs",), "a Git LFS pointer, not the picture; fetch it with git lfs pull"),
    (0, (b"<!DOCTYPE", b"<!doctype", b"<html", b"<HTML"), "a web page, not the picture; download it again"),
    (0, (b"<svg", b"<?xml", b"%PDF"), "a vector graphic; save it as JPEG or PNG"),
)


class Readable(Protocol):
    """Whatever gives the bytes of a file: a `pathlib.Path`, a record in a shard, a face drawn on demand."""

    def read_bytes(self) -> bytes:
        """Returns the whole file."""
        ...


class Header(NamedTuple):
    """What a file says before its pixels. `image` is opened by Pillow; None for a JPEG."""

    height: int
    width: int
    orientation: int
    icc: bytes | None
    jpeg_space: str
    image: Image.Image | None

    @property
    def upright_size(self) -> tuple[int, int]:
        """Height and width of the picture as it is decoded."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def read_bytes(source: Readable | bytes, name: str = "") -> bytes:
    """Returns the bytes of an image file; a file that is missing or cannot be opened is a `UserError`."""
    if isinstance(source, bytes):
        return source
    try:
        return _read_file(source) if isinstance(source, Path) else source.read_bytes()
    except FileNotFoundError:
        raise UserError(f"image '{name or source}' does not exist") from None
    except (OSError, ValueError) as error:
        raise UserError(f"image '{name or source}' cannot be read ({getattr(error, 'strerror', error)})") from None


def _read_file(path: Path) -> bytes:
    # Half the system calls of `Path.read_bytes`. Each of them hands Python's lock to another decoding thread.
    # Opening a pipe would wait for its writer, and a device may have no end.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is a folder, a pipe or a device, not a file")
        size = status.st_size
        if size > MAX_BYTES:
            raise UserError(f"'{path}' has {size / 1e9:.1f} GB, too much for a picture")
        data = os.read(descriptor, size)
    finally:
        os.close(descriptor)
    # A signal or a network may cut a read short.
    return data if len(data) == size else path.read_bytes()


def name_of(source: Readable | bytes) -> str:
    """Returns what errors call a picture that was given no name."""
    return "the given bytes" if isinstance(source, bytes) else str(source)


def read_header(data: bytes, name: str) -> Header:
    """Reads what comes before the pixels; to be called within `named_errors`.

    Raises:
      UserError: the picture is too large, or a camera's raw file.
    """
    if data[:2] == b"\xff\xd8":
        height, width, space, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        _check_size(height, width, data, name)
        extras = [data[start:end] for marker, start, end in segments(data) if 0xE1 <= marker <= 0xE2]
        if not any(mark in extra for extra in extras for mark in _JPEG_MARKS):
            return Header(height, width, 1, None, space, None)
        with contextlib.suppress(Exception), warnings.catch_warnings(), Image.open(io.BytesIO(data)) as image:
            warnings.simplefilter("ignore")
            return Header(height, width, _orientation(image), image.info.get("icc_profile"), space, None)
        # Damaged EXIF says nothing of the pixels: the picture is taken as it stands.
        return Header(height, width, 1, None, space, None)
    image = Image.open(io.BytesIO(data), formats=_FORMATS)
    _check_size(image.height, image.width, data, name)
    if isinstance(image, TiffImageFile):
        tags = image.tag_v2
        if tags.get(_NEW_SUBFILE_TYPE) == 1 or any(tag in tags for tag in _RAW_TAGS):
            raise UserError(f"'{name}' is {_RAW}")
        # Pillow turns a TIFF as it loads it.
        image.load()
        return Header(image.height, image.width, 1, None, "", image)
    silent = image.format == "PNG" and not any(mark in data for mark in _PNG_MARKS)
    return Header(image.height, image.width, 1 if silent else _orientation(image), None, "", image)


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns stored pixels (`y x ...`) as their EXIF orientation says; numbers outside 1..8 mean upright."""
    return np.ascontiguousarray(_UPRIGHT[orientation](pixels)) if orientation in _UPRIGHT else pixels


class named_errors:  # noqa: N801 (reads as a word; a class is faster than a generator)
    """Turns whatever decoders raise over `data`, in a `with` block, into a `UserError` that names the picture."""

    def __init__(self, data: bytes, name: str):
        if not data:
            raise UserError(f"'{name}' is an empty file, not an image")
        self.data, self.name = data, name
        # Pillow warns of oddities. Silencing it costs time that a JPEG, which Pillow does not decode, need not lose.
        self.silence = None if data[:2] == b"\xff\xd8" else warnings.catch_warnings()

    def __enter__(self) -> None:
        if self.silence:
            self.silence.__enter__()
            warnings.simplefilter("ignore")

    def __exit__(self, kind, error: BaseException | None, trace) -> None:
        if self.silence:
            self.silence.__exit__(kind, error, trace)
        if error is None or isinstance(error, UserError) or not isinstance(error, Exception):
            return
        if isinstance(error, UnidentifiedImageError):
            starts = (what for place, starts, what in _NOT_READ if self.data[place : place + 32].startswith(starts))
            reason = f"is {next(starts, 'not an image that can be read')}"
        elif isinstance(error, Image.DecompressionBombError):
            reason = f"has over {MAX_PIXELS // 1_000_000} megapixels; scale it down"
        else:
            # Decoders raise many types on damaged data (OSError, SyntaxError, struct.error, ValueError, ...).
            reason = f"is a damaged or truncated image ({error})"
        raise UserError(f"'{self.name}' {reason}") from None


def _check_size(height: int, width: int, data: bytes, name: str) -> None:
    pixels = height * width
    if pixels > MAX_PIXELS:
        raise UserError(f"'{name}' is {width}x{height}, over {MAX_PIXELS // 1_000_000} megapixels; scale it down")
    if pixels > max(_ALWAYS_PIXELS, _MAX_PIXELS_A_BYTE * len(data)):
        raise UserError(f"'{name}' claims {width}x{height} pixels in {len(data)} bytes; it is damaged, or a bomb")


def _orientation(image: Image.Image) -> int:
    """Returns the orientation that EXIF, or else XMP, states; 1 where that is damaged."""
    try:
        found = image.getexif().get(_ORIENTATION_TAG, 1)
        return int(found) if int(found) in _UPRIGHT else 1
    except Exception:
        return 1


def segments(data: bytes, place: int = 2) -> Iterator[tuple[int, int, int]]:
    """Yields marker, start and end of a JPEG's segments from `place` to the next scan: by default, before the first."""
    while place + 4 <= len(data):
        marker, length = _SEGMENT.unpack_from(data, place)
        if marker <= 0xFF00 or marker == 0xFFDA:
            return
        # Any number of FF may stand before a marker.
        end = place + 1 if marker == 0xFFFF else place + 2 + length
        yield marker & 0xFF, place, end
        place = end


def before_scan(data: bytes) -> bytes:
    """Returns a JPEG up to its first scan."""
    return data[: max((end for _, _, end in segments(data)), default=0)]
