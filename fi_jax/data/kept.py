"""Findings about files that take long, kept in the cache folder as JSON."""

import json
import logging
from collections.abc import Callable, Iterable

from fi_jax.errors import UserError
from fi_jax.files import cache_folder, is_intact, seal, sha256, write_json

log = logging.getLogger(__name__)


def kept_json(kind: str, described: Iterable[str], find: Callable[[], dict]) -> dict:
    """Returns what `find` returns, kept under `described`: lines that change whenever the finding would.

    A kept finding that was damaged is found anew. Where the cache folder cannot be written, nothing is kept.
    """
    path = cache_folder() / kind / f"{sha256(chr(10).join(described))[:20]}.json"
    if is_intact(path):
        return json.loads(path.read_text())
    found = find()
    try:
        write_json(path, found)
        seal(path)
    except UserError as error:
        log.warning(f"{error}; going on without the cache")
    return found
