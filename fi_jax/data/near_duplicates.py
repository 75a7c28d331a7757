"""Finds near-twins (the same photograph saved twice, retouched or mirrored) among miniatures of pictures."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int, UInt8

# Side of the grey miniature that pictures are compared by.
THUMBNAIL = 32
# Pictures whose miniatures correlate at least this much are twins. On UTKFace the share of pictures
# with a twin hardly depends on it (7.3 % at 0.95, 7.0 % at 0.97), and pairs below it are mostly
# different people under the same light.
THRESHOLD_PERCENT = 95
_BLOCK = 1024


def find_twins(
    thumbnails: UInt8[np.ndarray, "m s s"], progress: Callable[[int], None] = lambda count: None
) -> Int[np.ndarray, "m"]:
    """Returns for each picture the index of the first picture of its cluster (its own if it has no twin).

    Two pictures are twins when their miniatures, or one and the other's mirror image, have Pearson
    correlation ≥ 0.95; clusters are connected components. Candidates come from a float32 matrix
    product and are confirmed in exact integer arithmetic, so the result is the same on every machine.
    A miniature without contrast has no twin. `progress` is called with the number of pictures done since.
    """
    count = len(thumbnails)
    flat = thumbnails.reshape(count, -1)
    mirrored = np.ascontiguousarray(thumbnails[:, :, ::-1]).reshape(count, -1)
    unit, unit_mirrored = _unit(flat), _unit(mirrored)
    parent = np.arange(count)
    for start in range(0, count, _BLOCK):
        block = unit[start : start + _BLOCK]
        for others, other_units in ((flat, unit), (mirrored, unit_mirrored)):
            close = block @ other_units[start:].T >= THRESHOLD_PERCENT / 100 - 1e-4
            for i, j in zip(*np.nonzero(close)):
                if i < j and _correlated(flat[start + i], others[start + j]):
                    _union(parent, start + i, start + j)
        progress(len(block))
    return np.array([_find(parent, i) for i in range(count)], np.int64)


def group(keys: Sequence[str], clusters: Int[np.ndarray, "m"], also: Sequence[str] | None = None) -> dict[str, str]:
    """Names each key's cluster after the cluster's alphabetically first key.

    `also` gives each key a second group (e.g. the photograph a face is from) that is kept together.
    """
    parent = np.arange(len(keys))
    first: dict[str, int] = {}
    for i, cluster in enumerate(clusters):
        _union(parent, i, int(cluster))
        if also is not None:
            _union(parent, i, first.setdefault(also[i], i))
    names: dict[int, str] = {}
    for i, key in enumerate(keys):
        root = _find(parent, i)
        names[root] = min(names.get(root, key), key)
    return {key: names[_find(parent, i)] for i, key in enumerate(keys)}


def _unit(flat: np.ndarray) -> np.ndarray:
    unit = flat.astype(np.float32)
    unit -= unit.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(unit, axis=1, keepdims=True)
    return np.divide(unit, norm, out=np.zeros_like(unit), where=norm > 0)


def _correlated(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether the correlation is at least the threshold, decided in integers."""
    x, y, n = a.astype(np.int64), b.astype(np.int64), len(a)
    covariance = int(n * (x @ y) - x.sum() * y.sum())
    variances = int(n * (x @ x) - x.sum() ** 2) * int(n * (y @ y) - y.sum() ** 2)
    return covariance > 0 and 10_000 * covariance**2 >= THRESHOLD_PERCENT**2 * variances > 0


def _find(parent: np.ndarray, i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = int(parent[i])
    return int(i)


def _union(parent: np.ndarray, i: int, j: int) -> None:
    a, b = _find(parent, i), _find(parent, j)
    # The smaller index is the root, so that clusters are named after their first picture.
    parent[max(a, b)] = min(a, b)
