"""One frame for every face: a similarity transform (rotation, scale, shift) that brings its parts to fixed places.

Ours. The parts' centres come from a segmentation map `[y, x]`; points are complex numbers, x + iy, so that a similarity is
z -> scale·z + shift. This file imports nothing of ours: `fi-jax export` puts a copy of it beside a model in PyTorch.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

# The classes (labels/face_parts.py) of the person's left eye, right eye, mouth and lips, left brow, right brow and nose.
PARTS = ((4,), (5,), (10, 11, 12), (6,), (7,), (2,))
# Where their centres come to lie, in sides of the frame, and how far faces scatter about that, in distances of the eyes:
# means and standard deviations of 815 faces of CelebAMask-HQ after eyes and mouth were brought together. The scale is ours:
# as near as leaves the hair in sight, with the eyes 0.28 apart (benchmarks/README.md).
FRAME = np.array(
    [0.6399 + 0.4423j, 0.3599 + 0.4420j, 0.5 + 0.7566j, 0.6462 + 0.3688j, 0.3518 + 0.3699j, 0.4994 + 0.5571j]
)
SCATTER = np.array([0.041, 0.041, 0.032, 0.100, 0.101, 0.075])
# A nearer one, that of UTKFace's chips: the eyes 0.386 apart, 0.296 from the top.
NEAR = 0.5 + 0.296j + (FRAME - FRAME[:2].mean()) * 0.386 / 0.28
# A crop with a side of this many sides of the near frame, or fewer, is as near.
NEAR_ENOUGH = 1.2
# A face is brought there when its parts come this close (root of the weighted mean square, in distances of the eyes), and
# when the frame has a side between these, in sides of the square that the map shows.
MAX_RESIDUAL = 0.25
SIDES = (0.4, 2.5)
# The turned square is cut at this many times its size first, so that turning it blurs little.
FINER = 1.5

_PART_OF = np.full(256, len(PARTS))
for _part, _classes in enumerate(PARTS):
    _PART_OF[list(_classes)] = _part
# Left, top, right, bottom in pixels; may overrun the picture.
Box = tuple[float, float, float, float]


class Similarity(NamedTuple):
    """The map z -> scale·z + shift of points of one picture to points of another."""

    scale: complex
    shift: complex

    def inverse(self) -> "Similarity":
        """Returns the map back."""
        return Similarity(1 / self.scale, -self.shift / self.scale)

    def after(self, first: "Similarity") -> "Similarity":
        """Returns the map that goes through `first`, then through this one."""
        return Similarity(self.scale * first.scale, self.scale * first.shift + self.shift)

    def __call__(self, points):
        return self.scale * points + self.shift


def part_centres(mask: np.ndarray) -> np.ndarray:
    """Returns the centre of each of `PARTS` in a map (complex, pixels); NaN for one that is not to be seen.

    Where left and right were confused, they are put right.
    """
    centres = _centres(mask)
    return centres[[1, 0, 2, 4, 3, 5]] if _confused(centres) else centres


def is_mirrored(mask: np.ndarray) -> bool:
    """Tells whether the left eye is where the right one belongs, as seen from the mouth, however the face is turned.

    False where an eye, or both mouth and nose, are not to be seen, or where the three lie nearly in a line.
    """
    return _confused(_centres(mask))


def _centres(mask: np.ndarray) -> np.ndarray:
    part = _PART_OF[mask]
    y, x = np.nonzero(part < len(PARTS))
    seen = part[y, x]
    count = np.bincount(seen, minlength=len(PARTS))
    with np.errstate(invalid="ignore"):
        across = np.bincount(seen, x + 0.5, len(PARTS)) / count
        down = np.bincount(seen, y + 0.5, len(PARTS)) / count
    return across + 1j * down


def _confused(centres: np.ndarray) -> bool:
    left, right, mouth, nose = centres[[0, 1, 2, 5]]
    across, down = left - right, (nose if np.isnan(mouth) else mouth) - (left + right) / 2
    return bool((across.conjugate() * down).imag < -0.3 * abs(across) * abs(down))


def fit(points: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> Similarity:
    """Returns the similarity that brings `points` closest to `targets` (weighted least squares; Umeyama 1991, unmirrored)."""
    w = weights / weights.sum()
    start, end = (w * points).sum(), (w * targets).sum()
    p, q = points - start, targets - end
    scale = complex((w * p.conj() * q).sum() / max((w * abs(p) ** 2).sum(), 1e-12))
    return Similarity(scale, complex(end - scale * start))


def align(centres: np.ndarray, frame: np.ndarray = FRAME) -> Similarity | None:
    """Returns the similarity from a map to `frame`, whose side is 1; None where the parts cannot be trusted.

    It takes the mouth and two more parts, each weighted by how little faces scatter there, and a fit that is close.
    """
    seen = np.isfinite(centres)
    if seen.sum() < 3 or not seen[2]:
        return None
    weights = SCATTER[seen] ** -2.0
    found = fit(centres[seen], frame[seen], weights)
    error = abs(found(centres[seen]) - frame[seen]) / abs(frame[0] - frame[1])
    return found if np.sqrt((weights * error**2).sum() / weights.sum()) <= MAX_RESIDUAL else None


def into_frame(
    cut: Callable[[Box, int], np.ndarray],
    mask: np.ndarray,
    square: Box,
    picture: tuple[int, int],
    size: int,
    frame: np.ndarray = FRAME,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns a face and its map in `frame`, `[size, size, 3]` and `[size, size]`; None where it is not trusted.

    Args:
      cut: returns a square of the picture at some size, the picture's edge repeated outside.
      mask: the map of `square`; outside it the result has class 0.
      picture: height and width, pixels.
    """
    to_mask = _to_pixels(square, len(mask))
    in_map = align(part_centres(mask), frame)
    if in_map is None:
        return None
    back = in_map.after(to_mask).inverse()
    middle, side = back(0.5 + 0.5j), abs(back.scale)
    inside = 0 <= middle.real <= picture[1] and 0 <= middle.imag <= picture[0]
    if not inside or not SIDES[0] <= side / (square[2] - square[0]) <= SIDES[1]:
        return None
    # The upright square around the turned one.
    half = (abs(back.scale.real) + abs(back.scale.imag)) / 2
    upright = (middle.real - half, middle.imag - half, middle.real + half, middle.imag + half)
    pixels = int(np.ceil(FINER * size * 2 * half / side))
    image = _warp(cut(upright, pixels), _to_pixels(upright, pixels).after(back), size, Image.Resampling.BILINEAR)
    return image, _warp(mask, to_mask.after(back), size, Image.Resampling.NEAREST)


def nearer(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns a square crop and its map in the frame `NEAR`, as large as they were.

    They stay as they are where the map's parts are not trusted, and where the crop is as near already.
    """
    found = align(part_centres(mask), NEAR)
    if found is None or not NEAR_ENOUGH < abs(found.scale) * len(mask) <= 1 / SIDES[0]:
        return image, mask
    into_image = Similarity(len(image) / len(mask), 0).after(found.inverse())
    return (
        _warp(image, into_image, len(image), Image.Resampling.BILINEAR),
        _warp(mask, found.inverse(), len(mask), Image.Resampling.NEAREST),
    )


def _to_pixels(square: Box, side: int) -> Similarity:
    """The map from points of the picture to pixels of the square cut at `side` pixels."""
    scale = side / (square[2] - square[0])
    return Similarity(scale, -scale * complex(square[0], square[1]))


def _warp(image: np.ndarray, source: Similarity, size: int, how: Image.Resampling) -> np.ndarray:
    """Samples `image` at `source` of the frame's points (0 to 1); class or colour 0 outside."""
    a, b = source.scale / size, source.shift
    rows = (a.real, -a.imag, b.real, a.imag, a.real, b.imag)
    return np.asarray(Image.fromarray(image).transform((size, size), Image.Transform.AFFINE, rows, how))
