"""Findings about files that take long, kept as JSON in the cache folder, or as arrays in a folder that is named."""

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np

from fi_jax.errors import UserError
from fi_jax.files import atomic_path, cache_folder, is_intact, seal, sha256, write_json

log = logging.getLogger(__name__)


def kept_json(kind: str, described: Iterable[str], find: Callable[[], dict]) -> dict:
    """Returns what `find` returns, kept under `described`: lines that change whenever the finding would.

    A kept finding that was damaged is found anew. Where the cache folder cannot be written, nothing is kept.
    """
    path = cache_folder() / kind / f"{sha256(chr(10).join(described))[:20]}.json"
    if is_intact(path):
        return json.loads(path.read_text())
    found = find()
    _keep(path, lambda: write_json(path, found))
    return found


def kept_arrays(path: Path, find: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns the arrays that `find` returns, kept in `path` (.npz), on the terms of `kept_json`."""
    if is_intact(path):
        with np.load(path) as arrays:
            return dict(arrays)
    found = find()

    def write() -> None:
        with atomic_path(path) as temporary:
            np.savez(temporary, **cast(dict[str, Any], found))

    _keep(path, write)
    return found


def _keep(path: Path, write: Callable[[], None]) -> None:
    try:
        write()
        seal(path)
    except UserError as error:
        log.warning(f"{error}; going on without the cache")
