"""What the encoders take: normalised pictures, and segmentation maps as colours."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from fi_jax.config import ModelConfig
from fi_jax.labels.face_parts import PALETTE

# CLIP's image statistics.
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def encoder_pixels(
    image: UInt8[Array, "b y x 3"] | Float[Array, "b y x 3"],
    mask: UInt8[Array, "b y x"] | Int[Array, "b y x"],
    model: ModelConfig,
) -> tuple[Float[Array, "b s s 3"], Float[Array, "b m m 3"]]:
    """What the two encoders see of faces; `model.segmentation_input` says what the second one does.

    Another face's map is that of the face before in the batch, which must hold two or more.
    """
    pixels, size = to_pixels(image, model.image_encoder.image_size), model.segmentation_encoder.image_size
    if model.segmentation_input == "picture":
        return pixels, to_pixels(image, size)
    return pixels, map_to_pixels(mask if model.segmentation_input == "map" else jnp.roll(mask, 1, axis=0), size)


def to_pixels(image: UInt8[Array, "b y x 3"] | Float[Array, "b y x 3"], size: int) -> Float[Array, "b s s 3"]:
    """Resizes (bilinear, anti-aliased) and normalises pictures with values 0..255 for a CLIP-style encoder."""
    x = image.astype(jnp.float32) / 255.0
    if image.shape[1:3] != (size, size):
        x = jax.image.resize(x, (image.shape[0], size, size, 3), "linear", antialias=True)
    return (x - MEAN) / STD


def map_to_pixels(mask: UInt8[Array, "b y x"] | Int[Array, "b y x"], size: int) -> Float[Array, "b s s 3"]:
    """Colour-codes a segmentation map by the 19-class palette, as a picture for the segmentation encoder."""
    if mask.shape[1:3] != (size, size):
        rows = (jnp.arange(size) * mask.shape[1] + mask.shape[1] // 2) // size
        cols = (jnp.arange(size) * mask.shape[2] + mask.shape[2] // 2) // size
        mask = mask[:, rows][:, :, cols]
    return (jnp.asarray(PALETTE, jnp.float32)[mask.astype(jnp.int32)] / 255.0 - MEAN) / STD
