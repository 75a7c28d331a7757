"""The folder where slow findings about data are kept between runs, and whole-or-nothing writing into it."""

import json
import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """Returns the cache folder: `$FI_JAX_CACHE`, or `~/.cache/fi_jax`."""
    return Path(os.environ.get("FI_JAX_CACHE") or Path.home() / ".cache" / "fi_jax")


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file, making its folder; it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name[:40]}.", delete=False) as file:
        file.write(data)
    # NamedTemporaryFile makes files that only their owner may read.
    Path(file.name).chmod(0o666 & ~_umask())
    Path(file.name).replace(path)


def write_json(path: Path, content) -> None:
    """Writes JSON as `write_bytes` does."""
    write_bytes(path, json.dumps(content).encode())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
