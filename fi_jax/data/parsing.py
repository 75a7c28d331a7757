"""Makes the segmentation maps of faces whose set has none, on every core of a machine without an accelerator."""

import logging
import os
from collections.abc import Sequence
from functools import partial

from fi_jax.config import DataConfig
from fi_jax.data.processes import in_processes
from fi_jax.data.records import FaceRecord
from fi_jax.faces.map_cache import map_folder, with_maps
from fi_jax.progress import progress_bar

log = logging.getLogger(__name__)

# Faces that one process is given at a time.
_CHUNK = 32
# Seconds of a core a face of 128 pixels takes.
_SECONDS = 0.05


def make_maps(faces: Sequence[FaceRecord], parser: str, workers: int) -> None:
    """Makes every map that is missing in the map cache. Each is kept as it is made, so it may be stopped at any moment.

    On a CPU `workers` processes parse, a core each; an accelerator does it alone, in batches.
    """
    import jax

    folder = map_folder(DataConfig(), parser)
    on_cpu = jax.default_backend() == "cpu"
    if on_cpu and len(faces) > _CHUNK:
        seconds = len(faces) * _SECONDS / workers
        cost = f"{seconds / 60:,.0f} minutes" if seconds > 120 else f"{seconds:.0f} seconds"
        log.info(
            f"{len(faces):,} faces have no segmentation map of their own. Parsing them takes up to about {cost} "
            f"({workers} processes); maps are kept in {folder} as they are made. --no-masks skips it"
        )
    if not on_cpu or min(workers, len(faces) // _CHUNK) < 2:
        with_maps(faces, DataConfig(), parser)
        return
    chunks = [faces[i : i + _CHUNK] for i in range(0, len(faces), _CHUNK)]
    with progress_bar("parsing faces", len(faces)) as advance:
        start = partial(_one_core_and_no_bar, getattr(jax.config, "jax_compilation_cache_dir", None) or "")
        for index in in_processes(_parse, [(chunk, parser) for chunk in chunks], workers, start):
            advance(len(chunks[index]))


def _one_core_and_no_bar(compiled: str) -> None:
    """Prepares a process, which has not loaded JAX yet; `compiled` is the folder of compiled programs."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _parse(faces: Sequence[FaceRecord], parser: str) -> None:
    with_maps(faces, DataConfig(), parser)
