"""Names the cluster of near-twins of every picture of a set, once, and keeps the result in the cache."""

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fi_jax.data import images, twins
from fi_jax.data.records import Box
from fi_jax.errors import UserError

_VERSION = 1


def cache_folder() -> Path:
    """Returns the cache folder: `$FI_JAX_CACHE`, or `~/.cache/fi_jax`."""
    return Path(os.environ.get("FI_JAX_CACHE") or Path.home() / ".cache" / "fi_jax")


def cluster_names(
    dataset: str,
    keys: Sequence[str],
    paths: Sequence[Path],
    boxes: Sequence[Box | None] | None = None,
    also: Sequence[str] | None = None,
) -> tuple[dict[str, str], dict[str, str]]:
    """Returns `(cluster name by key, reason by key of boxes that lie outside their picture)`.

    A cluster is named after its first key (`data.twins`); with `boxes` the faces inside them are
    compared, and `also` names a second group that stays together. A picture that cannot be read is
    its own cluster: the loader will list it. Depends on which pictures are there, so a set that is
    only partly there may be dealt a little differently. The result is cached by the names, sizes and
    boxes of the files.
    """
    digest = hashlib.sha256(f"{_VERSION} {twins.THUMBNAIL} {twins.THRESHOLD_PERCENT}\n".encode())
    for i, (key, path) in enumerate(zip(keys, paths, strict=True)):
        digest.update(f"{key}\t{_size(path)}\t{boxes[i] if boxes else ''}\t{also[i] if also else ''}\n".encode())
    cached = cache_folder() / "twins" / f"{dataset}-{digest.hexdigest()[:20]}.json"
    if cached.exists():
        found = json.loads(cached.read_text())
    else:
        found = _find(dataset, keys, paths, boxes, also)
        _write(cached, found)
    return {key: found["clusters"].get(key, key) for key in keys}, found["outside"]


def _find(dataset, keys, paths, boxes, also) -> dict:
    from rich.console import Console
    from rich.progress import Progress

    thumbnails = np.zeros((len(keys), twins.THUMBNAIL, twins.THUMBNAIL), np.uint8)
    outside = {}
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(f"{dataset}: looking for near-twins", total=2 * len(keys))
        for i, (key, path) in enumerate(zip(keys, paths, strict=True)):
            if i % 100 == 0:
                progress.update(task, completed=i)
            try:
                if boxes is None or boxes[i] is None:
                    thumbnails[i] = images.thumbnail(path, twins.THUMBNAIL)
                    continue
                picture = images.decode(path)
            except UserError:
                continue
            try:
                thumbnails[i] = images.grey(images.crop_square(picture, boxes[i], twins.THUMBNAIL))
            except UserError as error:
                outside[key] = str(error)
        clusters = twins.find_twins(thumbnails, lambda done, total: progress.update(task, completed=total + done))
    names = twins.group(keys, clusters, also)
    return {"clusters": {key: name for key, name in names.items() if key != name}, "outside": outside}


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _write(path: Path, found: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        json.dump(found, file)
    Path(file.name).replace(path)
