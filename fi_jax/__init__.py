"""fi_jax: FaceInsight, a multimodal LLM for face perception, in JAX and Flax.

>>> import fi_jax
>>> model = fi_jax.load("nano")
>>> model.ask("photo.jpg", "Is this person smiling?").to_text()

`fi_jax.api` documents what a model can do, `fi_jax.experiments.entry_points` training and evaluation:

>>> config = fi_jax.load_config("finetune", {"name": "mine", "data.sources": [{"name": "table:mine.yaml"}]})
>>> run = fi_jax.train(config)
>>> fi_jax.evaluate(run.folder, {"table:mine.yaml": ""}, "out/mine").values()
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fi_jax.errors import UserError

if TYPE_CHECKING:
    from fi_jax.api import Model
    from fi_jax.config import Experiment
    from fi_jax.experiments.entry_points import EvaluationResult, TrainingResult

__version__ = "0.2.0.dev0"
__all__ = ["UserError", "__version__", "evaluate", "load", "load_config", "train"]


def load(name_or_folder: str | Path = "nano") -> "Model":
    """Loads a bundled model by name, or a run folder: see `fi_jax.api.load`."""
    # Late: `import fi_jax` and the command line's help load no JAX.
    from fi_jax.api import load

    return load(name_or_folder)


def load_config(name_or_file: str, changes: Mapping[str, Any] | None = None) -> "Experiment":
    """Loads a config by name or file, with values laid over it: see `fi_jax.experiments.configs.load_config`."""
    from fi_jax.experiments.configs import load_config

    return load_config(name_or_file, changes)


def train(config: "Experiment", runs: str | Path = "runs") -> "TrainingResult":
    """Trains a config, from its last checkpoint if there is one: see `fi_jax.experiments.entry_points.train`."""
    from fi_jax.experiments.entry_points import train

    return train(config, runs)


def evaluate(
    model: str | Path, datasets: Mapping[str, str | Path], out: str | Path, **options: Any
) -> "EvaluationResult":
    """Evaluates a model on data sets: see `fi_jax.experiments.entry_points.evaluate`, which has the options."""
    from fi_jax.experiments.entry_points import evaluate

    return evaluate(model, datasets, out, **options)
