"""Training and evaluation from Python: a config in, a result out. `fi_jax.train` and `fi_jax.evaluate` are these.

On one host; several start from the command line (docs/cluster.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fi_jax.config import Experiment
from fi_jax.evaluation.parts import EvaluationOptions
from fi_jax.evaluation.results import cells_of
from fi_jax.evaluation.titles import SETTINGS
from fi_jax.experiments.candidates import our_candidate
from fi_jax.experiments.judging import fill_cells, write_results
from fi_jax.experiments.run import last_metrics
from fi_jax.experiments.training import train_run
from fi_jax.files import require_writable
from fi_jax.parallel.hosts import Hosts
from fi_jax.weights.bundle import WEIGHTS


@dataclass(frozen=True)
class TrainingResult:
    """What a run left. `folder` is a model for `fi_jax.load` where `is_finished`; call `train` again to go on."""

    folder: Path
    is_finished: bool
    # The last value of everything that was logged ("loss", "val/accuracy", …).
    metrics: dict[str, float]
    # The best model by `train.best_metric`, where the run validated.
    best: Path | None


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation found. `folder` holds the files of `fi-jax evaluate`; `fi-jax report` takes it."""

    folder: Path
    # All of `metrics.json`.
    summary: dict

    def values(self) -> dict[tuple[str, str, str, str], float]:
        """Every metric by source ("llm", "head"), data set, task and its name; shares lie in [0, 1]."""
        cells = cells_of(self.summary)
        return {(cell.source, cell.dataset, cell.task, cell.metric): cell.value for cell in cells}


def train(config: Experiment, runs: str | Path = "runs") -> TrainingResult:
    """Trains into `runs`/NAME, from the last checkpoint there if there is one.

    Args:
      config: of `fi_jax.load_config`, or made in Python.

    Raises:
      UserError: before any compute, for what can be checked before; `Diverged` where the loss is not finite.
    """
    folder = Path(runs) / config.name
    status = train_run(config, folder, Hosts())
    best = folder / "best"
    return TrainingResult(folder, status == 0, last_metrics(folder), best if (best / WEIGHTS).is_file() else None)


def evaluate(
    model: str | Path,
    datasets: Mapping[str, str | Path],
    out: str | Path,
    *,
    split: str = "test",
    limit: int = 0,
    batch_size: int = 8,
    head_only: bool = False,
) -> EvaluationResult:
    """Asks a model the questions of data sets, and writes predictions, metrics and tables into `out`.

    Args:
      model: a run folder, or the name of a bundled model.
      datasets: their folders by name; "" for `table:SCHEMA`, which says itself where its pictures are.
      limit: only so many faces of each set, by the hash of their names (0: all).
      head_only: the alignment head alone answers.

    Raises:
      UserError: there is no such model or data set, or the model knows no answer about it.
    """
    folder = Path(out)
    require_writable(folder)
    models = [our_candidate(str(model))]
    options = EvaluationOptions(split, limit, batch_size, head_only)
    cells = fill_cells(models, [(name, str(root)) for name, root in datasets.items()], SETTINGS, options, folder)
    return EvaluationResult(folder, write_results(folder, cells, models, options, "fi_jax.evaluate"))
