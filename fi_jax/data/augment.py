"""Pictures on the accelerator: normalisation, colour-coding of maps, and augmentation keyed by the step.

Augmenting inside the jitted step keeps the host to decoding alone, and makes the picture a pure function of
(seed, step, row): a resumed run sees the same pixels.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from fi_jax.data.masks import FLIPPED, PALETTE

# CLIP's image statistics.
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


@dataclass(frozen=True)
class Augmentation:
    """Strengths; zero (for `min_scale`, one) switches a part off. Lengths are fractions of the picture's side."""

    min_scale: float = 0.7
    max_shift: float = 0.08
    # Logarithm of the largest change of width against height.
    aspect: float = 0.12
    rotation: float = 0.15
    flip: float = 0.5
    brightness: float = 0.25
    contrast: float = 0.25
    saturation: float = 0.3
    grey: float = 0.05
    blur: float = 0.25
    erase: float = 0.3


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


def augment(
    key: Array, image: UInt8[Array, "b y x 3"], mask: UInt8[Array, "b y x"], strength: Augmentation
) -> tuple[Float[Array, "b y x 3"], Int[Array, "b y x"]]:
    """Randomly crops, turns, flips, recolours, blurs and erases; the map follows the geometry.

    A horizontal flip swaps left and right classes. Returns pictures with values 0..255 and class indices.
    """
    # One draw for everything: many small draws would each be compiled.
    draws = jax.random.uniform(key, (image.shape[0], _DRAWS))
    return jax.vmap(lambda u, i, m: _augment_one(u, i, m, strength))(draws, image, mask)


_DRAWS = 19


def _augment_one(
    u: Float[Array, "19"], image: UInt8[Array, "y x 3"], mask: UInt8[Array, "y x"], strength: Augmentation
):
    size_y, size_x = mask.shape
    scale = strength.min_scale + (1 - strength.min_scale) * u[0]
    aspect = jnp.exp(strength.aspect * _signed(u[1]))
    angle = strength.rotation * _signed(u[2])
    shift = _signed(u[3:5]) * ((1 - scale) / 2 + strength.max_shift)

    y = (jnp.arange(size_y) + 0.5) / size_y - 0.5
    x = (jnp.arange(size_x) + 0.5) / size_x - 0.5
    grid_y, grid_x = jnp.meshgrid(y, x, indexing="ij")
    flip = u[5] < strength.flip
    flipped_x = jnp.where(flip, -grid_x, grid_x)
    source_y = scale / aspect * (grid_y * jnp.cos(angle) + flipped_x * jnp.sin(angle)) + shift[0]
    source_x = scale * aspect * (-grid_y * jnp.sin(angle) + flipped_x * jnp.cos(angle)) + shift[1]
    source_y = _snap(jnp.clip((source_y + 0.5) * size_y - 0.5, 0, size_y - 1))
    source_x = _snap(jnp.clip((source_x + 0.5) * size_x - 0.5, 0, size_x - 1))

    nearest = mask[jnp.round(source_y).astype(jnp.int32), jnp.round(source_x).astype(jnp.int32)].astype(jnp.int32)
    nearest = jnp.where(flip, jnp.asarray(FLIPPED)[nearest], nearest)
    pixels = _bilinear(image.astype(jnp.float32), source_y, source_x)

    pixels *= 1 + strength.brightness * _signed(u[6])
    mean = pixels.mean((0, 1), keepdims=True)
    pixels = mean + (pixels - mean) * (1 + strength.contrast * _signed(u[7]))
    grey = pixels @ jnp.array([0.299, 0.587, 0.114])[:, None]
    keep = jnp.where(u[9] < strength.grey, 0.0, 1 + strength.saturation * _signed(u[8]))
    pixels = grey + (pixels - grey) * keep
    # A 2x2 mean softens some pictures, as small originals are.
    soft = (pixels + jnp.roll(pixels, 1, 0) + jnp.roll(pixels, 1, 1) + jnp.roll(pixels, (1, 1), (0, 1))) / 4
    pixels = jnp.where(u[10] < strength.blur, soft, pixels)
    # Hide one rectangle behind a flat colour; the map keeps its classes, so the two inputs complete each other.
    half = 0.05 + 0.15 * u[14:16]
    inside = (jnp.abs(grid_y - (u[12] - 0.5)) < half[0]) & (jnp.abs(grid_x - (u[13] - 0.5)) < half[1])
    inside &= u[11] < strength.erase
    pixels = jnp.where(inside[..., None], 255.0 * u[16:19], pixels)
    return jnp.clip(pixels, 0, 255), nearest


def _signed(u: Float[Array, "..."]) -> Float[Array, "..."]:
    return 2 * u - 1


def _snap(at: Float[Array, "..."]) -> Float[Array, "..."]:
    """Rounds positions to 1/256 pixel.

    The compiler may compute a position twice, once for the neighbour's index and once for its weight. Where rounding
    falls on two sides of a whole number, the wrong neighbour would get the whole weight.
    """
    return jnp.round(at * 256) / 256


def _bilinear(
    image: Float[Array, "y x c"], at_y: Float[Array, "h w"], at_x: Float[Array, "h w"]
) -> Float[Array, "h w c"]:
    y0, x0 = jnp.floor(at_y).astype(jnp.int32), jnp.floor(at_x).astype(jnp.int32)
    y1, x1 = jnp.minimum(y0 + 1, image.shape[0] - 1), jnp.minimum(x0 + 1, image.shape[1] - 1)
    wy, wx = (at_y - y0)[..., None], (at_x - x0)[..., None]
    top = image[y0, x0] * (1 - wx) + image[y0, x1] * wx
    bottom = image[y1, x0] * (1 - wx) + image[y1, x1] * wx
    return top * (1 - wy) + bottom * wy
