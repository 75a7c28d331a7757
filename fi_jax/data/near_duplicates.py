"""Groups the near-duplicates of a set (one photograph saved twice, retouched or mirrored), so that no group is split."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from fi_jax.data.kept import kept_json
from fi_jax.errors import UserError
from fi_jax.pictures.crop import Box, crop_square
from fi_jax.pictures.decode import decode, grey, thumbnail
from fi_jax.progress import progress_bar

# Side of the grey miniature that pictures are compared by.
THUMBNAIL = 32
# Pictures whose miniatures correlate at least this much are near-duplicates. On UTKFace the share of pictures
# with one hardly depends on it (7.3 % at 0.95, 7.0 % at 0.97), and pairs below it are mostly different people
# under the same light.
THRESHOLD_PERCENT = 95
_BLOCK = 1024


def near_duplicate_groups(
    dataset: str,
    keys: Sequence[str],
    paths: Sequence[Path],
    boxes: Sequence[Box | None] | None = None,
    also: Sequence[str] | None = None,
) -> tuple[dict[str, str], dict[str, str]]:
    """Returns `(group name by key, reason by key of boxes that lie outside their picture)`.

    A group is named after its alphabetically first key. With `boxes` the faces inside them are compared, and `also`
    gives each key a second group (the photograph a face is from) that stays together. A picture that cannot be read
    is its own group: the loader will list it. Depends on which pictures are there, so a set that is only partly there
    may be split a little differently. The result is kept in the cache, under the names, sizes and boxes of the files.
    """
    if not keys:
        return {}, {}
    described = [f"{THUMBNAIL} {THRESHOLD_PERCENT}"]
    for i, (key, path) in enumerate(zip(keys, paths, strict=True)):
        described.append(f"{key}\t{_size(path)}\t{boxes[i] if boxes else ''}\t{also[i] if also else ''}")
    found = kept_json("near_duplicates", described, lambda: _find(dataset, keys, paths, boxes, also))
    return {key: found["groups"].get(key, key) for key in keys}, found["outside"]


def _find(dataset, keys, paths, boxes, also) -> dict:
    thumbnails = np.zeros((len(keys), THUMBNAIL, THUMBNAIL), np.uint8)
    outside = {}
    with progress_bar(f"{dataset}: looking for near-duplicates", 2 * len(keys)) as advance:
        for i, (key, path) in enumerate(zip(keys, paths, strict=True)):
            try:
                if boxes is None or boxes[i] is None:
                    thumbnails[i] = thumbnail(path, THUMBNAIL)
                else:
                    picture = decode(path)
                    try:
                        thumbnails[i] = grey(crop_square(picture, boxes[i], THUMBNAIL))
                    except UserError as error:
                        outside[key] = str(error)
            except UserError:
                pass
            advance()
        edges = near_duplicate_pairs(thumbnails, advance)
    names = group_names(keys, edges, also)
    return {"groups": {key: name for key, name in names.items() if key != name}, "outside": outside}


def near_duplicate_pairs(
    thumbnails: UInt8[np.ndarray, "m s s"], progress: Callable[[int], None] = lambda count: None
) -> Int[np.ndarray, "p 2"]:
    """Returns the pairs of pictures whose miniatures, or one and the other's mirror image, correlate at 0.95 or more.

    Candidates come from a float32 matrix product and are confirmed in exact integer arithmetic, so the result is the
    same on every machine. A miniature without contrast has no near-duplicate. `progress` is called with the number of
    pictures done since.
    """
    count = len(thumbnails)
    flat = thumbnails.reshape(count, -1)
    mirrored = np.ascontiguousarray(thumbnails[:, :, ::-1]).reshape(count, -1)
    unit, unit_mirrored = _unit(flat), _unit(mirrored)
    pairs = []
    for start in range(0, count, _BLOCK):
        block = unit[start : start + _BLOCK]
        for others, other_units in ((flat, unit), (mirrored, unit_mirrored)):
            close = block @ other_units[start:].T >= THRESHOLD_PERCENT / 100 - 1e-4
            for i, j in zip(*np.nonzero(close)):
                if i < j and _correlated(flat[start + i], others[start + j]):
                    pairs.append((start + i, start + j))
        progress(len(block))
    return np.array(pairs, np.int64).reshape(-1, 2)


def group_names(
    keys: Sequence[str], pairs: Int[np.ndarray, "p 2"], also: Sequence[str] | None = None
) -> dict[str, str]:
    """Returns each key's group: the connected components of `pairs` and of equal `also`, named after their first key."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if also is not None:
        first: dict[str, int] = {}
        together = [(first.setdefault(name, i), i) for i, name in enumerate(also)]
        pairs = np.concatenate([pairs, np.array(together, np.int64).reshape(-1, 2)])
    if not len(keys):
        return {}
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(len(keys), len(keys)))
    components = connected_components(graph, directed=False)[1].tolist()
    names: dict[int, str] = {}
    for key, component in zip(keys, components, strict=True):
        names[component] = min(names.get(component, key), key)
    return {key: names[component] for key, component in zip(keys, components, strict=True)}


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


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
