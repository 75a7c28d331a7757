"""One frame for every face: a similarity transform (rotation, scale, shift) that brings eyes and mouth to fixed places.

Ours. Landmarks come from a segmentation map; a point is a complex number, x + iy, so that a similarity is z -> az + b.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Complex, UInt8

from fi_jax.faces.masks import centre

# Where the person's left eye, right eye and mouth come to lie, in sides of the frame: the medians of CelebAMask-HQ.
FRAME = np.array([0.6222 + 0.4777j, 0.3778 + 0.4777j, 0.5 + 0.751j])
# Landmarks are trusted when, in the frame, they lie this close to `FRAME` (root mean square, in eye distances).
MAX_RESIDUAL = 0.25


class Similarity(NamedTuple):
    """The map z -> scale·z + shift of points of the picture to points of the frame (pixels of both)."""

    scale: complex
    shift: complex

    def inverse(self) -> "Similarity":
        """Returns the map from the frame to the picture."""
        return Similarity(1 / self.scale, -self.shift / self.scale)

    def __call__(self, points: Complex[np.ndarray, "*n"]) -> Complex[np.ndarray, "*n"]:
        return self.scale * points + self.shift


def landmarks(mask: UInt8[np.ndarray, "y x"]) -> Complex[np.ndarray, "3"] | None:
    """Returns the centres of left eye, right eye and mouth in a map (pixels); None where one is not to be seen."""
    found = [centre(mask, "l_eye"), centre(mask, "r_eye"), centre(mask, "mouth", "u_lip", "l_lip")]
    if any(point is None for point in found):
        return None
    return np.array([complex(*point) for point in found if point is not None])


def fit(points: Complex[np.ndarray, "n"], targets: Complex[np.ndarray, "n"]) -> Similarity:
    """Returns the similarity that brings `points` closest to `targets` (least squares; Umeyama 1991, without mirroring)."""
    p, q = points - points.mean(), targets - targets.mean()
    scale = complex((p.conj() * q).sum() / max((abs(p) ** 2).sum(), 1e-12))
    return Similarity(scale, complex(targets.mean() - scale * points.mean()))


def align(points: Complex[np.ndarray, "3"] | None, size: int) -> Similarity | None:
    """Returns the similarity from the picture to the frame of `size` pixels; None where landmarks cannot be trusted."""
    if points is None:
        return None
    found = fit(points, FRAME * size)
    residual = np.sqrt((abs(found(points) - FRAME * size) ** 2).mean()) / (abs(FRAME[0] - FRAME[1]) * size)
    return found if residual <= MAX_RESIDUAL else None


def warp(image: UInt8[np.ndarray, "y x 3"], to_frame: Similarity, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Returns the picture in the frame (bilinear); beyond the picture its edge is repeated.

    A picture much larger than the frame is to be scaled down before, for nothing is averaged here.
    """
    line = np.arange(size) + 0.5
    source = to_frame.inverse()(line[None, :] + 1j * line[:, None])
    height, width = image.shape[:2]
    x, y = np.clip(source.real - 0.5, 0, width - 1), np.clip(source.imag - 0.5, 0, height - 1)
    x0, y0 = x.astype(int), y.astype(int)
    x1, y1 = np.minimum(x0 + 1, width - 1), np.minimum(y0 + 1, height - 1)
    right, below = (x - x0)[..., None], (y - y0)[..., None]
    upper = image[y0, x0] * (1 - right) + image[y0, x1] * right
    lower = image[y1, x0] * (1 - right) + image[y1, x1] * right
    return np.round(upper * (1 - below) + lower * below).astype(np.uint8)
