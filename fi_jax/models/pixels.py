"""What an encoder takes: normalised pictures, and segmentation maps as colours."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from fi_jax.config import ModelConfig, VitConfig
from fi_jax.labels.face_parts import PALETTE


def encoder_pixels(
    image: UInt8[Array, "b y x 3"] | Float[Array, "b y x 3"],
    mask: UInt8[Array, "b y x"] | Int[Array, "b y x"],
    model: ModelConfig,
) -> tuple[Float[Array, "b s s 3"], Float[Array, "b m m 3"]]:
    """What the two encoders see of faces; `model.segmentation_input` says what the second one does.

    Another face's map is that of the face before in the batch, which must hold two or more.
    """
    pixels, second = to_pixels(image, model.image_encoder), model.segmentation_encoder
    if model.segmentation_input == "picture":
        return pixels, to_pixels(image, second)
    return pixels, map_to_pixels(mask if model.segmentation_input == "map" else jnp.roll(mask, 1, axis=0), second)


def to_pixels(image: UInt8[Array, "b y x 3"] | Float[Array, "b y x 3"], encoder: VitConfig) -> Float[Array, "b s s 3"]:
    """Resizes (bilinear, anti-aliased) and normalises pictures with values 0..255 for their encoder."""
    x, size = image.astype(jnp.float32) / 255.0, encoder.image_size
    if image.shape[1:3] != (size, size):
        x = jax.image.resize(x, (image.shape[0], size, size, 3), "linear", antialias=True)
    return _normalise(x, encoder)


def map_to_pixels(mask: UInt8[Array, "b y x"] | Int[Array, "b y x"], encoder: VitConfig) -> Float[Array, "b s s 3"]:
    """Colour-codes a segmentation map by the 19-class palette, as a picture for the segmentation encoder."""
    size = encoder.image_size
    if mask.shape[1:3] != (size, size):
        rows = (jnp.arange(size) * mask.shape[1] + mask.shape[1] // 2) // size
        cols = (jnp.arange(size) * mask.shape[2] + mask.shape[2] // 2) // size
        mask = mask[:, rows][:, :, cols]
    return _normalise(jnp.asarray(PALETTE, jnp.float32)[mask.astype(jnp.int32)] / 255.0, encoder)


def _normalise(x: Float[Array, "b s s 3"], encoder: VitConfig) -> Float[Array, "b s s 3"]:
    return (x - _constant(encoder.pixel_mean)) / _constant(encoder.pixel_std)


@cache
def _constant(values: tuple[float, float, float]) -> Float[np.ndarray, "3"]:
    """The same array every time, so that a program holds it once."""
    return np.array(values, np.float32)
