"""Starts JAX for a command: joins the other processes and turns the compile cache on."""

import os
from pathlib import Path

from fi_jax.parallel.hosts import Hosts, initialise


def start() -> Hosts:
    """Joins the other processes, if any, and points JAX's compile cache to `FI_JAX_CACHE` (default ~/.cache/fi_jax).

    On a cluster, set it to a folder that all hosts share: one compiles, the others read.
    """
    hosts = initialise()
    import jax

    cache = Path(os.environ.get("FI_JAX_CACHE", Path.home() / ".cache" / "fi_jax"))
    jax.config.update("jax_compilation_cache_dir", str(cache / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    return hosts
