"""fi_jax: FaceInsight, a multimodal LLM for face perception, in JAX and Flax.

>>> import fi_jax
>>> model = fi_jax.load("nano")
>>> model.ask("photo.jpg", "Is this person smiling?").to_text()

`fi_jax.api` documents what a model can do.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from fi_jax.errors import UserError

if TYPE_CHECKING:
    from fi_jax.api import Model

__version__ = "0.2.0.dev0"
__all__ = ["UserError", "__version__", "load"]


def load(name_or_folder: str | Path = "nano") -> "Model":
    """Loads a bundled model by name, or a run folder: see `fi_jax.api.load`."""
    # Late: `import fi_jax` and the command line's help load no JAX.
    from fi_jax.api import load

    return load(name_or_folder)
