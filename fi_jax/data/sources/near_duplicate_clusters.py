"""Names the cluster of near-twins of every picture of a set, once, and keeps the result in the cache."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fi_jax.data import near_duplicates as twins
from fi_jax.errors import UserError
from fi_jax.files import cache_folder, write_json
from fi_jax.pictures.crop import Box, crop_square
from fi_jax.pictures.decode import decode, grey, thumbnail
from fi_jax.progress import progress_bar

_VERSION = 1


def cluster_names(
    dataset: str,
    keys: Sequence[str],
    paths: Sequence[Path],
    boxes: Sequence[Box | None] | None = None,
    also: Sequence[str] | None = None,
) -> tuple[dict[str, str], dict[str, str]]:
    """Returns `(cluster name by key, reason by key of boxes that lie outside their picture)`.

    A cluster is named after its first key (`data.near_duplicates`); with `boxes` the faces inside them are
    compared, and `also` names a second group that stays together. A picture that cannot be read is
    its own cluster: the loader will list it. Depends on which pictures are there, so a set that is
    only partly there may be dealt a little differently. The result is cached by the names, sizes and
    boxes of the files.
    """
    if not keys:
        return {}, {}
    digest = hashlib.sha256(f"{_VERSION} {twins.THUMBNAIL} {twins.THRESHOLD_PERCENT}\n".encode())
    for i, (key, path) in enumerate(zip(keys, paths, strict=True)):
        digest.update(f"{key}\t{_size(path)}\t{boxes[i] if boxes else ''}\t{also[i] if also else ''}\n".encode())
    cached = cache_folder() / "twins" / f"{dataset}-{digest.hexdigest()[:20]}.json"
    if cached.exists():
        found = json.loads(cached.read_text())
    else:
        found = _find(dataset, keys, paths, boxes, also)
        write_json(cached, found)
    return {key: found["clusters"].get(key, key) for key in keys}, found["outside"]


def _find(dataset, keys, paths, boxes, also) -> dict:
    thumbnails = np.zeros((len(keys), twins.THUMBNAIL, twins.THUMBNAIL), np.uint8)
    outside = {}
    with progress_bar(f"{dataset}: looking for near-twins", 2 * len(keys)) as advance:
        for i, (key, path) in enumerate(zip(keys, paths, strict=True)):
            box = boxes[i] if boxes else None
            try:
                if box is None:
                    thumbnails[i] = thumbnail(path, twins.THUMBNAIL)
                else:
                    picture = decode(path)
                    thumbnails[i], outside_reason = _face(picture, box)
                    if outside_reason:
                        outside[key] = outside_reason
            except UserError:
                pass
            advance()
        clusters = twins.find_twins(thumbnails, advance)
    names = twins.group(keys, clusters, also)
    return {"clusters": {key: name for key, name in names.items() if key != name}, "outside": outside}


def _face(picture: np.ndarray, box: Box) -> tuple[np.ndarray, str]:
    """Returns the miniature of the face in `box`, and why there is none."""
    try:
        return grey(crop_square(picture, box, twins.THUMBNAIL)), ""
    except UserError as error:
        return np.zeros((twins.THUMBNAIL, twins.THUMBNAIL), np.uint8), str(error)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1
