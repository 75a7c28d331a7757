"""Starts JAX for a command: joins the other processes and turns the compile cache on."""

import contextlib
import logging

from fi_jax.files import cache_folder
from fi_jax.parallel.hosts import Hosts, initialise


def start() -> Hosts:
    """Joins the other processes, if any, and points JAX's compile cache to `FI_JAX_CACHE` (default ~/.cache/fi_jax).

    Of many processes, the first alone prints what is logged as information.

    On a cluster, set it to a folder that all hosts share: one compiles, the others read.
    """
    hosts = initialise()
    if not hosts.is_first:
        logging.getLogger("fi_jax").setLevel(logging.WARNING)
    keep_programs()
    return hosts


def keep_programs() -> None:
    """Points JAX's compile cache to the cache folder, and no more: for commands whose processes work apart."""
    import jax

    compiled = cache_folder() / "xla"
    # Where it cannot be made, programs are compiled at every start.
    with contextlib.suppress(OSError):
        compiled.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(compiled))
