"""The data sources by name."""

import importlib
from pathlib import Path

from fi_jax.data.sources.source import Source
from fi_jax.errors import require_choice

# Each is a module of this package with one function `read(root) -> Source`, imported when asked for.
SOURCE_NAMES: tuple[str, ...] = (
    "celeba",
    "maad_face",
    "fairface",
    "utkface",
    "expw",
    "raf_db",
    "celebamask_hq",
    "synthetic_faces",
)


def open_source(name: str, root: Path | str = "") -> Source:
    """Reads the release `name` under `root`: a folder as released, a folder that `fi-jax prepare` wrote,
    or (CelebA) one that TFDS prepared.

    Raises:
      UserError: the name is unknown, or the release is not there or damaged beyond what is handled.
    """
    require_choice("data set", name, SOURCE_NAMES)
    if str(root):
        from fi_jax.data import shards

        if shards.is_prepared(root):
            return shards.read(name, Path(root))
        if name == "celeba":
            from fi_jax.data.sources import celeba_tfds

            if celeba_tfds.is_prepared(root):
                return celeba_tfds.read(root)
    return importlib.import_module(f"fi_jax.data.sources.{name}").read(root)
