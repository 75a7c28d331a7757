"""The one format of saved counts and graphs: an npz with the labels' names and matrices over them."""

import io
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from fi_jax.errors import UserError
from fi_jax.knowledge.correlation import Counts

_OF_ZIP = (zipfile.BadZipFile, zlib.error)


def graph_bytes(names: Sequence[str], counts: Counts, **matrices: Shaped[np.ndarray, "n n"]) -> bytes:
    """Returns the npz with `names`, the counts `m`, `n`, `k`, and further matrices (`p`, `c`, `graph`)."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {"names": np.array(names), **counts._asdict(), **matrices}
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def read_graph(path: Path, wanted: Sequence[str] = ("graph",)) -> tuple[list[str], dict[str, np.ndarray]]:
    """Returns the labels' names and the `wanted` matrices of a file that `fi-jax graph` or `prepare` wrote.

    Raises:
      UserError: the file is missing, damaged, or lacks one of the matrices.
    """
    if not Path(path).is_file():
        raise UserError(f"'{path}' does not exist; make it with 'fi-jax graph DATASET --data-root DIR --out DIR'")
    try:
        with np.load(path) as arrays:
            # The first version wrote graphs with `labels` for `names`.
            names = [str(name) for name in arrays["labels" if "labels" in arrays else "names"]]
            found = {key: arrays[key] for key in wanted if key in arrays}
    except (OSError, ValueError, KeyError, EOFError, TypeError, MemoryError, RuntimeError, *_OF_ZIP) as error:
        raise UserError(f"'{path}' is not a graph that 'fi-jax graph' wrote ({str(error)[:80]})") from None
    for key in wanted:
        if key not in found or found[key].shape != (len(names), len(names)) or found[key].dtype.kind not in "iuf":
            raise UserError(f"'{path}' holds no matrix '{key}' over its {len(names)} labels")
    return names, found
