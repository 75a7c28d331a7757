"""Segmentation maps of faces: a set's own, else the parser's, made once and kept in a cache folder by content."""

import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from jaxtyping import UInt8

from fi_jax.config import DataConfig
from fi_jax.errors import UserError
from fi_jax.faces.alignment import is_mirrored
from fi_jax.faces.masks import is_of, read_mask, write_mask
from fi_jax.files import cache_folder, file_sha256, sha256, temporary_folder
from fi_jax.pictures.crop import Box, crop_square_mask, square_box
from fi_jax.pictures.decode import picture_size
from fi_jax.pictures.header import Readable, read_bytes
from fi_jax.progress import progress_bar

# The parser needs JAX, which the processes that read pictures must not load: it is imported where a map is made.
if TYPE_CHECKING:
    from fi_jax.faces.parser import FaceParser

log = logging.getLogger(__name__)

# Raised when maps of earlier versions are not to be read.
_FORMAT = 2
# A map that is wanted at its own size is at most this large.
MAX_SIDE = 256


class Face(Protocol):
    """One face in one picture. `mask` is the set's own map; its attribute `is_crop` tells that it is cut already."""

    @property
    def key(self) -> str:
        """What errors call the face."""

    @property
    def image(self) -> Readable | bytes:
        """The image file."""

    @property
    def box(self) -> Box | None:
        """The region that is cropped (pixels); None for the whole picture."""

    @property
    def mask(self) -> Readable | bytes | None:
        """The file of the set's own map, if it has one."""


def cached_map(cache: Path | str, picture: bytes, box: Box | None) -> str:
    """Returns the path of the parser's map of one crop, named after the image file's content and the box.

    Two data sets with the same file names therefore never share maps, and a picture that changes gets a new one.
    """
    edges = "" if box is None else ",".join(repr(float(edge)) for edge in box)
    name = sha256(picture + edges.encode())[:32]
    return f"{cache}/{name[:2]}/{name[2:]}.png"


def load_mask(
    face: Face, size: int | None, cache: Path | str | None = None, picture: bytes | None = None
) -> UInt8[np.ndarray, "s s"]:
    """Returns the segmentation map of a face's crop: its own, else the parser's from `cache`, else class 0 everywhere.

    A map of the whole picture is cut as the picture is. `size` None leaves a map its own size, up to `MAX_SIDE`. `picture`
    is the image file, where it was read already.

    Raises:
      UserError: a map is damaged, or is of another size than its picture. One exception is the official
        CelebAMask-HQ, whose maps are 512×512 for pictures of 1024×1024.
    """
    if face.mask is not None:
        mask = read_mask(face.mask, f"{face.key} (mask)" if isinstance(face.mask, bytes) else "")
        box = None if getattr(face.mask, "is_crop", False) else _box_in_mask(face, mask)
        return crop_square_mask(mask, box, size or _own_side(mask, box))
    if cache is not None:
        path = cached_map(cache, picture or read_bytes(face.image, face.key), face.box)
        if os.path.exists(path):  # noqa: PTH110 (a Path would cost more than asking for the file)
            try:
                mask = _read_cached(Path(path))
                return crop_square_mask(mask, None, size or _own_side(mask, None))
            except UserError as error:
                raise UserError(f"{error}; delete it, and it is made again") from None
    return np.zeros((size or MAX_SIDE, size or MAX_SIDE), np.uint8)


def _own_side(mask: np.ndarray, box: Box | None) -> int:
    left, top, right, bottom = square_box(box, *mask.shape)
    return min(max(round(right - left), 1), MAX_SIDE)


def _name(path: Path) -> str:
    """A map's own name, from its path in the cache; it stands in the file too."""
    return path.parent.name + path.stem


def keep_map(path: Path, mask: UInt8[np.ndarray, "y x"]) -> None:
    """Writes a map into the cache, under a path of `cached_map`."""
    write_mask(path, mask, face=_name(path))


def _read_cached(path: Path) -> UInt8[np.ndarray, "y x"]:
    data = read_bytes(path)
    if not is_of(_name(path), data):
        raise UserError(f"map '{path}' is not of this face, or damaged")
    return read_mask(data, str(path))


def _box_in_mask(face: Face, mask: np.ndarray) -> Box | None:
    height, width = picture_size(face.image, face.key)
    if mask.shape == (height, width):
        return face.box
    if mask.shape == (512, 512) and (height, width) == (1024, 1024):
        if face.box is None:
            return None
        left, top, right, bottom = face.box
        return (left / 2, top / 2, right / 2, bottom / 2)
    raise UserError(
        f"mask of '{face.key}' is {mask.shape[1]}x{mask.shape[0]} but the picture is {width}x{height}; "
        "they must be equal"
    )


def with_maps(faces: Sequence[Face], data: DataConfig, parser: str) -> DataConfig:
    """Makes every map that is missing and returns the data config that finds them.

    Maps lie in a folder named after the parser's weights, so another parser's maps are never taken for its own.
    A face whose picture cannot be read gets none; reading it later names it.
    """
    lacking = [face for face in faces if face.mask is None]
    if not lacking:
        return data
    cache = map_folder(data, parser)
    missing = list(_without_map(lacking, cache))
    if missing:
        log.info(f"parsing {len(missing)} faces into {cache}")
        fill_cache(parser_of(parser), missing, cache)
    return replace(data, mask_cache=str(cache))


class MapsAsRead:
    """Makes the parser's maps of faces when they are about to be read. Safe from several threads, which take turns."""

    def __init__(self, cache: Path, parser: str):
        self._cache, self._parser, self._turn = cache, parser, threading.Lock()
        self._there: set[tuple] = set()

    def __call__(self, faces: Sequence[Face]) -> None:
        """Makes those of `faces` that are missing. A face whose picture cannot be read gets none."""
        with self._turn:
            new = {(face.key, face.image, face.box): face for face in faces if face.mask is None}
            new = {name: face for name, face in new.items() if name not in self._there}
            missing = list(_without_map(list(new.values()), self._cache))
            if missing:
                fill_cache(parser_of(self._parser), missing, self._cache, shows_progress=False)
            self._there |= set(new)


def maps_as_read(faces: Sequence[Face], data: DataConfig, parser: str) -> tuple[DataConfig, MapsAsRead | None]:
    """Returns the data config that finds the maps of `faces`, and what makes them as they are read (None: all are there).

    Raises:
      UserError: a map will have to be made, and there is no such parser.
    """
    if all(face.mask is not None for face in faces):
        return data, None
    cache = map_folder(data, parser)
    parser_of(parser)
    return replace(data, mask_cache=str(cache)), MapsAsRead(cache, parser)


def map_folder(data: DataConfig, parser: str) -> Path:
    """Returns the folder with a parser's maps: below the config's mask cache, named after the parser's weights."""
    return _writable(Path(data.mask_cache or cache_folder() / "masks")) / _fingerprint(parser)


def fill_cache(
    parser: "FaceParser",
    faces: Sequence[Face],
    cache: Path,
    batch_size: int | None = None,
    shows_progress: bool = True,
) -> list[tuple[Face, UserError]]:
    """Writes the parser's map of every face into `cache`; returns the faces that could not be read.

    Each file appears whole or not at all, so the work may be stopped and started again.
    """
    from fi_jax.faces.parser import parse_faces

    failed: list[tuple[Face, UserError]] = []
    writes: deque[Future] = deque()
    shown = progress_bar("parsing faces", len(faces)) if shows_progress else contextlib.nullcontext(lambda: None)
    with ThreadPoolExecutor(_threads()) as pool, shown as advance:
        for face, mask in parse_faces(parser, faces, batch_size, _threads()):
            if isinstance(mask, UserError):
                failed.append((face, mask))
            else:
                path = Path(cached_map(cache, read_bytes(face.image, face.key), face.box))
                writes.append(pool.submit(keep_map, path, mask))
            # A full disk ends the work at once.
            while writes and writes[0].done():
                writes.popleft().result()
            advance()
        for write in writes:
            write.result()
    return failed


def refuse_mirrored(faces: Sequence[Face], most: int = 200) -> None:
    """Checks the sides of up to `most` sets' own maps: the person's left eye is on the picture's right.

    Single maps are accepted: 6 % of CelebAMask-HQ's have left and right classes swapped.

    Raises:
      UserError: left and right are swapped in more than half of them, five or more.
    """
    own = [face for face in faces if face.mask is not None]
    found = [is_mirrored(load_mask(face, 128)) for face in own[:: max(len(own) // most, 1)]]
    if sum(found) >= max(5, len(found) / 2):
        raise UserError(
            f"left and right eye are swapped in {sum(found)} of {len(found)} maps, as in that of '{own[0].key}'; "
            "mirror the maps, or swap the classes 4/5, 6/7 and 8/9 (left is the person's left)"
        )


def map_of(crop: UInt8[np.ndarray, "s s 3"], parser: str) -> UInt8[np.ndarray, "s s"]:
    """Returns the parser's map of one square crop."""
    from fi_jax.faces.parser import parse_crop

    return parse_crop(parser_of(parser), crop)


def _without_map(faces: Sequence[Face], cache: Path) -> Iterator[Face]:
    def has_map(face: Face) -> bool:
        try:
            path = Path(cached_map(cache, read_bytes(face.image, face.key), face.box))
        except UserError:
            return False
        if not path.exists():
            return False
        try:
            _read_cached(path)
        except UserError as error:
            log.info(f"{error}; the map is made again")
            return False
        return True

    with ThreadPoolExecutor(_threads()) as pool:
        for face, there in zip(faces, pool.map(has_map, faces), strict=True):
            if not there:
                yield face


def _threads() -> int:
    return max(4, os.cpu_count() or 1)


def _writable(folder: Path) -> Path:
    """Returns `folder`, or one for temporary files where `folder` cannot be written."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if os.access(folder, os.W_OK):
        return folder
    instead = temporary_folder() / f"fi_jax-masks-{os.getuid()}"
    log.warning(f"'{folder}' cannot be written; segmentation maps are kept in {instead}")
    return instead


@lru_cache(maxsize=2)
def parser_of(name: str) -> "FaceParser":
    """Returns the face parser `name`, loaded once a process."""
    from fi_jax.faces.parser import load_parser

    return load_parser(name)


def _fingerprint(name: str) -> str:
    from fi_jax.weights.bundle import BUNDLED

    folder = BUNDLED / "parser" if name == "bundled" else Path(name)
    files = [*sorted(folder.glob("*.safetensors")), *sorted(folder.glob("*.json"))]
    return sha256(f"{_FORMAT}{''.join(map(file_sha256, files)) or name}")[:12]
