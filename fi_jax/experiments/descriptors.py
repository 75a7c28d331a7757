"""Features of faces that no label has shaped: histograms of gradients and colours on a grid, and their main directions.

Features of an encoder that was trained with labels would answer the question of an ablation before it is put.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from fi_jax.data.examples import fingerprint
from fi_jax.data.kept import kept_arrays
from fi_jax.data.records import FaceRecord
from fi_jax.pictures.crop import load_square
from fi_jax.progress import progress_bar

_SIDE = 64
_COLOURS = 8


def describe(image: UInt8[np.ndarray, "y x 3"]) -> Float[np.ndarray, "d"]:
    """Gradients of a 64×64 face (9 directions in cells of 8 pixels, blocks of 2×2) and its Lab colours on an 8×8 grid."""
    from skimage.color import rgb2gray, rgb2lab
    from skimage.feature import hog

    gradients = hog(rgb2gray(image), orientations=9, pixels_per_cell=(8, 8), cells_per_block=(2, 2))
    cell = _SIDE // _COLOURS
    colours = rgb2lab(image).reshape(_COLOURS, cell, _COLOURS, cell, 3).mean((1, 3)) / 100
    return np.concatenate([gradients, colours.ravel()]).astype(np.float32)


def face_descriptors(records: Sequence[FaceRecord], cache: Path) -> Float[np.ndarray, "f d"]:
    """`describe` of every face, kept in folder `cache`."""

    def one(record: FaceRecord) -> np.ndarray:
        return describe(load_square(record.image, record.box, _SIDE, record.key))

    def find() -> dict[str, np.ndarray]:
        found = []
        with ThreadPoolExecutor(2) as pool, progress_bar("describing faces", len(records)) as advance:
            for row in pool.map(one, records):
                found.append(row)
                advance()
        return {"descriptors": np.stack(found)}

    return kept_arrays(cache / f"descriptors-{fingerprint(records)[:16]}.npz", find)["descriptors"]


class Directions(NamedTuple):
    """The main directions of a set of features; each then has the same spread."""

    mean: Float[np.ndarray, "d"]
    axes: Float[np.ndarray, "d k"]

    def of(self, features: Float[np.ndarray, "f d"]) -> Float[np.ndarray, "f k"]:
        """Features along the directions."""
        return (features - self.mean) @ self.axes


def main_directions(features: Float[np.ndarray, "f d"], size: int) -> Directions:
    """The `size` directions along which `features` vary most (principal components, whitened). No label is looked at."""
    mean = features.mean(0)
    centred = (features - mean).astype(np.float64)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(features))
    axes = vectors[:, ::-1][:, :size] / np.sqrt(np.maximum(values[::-1][:size], 1e-9))
    return Directions(mean, axes.astype(np.float32))
