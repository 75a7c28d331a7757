"""Maps of the 19 face-segmentation classes: index PNGs, colours, and the flip that swaps left and right."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from fi_jax.errors import UserError
from fi_jax.files import write_bytes
from fi_jax.labels.face_parts import CLASSES, FLIPPED, NUM_CLASSES, PALETTE
from fi_jax.pictures.decode import Readable, read_bytes


def colourise(mask: UInt8[np.ndarray, "*b y x"]) -> UInt8[np.ndarray, "*b y x 3"]:
    """Returns the RGB picture of a map of class indices."""
    return PALETTE[mask]


def flip(mask: UInt8[np.ndarray, "*b y x"]) -> UInt8[np.ndarray, "*b y x"]:
    """Mirrors a map left to right; left and right eyes, brows and ears change their class."""
    return FLIPPED[mask[..., ::-1]]


def encode_mask(mask: UInt8[np.ndarray, "y x"]) -> bytes:
    """Returns a palette PNG whose index is the class."""
    image = Image.fromarray(np.ascontiguousarray(mask, dtype=np.uint8), mode="P")
    image.putpalette(PALETTE.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_mask(path: Path, mask: UInt8[np.ndarray, "y x"]) -> None:
    """Writes a palette PNG; the file appears whole or not at all."""
    write_bytes(Path(path), encode_mask(mask))


def read_mask(source: Readable | bytes, name: str = "") -> UInt8[np.ndarray, "y x"]:
    """Reads a map of class indices 0..18 from a palette or grey PNG.

    Raises:
      UserError: the file is missing, is not such a PNG, or holds a class above 18.
    """
    name = name or ("the given bytes" if isinstance(source, bytes) else str(source))
    mask = _read_indices(source, name)
    if mask.max(initial=0) >= NUM_CLASSES:
        raise UserError(f"mask '{name}' holds class {mask.max()}; the classes are 0 to {NUM_CLASSES - 1}")
    return mask


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
                parts[part] = _read_indices(path, str(path))
        sizes = sorted({f"{part.shape[1]}x{part.shape[0]}" for part in parts.values()})
        if not parts:
            raise UserError(f"no mask part '{self}' exists")
        if len(sizes) > 1:
            raise UserError(f"mask parts '{self}' differ in size ({', '.join(sizes)})")
        return encode_mask(merge_parts(parts))


def _read_indices(source: Readable | bytes, name: str) -> np.ndarray:
    data = read_bytes(source, name)
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            # Official part files are RGB or grey, 0 or 255: any channel tells.
            return np.asarray(image if image.mode in ("P", "L") else image.convert("RGB").getchannel(0))
    except UnidentifiedImageError:
        raise UserError(f"mask '{name}' is not an image that can be read") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"mask '{name}' is a damaged or truncated image ({error})") from None
