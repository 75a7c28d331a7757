"""Augments pictures and their segmentation maps together, on the device, for training the face parser.

Ours. The aims: faces elsewhere are tighter or wider, turned, badly lit, grey, and only 89 to 128 pixels wide;
and hats, glasses, earrings and necklaces are in few of the pictures. Everything is a pure function of the key.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt8

from fi_jax.labels.face_parts import CLASSES, FLIPPED

# Classes that are copied from one face to another: glasses, hat, earrings, necklace.
PASTED = tuple(CLASSES.index(name) for name in ("eye_g", "hat", "ear_r", "neck_l"))


@dataclass(frozen=True)
class ParserAugmentation:
    """Strengths. Probabilities are of one picture; lengths are fractions of its side; angles are radians."""

    paste: float = 0.35
    # The crop's side: from a tight face to one with room around it.
    min_scale: float = 0.6
    max_scale: float = 1.25
    aspect: float = 0.15
    rotation: float = 0.4
    shift: float = 0.08
    flip: float = 0.5
    brightness: float = 0.35
    contrast: float = 0.35
    saturation: float = 0.5
    tint: float = 0.12
    gamma: float = 0.35
    grey: float = 0.1
    blur: float = 0.5
    # Standard deviation, in pixels of the input.
    max_blur: float = 2.0
    noise: float = 0.3
    # Standard deviation, in grey levels.
    max_noise: float = 12.0
    occlude: float = 0.2


def augment(
    key: PRNGKeyArray,
    image: UInt8[Array, "b y x 3"],
    mask: UInt8[Array, "b y x"],
    donor_image: UInt8[Array, "b y x 3"],
    donor_mask: UInt8[Array, "b y x"],
    size: int,
    strength: ParserAugmentation,
) -> tuple[Float[Array, "b s s 3"], Int[Array, "b s s"], Bool[Array, "b s s"]]:
    """Returns pictures (0..255), class indices, and which pixels lie inside the original picture.

    Accessories of the donor (`PASTED`) may be copied onto the face: the faces are aligned, so that a donor's
    glasses sit on the other's eyes. Outside the picture its edge is repeated, as `pictures.crop.crop_square` does.
    A horizontal flip swaps left and right classes.
    """
    keys = jax.random.split(key, image.shape[0])

    def one(key, image, mask, donor_image, donor_mask):
        k_paste, k_geometry, k_colour, k_quality, k_occlude = jax.random.split(key, 5)
        image, mask = _paste(k_paste, image.astype(jnp.float32), mask, donor_image, donor_mask, strength)
        image, mask, inside = _warp(k_geometry, image, mask, size, strength)
        image = _recolour(k_colour, image, strength)
        image = _occlude(k_occlude, image, strength)
        return _degrade(k_quality, image, strength), mask, inside

    return jax.vmap(one)(keys, image, mask, donor_image, donor_mask)


def _paste(key, image, mask, donor_image, donor_mask, strength: ParserAugmentation):
    chosen = jnp.isin(donor_mask, jnp.array(PASTED, donor_mask.dtype)) & jax.random.bernoulli(key, strength.paste)
    image = jnp.where(chosen[..., None], donor_image.astype(jnp.float32), image)
    return image, jnp.where(chosen, donor_mask, mask)


def _warp(key, image, mask, size: int, strength: ParserAugmentation):
    k = jax.random.split(key, 5)
    side = mask.shape[0]
    scale = jnp.exp(jax.random.uniform(k[0], minval=jnp.log(strength.min_scale), maxval=jnp.log(strength.max_scale)))
    aspect = jnp.exp(jax.random.uniform(k[1], minval=-1, maxval=1) * strength.aspect)
    angle = jnp.clip(jax.random.normal(k[2]) / 2, -1, 1) * strength.rotation
    shift = jax.random.uniform(k[3], (2,), minval=-1, maxval=1) * (jnp.maximum(1 - scale, 0) / 2 + strength.shift)
    flip = jax.random.bernoulli(k[4], strength.flip)

    line = (jnp.arange(size) + 0.5) / size - 0.5
    y, x = jnp.meshgrid(line, jnp.where(flip, -line, line), indexing="ij")
    y, x = y * scale / aspect, x * scale * aspect
    source_y = (y * jnp.cos(angle) + x * jnp.sin(angle) + shift[0] + 0.5) * side - 0.5
    source_x = (x * jnp.cos(angle) - y * jnp.sin(angle) + shift[1] + 0.5) * side - 0.5
    nearest_y, nearest_x = jnp.round(source_y).astype(jnp.int32), jnp.round(source_x).astype(jnp.int32)
    inside = (nearest_y >= 0) & (nearest_y < side) & (nearest_x >= 0) & (nearest_x < side)
    label = mask[jnp.clip(nearest_y, 0, side - 1), jnp.clip(nearest_x, 0, side - 1)]
    label = jnp.where(flip, jnp.asarray(FLIPPED)[label], label).astype(jnp.int32)

    def channel(plane):
        return jax.scipy.ndimage.map_coordinates(plane, [source_y, source_x], order=1, mode="nearest")

    return jax.vmap(channel, in_axes=2, out_axes=2)(image), label, inside


def _recolour(key, image, strength: ParserAugmentation):
    k = jax.random.split(key, 6)

    def around_one(key, amount, shape=()):
        return jnp.exp(jax.random.uniform(key, shape, minval=-1, maxval=1) * amount)

    x = jnp.clip(image / 255.0, 1e-4, 1.0) ** around_one(k[0], strength.gamma)
    x = x * around_one(k[1], strength.brightness) * around_one(k[2], strength.tint, (3,))
    mean = x.mean((0, 1))
    x = mean + (x - mean) * around_one(k[3], strength.contrast)
    grey = (x @ jnp.array([0.299, 0.587, 0.114]))[..., None]
    colour = jnp.where(jax.random.bernoulli(k[4], strength.grey), 0.0, around_one(k[5], strength.saturation))
    return jnp.clip(grey + (x - grey) * colour, 0.0, 1.0) * 255.0


def _occlude(key, image, strength: ParserAugmentation):
    """Covers a small rectangle with one colour; the map keeps its classes."""
    k = jax.random.split(key, 4)
    line = jnp.arange(image.shape[0]) / image.shape[0]
    top, left = jax.random.uniform(k[0], (2,), maxval=0.9)
    height, width = jax.random.uniform(k[1], (2,), minval=0.05, maxval=0.25)
    rows, columns = (line >= top) & (line < top + height), (line >= left) & (line < left + width)
    covered = rows[:, None] & columns[None, :] & jax.random.bernoulli(k[2], strength.occlude)
    return jnp.where(covered[..., None], jax.random.uniform(k[3], (3,), maxval=255.0), image)


def _degrade(key, image, strength: ParserAugmentation):
    """Blurs, as enlarging a small picture does, and adds noise."""
    k = jax.random.split(key, 5)
    sigma = jnp.where(
        jax.random.bernoulli(k[0], strength.blur), jax.random.uniform(k[1], minval=0.2, maxval=strength.max_blur), 0.05
    )
    line = jnp.arange(image.shape[0], dtype=jnp.float32)
    # A Gaussian as a dense matrix: the width differs a picture, and a matrix product takes it as a value.
    kernel = jax.nn.softmax(-((line[:, None] - line[None, :]) ** 2) / (2 * sigma**2), axis=-1)
    image = jnp.einsum("ij,jkc,lk->ilc", kernel, image, kernel)
    level = jax.random.uniform(k[2], maxval=strength.max_noise) * jax.random.bernoulli(k[3], strength.noise)
    return jnp.clip(image + level * jax.random.normal(k[4], image.shape), 0.0, 255.0)
