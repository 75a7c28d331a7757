"""Any of Pillow's pixels -> 8-bit sRGB: colour profiles, deep pixels, transparency."""

import io
import logging
from functools import lru_cache

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms

from fi_jax.errors import UserError

log = logging.getLogger(__name__)

# Profiles that change no colour by more than this (of 255) are sRGB by another name, and are not applied.
_SAME = 2
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
# TIFF tags.
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339


def to_srgb(image: Image.Image, name: str) -> UInt8[np.ndarray, "y x 3"]:
    """Returns a picture's pixels in 8-bit sRGB.

    Integers are scaled by their type's range, numbers in 0..1 by 255. The embedded colour profile is applied; one
    that is damaged or does not fit is noted and ignored. Transparent pixels are shown on white.

    Raises:
      UserError: a picture of floating-point numbers has some outside 0..1.
    """
    image.load()
    icc, transparency = image.info.get("icc_profile"), image.info.get("transparency")
    alpha = None
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if isinstance(transparency, int):
            alpha = Image.fromarray(np.where(values == transparency, 0, 255).astype(np.uint8))
        image = Image.fromarray(_eight_bits(values, getattr(image, "tag_v2", {}), name))
    elif transparency is not None or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        opaque = image.convert("RGBA")
        alpha = opaque.getchannel("A")
        image = opaque.getchannel("R") if image.mode in ("L", "LA", "La") else opaque.convert("RGB")
    transform = _transform(icc) if icc else None
    if transform and (image.mode == transform.input_mode or (transform.input_mode == "RGB" and image.mode != "CMYK")):
        image = transform.apply(image.convert(transform.input_mode))
    elif transform:
        log.warning(f"'{name}' has a colour profile for {transform.input_mode}, not {image.mode}; it is ignored")
    image = image.convert("RGB")
    if alpha and alpha.getextrema() != (255, 255):
        image = Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
    return np.asarray(image)


def _eight_bits(values: np.ndarray, tags, name: str) -> UInt8[np.ndarray, "y x"]:
    if values.dtype.kind == "f":
        if not ((values >= 0) & (values <= 1)).all():
            raise UserError(
                f"'{name}' holds numbers from {values.min():g} to {values.max():g}; "
                "a picture of floating-point numbers must keep to 0..1"
            )
        top = 1.0
    else:
        bits = int(tags.get(_BITS, (16,))[0])
        signed = tags.get(_SAMPLE_FORMAT, (1,))[0] == 2
        # Pillow has no unsigned 32-bit pixels.
        values = values.view(np.uint32) if values.dtype == np.int32 and bits == 32 and not signed else values
        top = 2.0 ** (bits - signed) - 1
    scaled = np.clip(values / np.float32(top), 0, 1)
    return np.round(255 * (1 - scaled if tags.get(_PHOTOMETRIC) == 0 else scaled)).astype(np.uint8)


@lru_cache(maxsize=64)
def _transform(icc: bytes) -> ImageCms.ImageCmsTransform | None:
    """Returns the transform of a profile to sRGB; None if it changes nothing, or cannot be used."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        mode = _MODES[profile.profile.xcolor_space.strip()]
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, KeyError) as error:
        log.warning(f"a colour profile is damaged or of a kind that is not read, and is ignored ({error})")
        return None
    if mode == "RGB":
        steps = np.linspace(0, 255, 9).astype(np.uint8)
        colours = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(27, 27, 3)
        changed = np.asarray(transform.apply(Image.fromarray(colours)))
        if np.abs(changed.astype(int) - colours).max() <= _SAME:
            return None
    return transform
