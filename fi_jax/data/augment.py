"""Pictures on the accelerator: normalisation, colour-coding of maps, and augmentation keyed by the step.

Augmenting inside the jitted step keeps the host to decoding alone, and makes the picture a pure function of
(seed, step, row): a resumed run sees the same pixels.
"""

from dataclasses import asdict, dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8, UInt32

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

    def scaled(self, strength: float) -> "Augmentation":
        """Returns every part at `strength` times its own, 0 to 1; the flip stays, as it costs a picture nothing."""
        parts = {name: strength * value for name, value in asdict(self).items()}
        return Augmentation(**parts | {"min_scale": 1 - strength * (1 - self.min_scale), "flip": self.flip})


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
    u = jax.random.uniform(key, (image.shape[0], _DRAWS))
    # Source places and packed pixels are kept: fused with their readers, a CPU would compute them again for each of
    # the four gathers; the augmentation then takes 1.7 times as long.
    place = jax.vmap(lambda u: _affine(u, strength))(u)
    at_y, at_x = jax.vmap(lambda m: _coordinates(m, *mask.shape[1:]))(place)
    packed, at_y, at_x = _keep(u[0, 0], (_packed(image, mask), at_y, at_x))
    corners: tuple[Array, Array, Array, Array] = _hold(jax.vmap(_corners)(packed, at_y, at_x))
    planes, classes = _hold(jax.vmap(_sample)(*corners, at_y, at_x))
    flip = u[:, 5] < strength.flip
    classes = jnp.where(flip[:, None, None], jnp.asarray(FLIPPED, jnp.int32)[classes], classes)
    means = jnp.stack([plane.mean((1, 2)) for plane in planes], -1)
    matrix, offset = _hold(jax.vmap(lambda u, mean: _colour(u, mean, strength))(u, means))
    planes = _hold(jax.vmap(_recolour)(planes, matrix, offset))
    return jax.vmap(lambda u, p: _soften_and_erase(u, p, strength))(u, planes), classes


# Red, green and blue apart: planes vectorise, triples do not, and stacking them is a pass of its own.
Planes = tuple[Float[Array, "y x"], Float[Array, "y x"], Float[Array, "y x"]]

_DRAWS = 19
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_hold = jax.lax.optimization_barrier


def _keep(draw: Float[Array, ""], values: tuple[Array, ...]) -> tuple[Array, ...]:
    """Holds values in memory on a CPU too, whose compiler drops barriers before it fuses; `draw` is any in [0, 1).

    It cannot know that a draw is below 1, and does not fuse across a branch.
    """
    return jax.lax.platform_dependent(
        draw,
        values,
        cpu=lambda draw, values: jax.lax.cond(draw < 1, lambda v: v, lambda v: jax.tree.map(jnp.zeros_like, v), values),
        default=lambda draw, values: _hold(values),
    )


def _affine(u: Float[Array, "19"], strength: Augmentation) -> Float[Array, "2 3"]:
    """Rows (source y, source x) of the map from places in the new picture, all in fractions from its centre."""
    scale = strength.min_scale + (1 - strength.min_scale) * u[0]
    aspect = jnp.exp(strength.aspect * _signed(u[1]))
    angle = strength.rotation * _signed(u[2])
    shift = _signed(u[3:5]) * ((1 - scale) / 2 + strength.max_shift)
    mirror = jnp.where(u[5] < strength.flip, -1.0, 1.0)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rows = [[scale / aspect * cos, scale / aspect * sin * mirror, shift[0]]]
    rows += [[-scale * aspect * sin, scale * aspect * cos * mirror, shift[1]]]
    return jnp.array(rows)


def _coordinates(
    place: Float[Array, "2 3"], height: int, width: int
) -> tuple[Float[Array, "y x"], Float[Array, "y x"]]:
    """Source row and column (pixels, inside the picture) of every new pixel."""
    y = ((jnp.arange(height) + 0.5) / height - 0.5)[:, None]
    x = ((jnp.arange(width) + 0.5) / width - 0.5)[None, :]
    at_y = (place[0, 0] * y + place[0, 1] * x + place[0, 2] + 0.5) * height - 0.5
    at_x = (place[1, 0] * y + place[1, 1] * x + place[1, 2] + 0.5) * width - 0.5
    return _snap(jnp.clip(at_y, 0, height - 1)), _snap(jnp.clip(at_x, 0, width - 1))


def _packed(image: UInt8[Array, "b y x 3"], mask: UInt8[Array, "b y x"]) -> UInt32[Array, "b y x"]:
    """Colour and class of every pixel in one number: one gather for all four."""
    red, green, blue = (image[..., c].astype(jnp.uint32) << (8 * c) for c in range(3))
    return red | green | blue | mask.astype(jnp.uint32) << 24


def _corners(packed: UInt32[Array, "y x"], at_y, at_x) -> tuple[Array, Array, Array, Array]:
    """The four pixels around each source place."""
    height, width = packed.shape
    y0, x0 = jnp.floor(at_y).astype(jnp.int32), jnp.floor(at_x).astype(jnp.int32)
    top, bottom, x1 = y0 * width, jnp.minimum(y0 + 1, height - 1) * width, jnp.minimum(x0 + 1, width - 1)
    pixels = packed.reshape(-1).at
    # `_coordinates` keeps places inside.
    places = (top + x0, top + x1, bottom + x0, bottom + x1)
    top_left, top_right, bottom_left, bottom_right = (pixels[at].get(mode="promise_in_bounds") for at in places)
    return top_left, top_right, bottom_left, bottom_right


def _sample(top_left, top_right, bottom_left, bottom_right, at_y, at_x) -> tuple[Planes, Int[Array, "y x"]]:
    """Bilinear colours and the nearest class."""
    wy, wx = at_y - jnp.floor(at_y), at_x - jnp.floor(at_x)

    def plane(c):
        tl, tr, bl, br = (
            ((v >> (8 * c)) & 255).astype(jnp.float32) for v in (top_left, top_right, bottom_left, bottom_right)
        )
        return (tl * (1 - wx) + tr * wx) * (1 - wy) + (bl * (1 - wx) + br * wx) * wy

    top = jnp.where(wx < 0.5, top_left, top_right)
    nearest = jnp.where(wy < 0.5, top, jnp.where(wx < 0.5, bottom_left, bottom_right))
    return tuple(plane(c) for c in range(3)), (nearest >> 24).astype(jnp.int32)


def _colour(u: Float[Array, "19"], mean: Float[Array, "3"], strength: Augmentation):
    """Brightness, then contrast about the mean, then saturation: one matrix and offset, as all are linear."""
    bright = 1 + strength.brightness * _signed(u[6])
    contrast = 1 + strength.contrast * _signed(u[7])
    keep = jnp.where(u[9] < strength.grey, 0.0, 1 + strength.saturation * _signed(u[8]))
    saturate = keep * jnp.eye(3) + (1 - keep) * jnp.asarray(_LUMA)[None, :]
    return bright * contrast * saturate, (saturate * mean).sum(1) * (bright * (1 - contrast))


def _recolour(planes: Planes, matrix: Float[Array, "3 3"], offset: Float[Array, "3"]) -> Float[Array, "3 y x"]:
    # Written out: a product with a 3x3 matrix is no work for a matrix unit.
    return jnp.stack([sum(planes[c] * matrix[d, c] for c in range(3)) + offset[d] for d in range(3)])


def _soften_and_erase(
    u: Float[Array, "19"], planes: Float[Array, "3 y x"], strength: Augmentation
) -> Float[Array, "y x 3"]:
    height, width = planes.shape[1:]
    # A 2x2 mean softens some pictures, as small originals are.
    pairs = planes + jnp.roll(planes, 1, 1)
    soft = (pairs + jnp.roll(pairs, 1, 2)) / 4
    planes = jnp.where(u[10] < strength.blur, soft, planes)
    # Hide one rectangle behind a flat colour; the map keeps its classes, so the two inputs complete each other.
    y = ((jnp.arange(height) + 0.5) / height)[:, None]
    x = ((jnp.arange(width) + 0.5) / width)[None, :]
    half = 0.05 + 0.15 * u[14:16]
    inside = (jnp.abs(y - u[12]) < half[0]) & (jnp.abs(x - u[13]) < half[1]) & (u[11] < strength.erase)
    planes = jnp.where(inside, 255.0 * u[16:19, None, None], planes)
    return jnp.moveaxis(jnp.clip(planes, 0, 255), 0, -1)


def _signed(u: Float[Array, "..."]) -> Float[Array, "..."]:
    return 2 * u - 1


def _snap(at: Float[Array, "..."]) -> Float[Array, "..."]:
    """Rounds positions to 1/256 pixel.

    The compiler may compute a position twice, once for the neighbour's index and once for its weight. Where rounding
    falls on two sides of a whole number, the wrong neighbour would get the whole weight.
    """
    return jnp.round(at * 256) / 256
