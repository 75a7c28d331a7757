"""Augmentation of pictures and their maps on the accelerator, keyed by the step.

Augmenting inside the jitted step keeps the host to decoding alone, and makes the picture a pure function of
(seed, step, row): a resumed run sees the same pixels.
"""

from dataclasses import asdict, dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8, UInt32

from fi_jax.labels.face_parts import FLIPPED
from fi_jax.models.flash import platform


@dataclass(frozen=True)
class Augmentation:
    """Strengths; zero (for the two scales, one) switches a part off. Lengths are fractions of the picture's side.

    Framing varies in aligned faces too, so that an error of the alignment, or a face left in its box, costs little. Greys and
    low resolution are for every set alike, so that those of one set (FER2013 is grey, 48 pixels) tell nothing.
    """

    # The part of the picture that is shown: nearer, or farther with its edge repeated.
    min_scale: float = 0.7
    max_scale: float = 1.15
    max_shift: float = 0.08
    # Logarithm of the largest change of width against height.
    aspect: float = 0.12
    rotation: float = 0.2
    flip: float = 0.5
    brightness: float = 0.25
    contrast: float = 0.25
    saturation: float = 0.3
    grey: float = 0.15
    blur: float = 0.25
    # Share of the pictures that keep 3/7 of their resolution (48 pixels of 112).
    coarse: float = 0.15
    erase: float = 0.3

    def scaled(self, strength: float) -> "Augmentation":
        """Returns every part at `strength` times its own, 0 to 1; the flip stays, as it costs a picture nothing."""
        parts = {name: strength * value for name, value in asdict(self).items()}
        scales = {name: 1 + strength * (getattr(self, name) - 1) for name in ("min_scale", "max_scale")}
        return Augmentation(**parts | scales | {"flip": self.flip})


def augment(
    key: Array, image: UInt8[Array, "b y x 3"], mask: UInt8[Array, "b y x"], strength: Augmentation
) -> tuple[Float[Array, "b y x 3"], Int[Array, "b y x"]]:
    """Randomly frames, turns, flips, recolours, blurs, coarsens and erases; the map follows the geometry.

    A horizontal flip swaps left and right classes. Returns pictures with values 0..255 and class indices.
    """
    # One draw for everything: many small draws would each be compiled.
    u = jax.random.uniform(key, (image.shape[0], _DRAWS))

    def one(face: tuple[Array, Array, Array]) -> tuple[Float[Array, "y x 3"], Int[Array, "y x"]]:
        draws, picture, classes = face
        return _augment_face(draws, picture, classes, strength, u[0, 0])

    faces = (u, image, mask)
    return jax.lax.map(one, faces) if _one_by_one() else jax.vmap(one)(faces)


def _one_by_one() -> bool:
    """Whether faces are augmented in a loop: one face's planes stay in a CPU's cache, and its buffers are reused.

    A batch's do not: 40 MB for 64 faces, and 1.5 times the time. A loop over a batch that is cut over devices would
    gather it on each of them.
    """
    return platform() == "cpu" and jax.device_count() == 1


def _augment_face(
    u: Float[Array, "20"],
    image: UInt8[Array, "y x 3"],
    mask: UInt8[Array, "y x"],
    strength: Augmentation,
    draw: Float[Array, ""],
) -> tuple[Float[Array, "y x 3"], Int[Array, "y x"]]:
    """Augments one face by its draws `u`; `draw` is any of the batch's."""
    # Places, weights and packed pixels are kept: fused with their readers, a CPU would compute them again for each of
    # the four gathers.
    packed, place, wy, wx = _keep(draw, (_packed(image, mask), *_places(_affine(u, strength), *mask.shape)))
    corners: tuple[Array, Array, Array, Array] = _hold(_corners(packed, place))
    planes, classes = _hold(_sample(*corners, wy, wx))
    planes = jax.lax.cond(u[19] < strength.coarse, _coarsened, lambda planes: planes, planes)
    classes = jnp.where(u[5] < strength.flip, jnp.asarray(FLIPPED, jnp.int32)[classes], classes)
    matrix, offset = _hold(_colour(u, planes[:, 1:, 1:].mean((1, 2)), strength))
    # Chosen by channel, not stacked: a CPU would write the planes first and copy them into triples afterwards.
    red, green, blue = (plane[..., None] for plane in _hold(_finish(u, planes, matrix, offset, strength)))
    channel = jnp.arange(3)
    return jnp.where(channel == 0, red, jnp.where(channel == 1, green, blue)), classes


_DRAWS = 20
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


def _affine(u: Float[Array, "20"], strength: Augmentation) -> Float[Array, "2 3"]:
    """Rows (source y, source x) of the map from places in the new picture, all in fractions from its centre."""
    scale = strength.min_scale + (strength.max_scale - strength.min_scale) * u[0]
    aspect = jnp.exp(strength.aspect * _signed(u[1]))
    angle = strength.rotation * _signed(u[2])
    shift = _signed(u[3:5]) * (jnp.maximum(1 - scale, 0) / 2 + strength.max_shift)
    mirror = jnp.where(u[5] < strength.flip, -1.0, 1.0)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rows = [[scale / aspect * cos, scale / aspect * sin * mirror, shift[0]]]
    rows += [[-scale * aspect * sin, scale * aspect * cos * mirror, shift[1]]]
    return jnp.array(rows)


def _places(
    rows: Float[Array, "2 3"], height: int, width: int
) -> tuple[Int[Array, "Y X"], Float[Array, "Y X"], Float[Array, "Y X"]]:
    """Where every new pixel comes from: the upper left of four old ones, and the weights of the lower and right ones.

    A row above and a column to the left come first, Y = y + 1 and X = x + 1: the blur reads them.
    """
    y = ((jnp.arange(-1, height) + 0.5) / height - 0.5)[:, None]
    x = ((jnp.arange(-1, width) + 0.5) / width - 0.5)[None, :]
    at_y = (rows[0, 0] * y + rows[0, 1] * x + rows[0, 2] + 0.5) * height - 0.5
    at_x = (rows[1, 0] * y + rows[1, 1] * x + rows[1, 2] + 0.5) * width - 0.5
    at_y, at_x = _snap(jnp.clip(at_y, 0, height - 1)), _snap(jnp.clip(at_x, 0, width - 1))
    # The last row and column are the lower and right ones of those before, with all the weight.
    top, left = jnp.minimum(jnp.floor(at_y), max(height - 2, 0)), jnp.minimum(jnp.floor(at_x), max(width - 2, 0))
    return (top * width + left).astype(jnp.int32), at_y - top, at_x - left


def _packed(image: UInt8[Array, "y x 3"], mask: UInt8[Array, "y x"]) -> UInt32[Array, "y x"]:
    """Colour and class of every pixel in one number: one gather for all four."""
    red, green, blue = (image[..., c].astype(jnp.uint32) << (8 * c) for c in range(3))
    return red | green | blue | mask.astype(jnp.uint32) << 24


def _corners(packed: UInt32[Array, "y x"], place: Int[Array, "Y X"]) -> tuple[Array, Array, Array, Array]:
    """The four pixels around each source place."""
    height, width = packed.shape
    right, down = min(1, width - 1), width * min(1, height - 1)
    pixels = packed.reshape(-1).at
    # `_places` keeps them inside.
    top_left, top_right, bottom_left, bottom_right = (
        pixels[place + step].get(mode="promise_in_bounds") for step in (0, right, down, down + right)
    )
    return top_left, top_right, bottom_left, bottom_right


def _sample(top_left, top_right, bottom_left, bottom_right, wy, wx) -> tuple[Float[Array, "3 Y X"], Int[Array, "y x"]]:
    """Bilinear colours, red, green and blue apart (planes vectorise, triples do not), and the nearest class."""
    shift = jnp.arange(0, 24, 8, dtype=jnp.uint32)[:, None, None]
    tl, tr, bl, br = (
        ((v >> shift) & 255).astype(jnp.float32) for v in (top_left, top_right, bottom_left, bottom_right)
    )
    planes = (tl * (1 - wx) + tr * wx) * (1 - wy) + (bl * (1 - wx) + br * wx) * wy
    top = jnp.where(wx < 0.5, top_left, top_right)
    nearest = jnp.where(wy < 0.5, top, jnp.where(wx < 0.5, bottom_left, bottom_right))
    return planes, (nearest[1:, 1:] >> 24).astype(jnp.int32)


def _coarsened(planes: Float[Array, "3 Y X"]) -> Float[Array, "3 Y X"]:
    """Scales planes down to 3/7 and up again (bilinear, antialiased), as one matrix a side."""
    rows, columns = (_resizing(n * 3 // 7, n) @ _resizing(n, n * 3 // 7) for n in planes.shape[1:])
    return jnp.einsum("ij,cjk,lk->cil", rows, planes, columns)


def _resizing(size: int, to: int) -> Float[np.ndarray, "to size"]:
    """The matrix that scales a line of pixels (triangle filter, as wide as the coarser pixels)."""
    wide = max(size / to, 1.0)
    at = (np.arange(to)[:, None] + 0.5) * size / to - (np.arange(size)[None, :] + 0.5)
    weight = np.maximum(1 - abs(at) / wide, 0)
    return (weight / weight.sum(1, keepdims=True)).astype(np.float32)


def _colour(u: Float[Array, "20"], mean: Float[Array, "3"], strength: Augmentation):
    """Brightness, then contrast about the mean, then saturation: one matrix and offset, as all are linear."""
    bright = 1 + strength.brightness * _signed(u[6])
    contrast = 1 + strength.contrast * _signed(u[7])
    keep = jnp.where(u[9] < strength.grey, 0.0, 1 + strength.saturation * _signed(u[8]))
    saturate = keep * jnp.eye(3) + (1 - keep) * jnp.asarray(_LUMA)[None, :]
    return bright * contrast * saturate, (saturate * mean).sum(1) * (bright * (1 - contrast))


def _finish(
    u: Float[Array, "20"],
    planes: Float[Array, "3 Y X"],
    matrix: Float[Array, "3 3"],
    offset: Float[Array, "3"],
    strength: Augmentation,
) -> list[Float[Array, "y x"]]:
    """Blur, colours and erasing in one pass; red, green and blue apart."""
    height, width = planes.shape[1] - 1, planes.shape[2] - 1
    # A 2x2 mean softens some pictures, as small originals are.
    here, above = planes[:, 1:, 1:], planes[:, :-1, 1:]
    soft = (here + above + (planes[:, 1:, :-1] + planes[:, :-1, :-1])) / 4
    soft = jnp.where(u[10] < strength.blur, soft, here)
    # Hide one rectangle behind a flat colour; the map keeps its classes, so the two inputs complete each other.
    y = ((jnp.arange(height) + 0.5) / height)[:, None]
    x = ((jnp.arange(width) + 0.5) / width)[None, :]
    half = 0.05 + 0.15 * u[14:16]
    inside = (jnp.abs(y - u[12]) < half[0]) & (jnp.abs(x - u[13]) < half[1]) & (u[11] < strength.erase)
    # Written out: a product with a 3x3 matrix is no work for a matrix unit.
    mixed = (sum(soft[c] * matrix[d, c] for c in range(3)) + offset[d] for d in range(3))
    return [jnp.clip(jnp.where(inside, 255.0 * u[16 + d], plane), 0, 255) for d, plane in enumerate(mixed)]


def _signed(u: Float[Array, "..."]) -> Float[Array, "..."]:
    return 2 * u - 1


def _snap(at: Float[Array, "..."]) -> Float[Array, "..."]:
    """Rounds positions to 1/256 pixel.

    A compiler that does not keep them may compute a position twice, once for the neighbours' index and once for their
    weight. Where rounding falls on two sides of a whole number, the wrong neighbour would get the whole weight.
    """
    return jnp.round(at * 256) / 256
