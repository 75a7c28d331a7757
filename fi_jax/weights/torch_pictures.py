"""Reads and cuts pictures as `fi-jax ask` does. Needs numpy and Pillow; lies in every exported folder as `face_pictures.py`."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps


def read_picture(path: str | Path) -> np.ndarray:
    """Reads a picture as `fi-jax ask` does: uint8 `[y, x, 3]`, upright, in sRGB, transparent parts on white.

    Of damaged JPEGs Pillow guesses what is lost, which `ask` refuses.

    Raises:
      OSError, ValueError: the file is missing, no picture, damaged, or too large.
    """
    try:
        with Image.open(path) as opened:
            return _upright_srgb(opened, path)
    except (OSError, ValueError):
        raise
    except Exception as error:  # Pillow's readers have errors of their own for damaged and for huge files.
        raise ValueError(f"{path} is damaged or too large ({error})") from error


def _upright_srgb(opened: Image.Image, path: str | Path) -> np.ndarray:
    image: Any = ImageOps.exif_transpose(opened)
    if image.mode in ("I", "F"):
        raise ValueError(f"{path} has more than 16 bits a value; save it with 8")
    icc = image.info.get("icc_profile")
    if image.mode.startswith("I;16"):
        image = Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    image = image if image.mode in ("L", "CMYK") else image.convert("RGB")
    if icc:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            image = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            pass  # A damaged profile, or one of other colours than the picture's: as if there were none.
    image = image.convert("RGB")
    if alpha is not None:
        image = Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
    return np.asarray(image)


def cut_square(picture: np.ndarray, box: tuple[float, ...], size: int) -> np.ndarray:
    """A square of the picture at `size` pixels; outside, the picture's edge is repeated."""
    (left, top), (right, bottom) = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
    rows, columns = np.arange(top, bottom), np.arange(left, right)
    inside = picture[np.ix_(rows.clip(0, len(picture) - 1), columns.clip(0, picture.shape[1] - 1))]
    within = tuple(edge - start for edge, start in zip(box, (left, top, left, top), strict=True))
    return np.asarray(Image.fromarray(inside).resize((size, size), Image.Resampling.BILINEAR, box=within))
