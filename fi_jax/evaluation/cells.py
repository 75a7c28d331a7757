"""Which model fills which cell of the two-setting table: a training-free cell never holds a model that saw the set.

"Fine-tuned" is a data set whose train split the model learnt from, in any stage; "training-free" is any other. A cell
that no model may fill stays blank. Ours: the paper names the settings and leaves the rule to the reader.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fi_jax.data.datasets import find_dataset
from fi_jax.errors import UserError
from fi_jax.evaluation.titles import SETTINGS, Setting


@dataclass(frozen=True)
class Assignment:
    """One cell, which is a data set in one setting, and the model that fills it (a position in the list of models)."""

    dataset: str
    setting: Setting
    model: int

    @property
    def seen(self) -> bool:
        """Whether the model learnt from the data set's train split."""
        return self.setting == "fine-tuned"


def saw(sources: Iterable[str], dataset: str) -> bool:
    """Whether a model trained on `sources` has seen pictures of `dataset`."""
    return not find_dataset(dataset).same_pictures.isdisjoint(sources)


def plan_cells(
    datasets: Sequence[str], trained_on: Sequence[Iterable[str]], settings: Iterable[Setting] = SETTINGS
) -> tuple[list[Assignment], list[tuple[str, Setting]]]:
    """Returns the cells that can be filled, and those that stay blank, in the order of the data sets.

    Args:
      datasets: whose cells are wanted.
      trained_on: for each model the sets it learnt from, those of earlier stages included; the first model that fits
        fills a cell.
      settings: the columns that are wanted.

    A model that saw the same photographs under another name (CelebA, CelebAMask-HQ) fills neither cell of the set: it
    did not learn these labels, and it is not free of these faces.
    """
    cells: list[Assignment] = []
    blank: list[tuple[str, Setting]] = []
    for dataset in datasets:
        for setting in SETTINGS:
            if setting not in settings:
                continue
            fits = [
                i
                for i, sources in enumerate(map(set, trained_on))
                if (find_dataset(dataset).name in sources if setting == "fine-tuned" else not saw(sources, dataset))
            ]
            if fits:
                cells.append(Assignment(dataset, setting, fits[0]))
            else:
                blank.append((dataset, setting))
    return cells, blank


def sources_of(name: str, info: Mapping) -> list[str]:
    """The sets a model says it learnt from.

    Raises:
      UserError: it does not say, so that no cell can be filled without a guess.
    """
    if "sources" not in info:
        raise UserError(
            f"model '{name}' does not record which data sets it learnt from (model.json: sources), "
            "so neither setting can be told; add the list there"
        )
    return list(info["sources"])
