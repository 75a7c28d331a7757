"""The 19 face-segmentation classes: names, colours, index PNGs, and the flip that swaps left and right."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from fi_jax.data.records import Readable
from fi_jax.errors import UserError
from fi_jax.files import write_bytes
from fi_jax.pictures.images import read_bytes

# CelebAMask-HQ's order. "Left" is the person's left, which is the picture's right. `eye_g` is
# eyeglasses, `ear_r` an earring, `neck_l` a necklace.
CLASSES = (
    "background", "skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear",
    "mouth", "u_lip", "l_lip", "hair", "hat", "ear_r", "neck_l", "neck", "cloth",
)  # fmt: skip
NUM_CLASSES = len(CLASSES)

# Colours of CelebAMask-HQ's own tools (RGB a class).
PALETTE: UInt8[np.ndarray, "19 3"] = np.array(
    [
        (0, 0, 0), (204, 0, 0), (76, 153, 0), (204, 204, 0), (51, 51, 255), (204, 0, 204), (0, 255, 255),
        (255, 204, 204), (102, 51, 0), (255, 0, 0), (102, 204, 0), (255, 255, 0), (0, 0, 153), (0, 0, 204),
        (255, 51, 153), (0, 204, 204), (0, 51, 0), (255, 153, 51), (0, 204, 0),
    ],
    np.uint8,
)  # fmt: skip

# Class that takes each class's place in a mirrored picture.
FLIPPED: UInt8[np.ndarray, "19"] = np.arange(NUM_CLASSES, dtype=np.uint8)
FLIPPED[[4, 5, 6, 7, 8, 9]] = [5, 4, 7, 6, 9, 8]


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
