"""Maps of the 19 face-segmentation classes: index PNGs, colours, and the flip that swaps left and right."""

import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fi_jax.errors import UserError
from fi_jax.files import write_bytes
from fi_jax.labels.face_parts import CLASSES, FLIPPED, NUM_CLASSES, PALETTE
from fi_jax.pictures.header import Readable, name_of, named_errors, read_bytes, read_header, upright


def colourise(mask: UInt8[np.ndarray, "*b y x"]) -> UInt8[np.ndarray, "*b y x 3"]:
    """Returns the RGB picture of a map of class indices."""
    return PALETTE[mask]


def flip(mask: UInt8[np.ndarray, "*b y x"]) -> UInt8[np.ndarray, "*b y x"]:
    """Mirrors a map left to right; left and right eyes, brows and ears change their class."""
    return FLIPPED[mask[..., ::-1]]


# A PNG chunk of ours, the last one: which face a map is of.
_FACE = b"faCe"


def encode_mask(mask: UInt8[np.ndarray, "y x"], software: str = "", face: str = "") -> bytes:
    """Returns a palette PNG whose index is the class, with the name of what wrote it, or of the face that it is of."""
    image = Image.fromarray(np.ascontiguousarray(mask, dtype=np.uint8), mode="P")
    image.putpalette(PALETTE.tobytes())
    note = png_note(software)
    if face:
        note = note or PngInfo()
        note.add(_FACE, face.encode(), after_idat=True)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=note)
    return buffer.getvalue()


def is_of(face: str, data: bytes) -> bool:
    """Tells whether a map was encoded as one of `face`."""
    chunk = _FACE + face.encode()
    # A checksum follows, and the empty end chunk.
    return data[-16 - len(chunk) : -16] == chunk


def png_note(software: str) -> PngInfo | None:
    """Returns the text chunk that names what wrote a PNG; None for no name."""
    if not software:
        return None
    note = PngInfo()
    note.add_text("Software", software)
    return note


def write_mask(path: Path, mask: UInt8[np.ndarray, "y x"], software: str = "", face: str = "") -> None:
    """Writes a palette PNG; the file appears whole or not at all."""
    write_bytes(Path(path), encode_mask(mask, software, face))


def read_mask(source: Readable | bytes, name: str = "") -> UInt8[np.ndarray, "y x"]:
    """Reads a map of class indices 0..18 from a palette or grey PNG, upright as its orientation says.

    Where a palette holds our colours at other places (a tool has sorted them), classes are told by colour. With any
    other palette the values are the classes.

    Raises:
      UserError: the file is missing, is not such a picture, or holds a class above 18.
    """
    name = name or name_of(source)
    data = read_bytes(source, name)
    mask = _read_own(data)
    mask = _read_stored(data, name, _class_indices) if mask is None else mask
    if mask.max(initial=0) >= NUM_CLASSES:
        raise UserError(f"mask '{name}' holds class {mask.max()}; the classes are 0 to {NUM_CLASSES - 1}")
    return mask.astype(np.uint8, copy=False)


def merge_parts(parts: dict[str, UInt8[np.ndarray, "y x"]]) -> UInt8[np.ndarray, "y x"]:
    """Merges one binary map a class into one map; a later class of `CLASSES` covers an earlier one.

    That is the order of CelebAMask-HQ's own `g_mask.py`.
    """
    merged = None
    for index, part in enumerate(CLASSES):
        if part in parts:
            if merged is None:
                merged = np.zeros(parts[part].shape, np.uint8)
            merged[parts[part] > 0] = index
    if merged is None:
        raise UserError(f"no part of a mask is named after a class (parts: {', '.join(parts) or 'none'})")
    return merged


@dataclass(frozen=True)
class PartFiles:
    """CelebAMask-HQ's official form of one map: a PNG a part, `<folder>/<stem>_skin.png` and so on."""

    folder: Path
    stem: str

    def __str__(self) -> str:
        return str(self.folder / f"{self.stem}_*.png")

    def read_bytes(self) -> bytes:
        """Returns the merged map as a palette PNG."""
        parts = {}
        for part in CLASSES[1:]:
            path = self.folder / f"{self.stem}_{part}.png"
            if path.exists():
                parts[part] = _read_stored(read_bytes(path), str(path), _part)
        sizes = sorted({f"{part.shape[1]}x{part.shape[0]}" for part in parts.values()})
        if not parts:
            raise UserError(f"no mask part '{self}' exists")
        if len(sizes) > 1:
            raise UserError(f"mask parts '{self}' differ in size ({', '.join(sizes)})")
        return encode_mask(merge_parts(parts))


def _read_own(data: bytes) -> UInt8[np.ndarray, "y x"] | None:
    """Reads what `encode_mask` writes, in a fifth of Pillow's time; None for any other file, or a damaged one."""
    size, kind, palette, start = data[16:24], data[24:29], data[37:98], 110
    if kind != b"\x08\x03\0\0\0" or palette != b"PLTE" + PALETTE.tobytes() or data[106:start] != b"IDAT":
        return None
    end = start + int.from_bytes(data[102:106], "big")
    width, height = int.from_bytes(size[:4], "big"), int.from_bytes(size[4:], "big")
    if data[end + 8 : end + 12] not in (b"IEND", _FACE) or width * height > len(data) * 1100:
        return None
    try:
        rows = np.frombuffer(zlib.decompress(data[start:end]), np.uint8).reshape(height, width + 1)
    except (zlib.error, ValueError):
        return None
    # A row begins with its filter: none.
    return None if rows[:, 0].any() else rows[:, 1:]


def _read_stored(data: bytes, name: str, values: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """Returns the `values` that a picture stores, upright."""
    with named_errors(data, name):
        header = read_header(data, name)
        if header.image is None:
            raise UserError(f"mask '{name}' is a JPEG, which blurs classes; a map is a palette or grey PNG")
        header.image.load()
        return upright(values(header.image), header.orientation)


def _class_indices(image: Image.Image) -> np.ndarray:
    stored = np.asarray(image)
    if stored.ndim == 3:
        if (stored[..., :3] != stored[..., :1]).any():
            raise ValueError("it is a colour picture; a map is a palette or grey PNG whose values are the classes")
        return stored[..., 0]
    palette = image.getpalette("RGB")
    if palette is None or palette[: PALETTE.size] == PALETTE.ravel().tolist()[: len(palette)]:
        return stored
    colours = {tuple(colour): index for index, colour in enumerate(PALETTE.tolist())}
    used = np.flatnonzero(np.bincount(stored.ravel()))
    classes = [colours.get(tuple(palette[3 * index : 3 * index + 3]), -1) for index in used]
    if -1 in classes or len(set(classes)) < len(classes):
        return stored
    table = np.zeros(256, np.uint8)
    table[used] = classes
    return table[stored]


def _part(image: Image.Image) -> np.ndarray:
    # Official part files are RGB or grey, 0 or 255: any channel tells.
    return np.asarray(image if image.mode in ("P", "L") else image.convert("RGB").getchannel(0))
