"""A number of one's own table: answered in bins, read as the expected value, judged by absolute error beside the bins."""

from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Float, Int

from fi_jax.evaluation import metrics
from fi_jax.evaluation.columns import Block, Predictions
from fi_jax.evaluation.protocols.scoring import Metric, breakdown, scores
from fi_jax.evaluation.protocols.years import error_stats
from fi_jax.labels.bins import bin_centres, edges_of
from fi_jax.labels.questions import OWN_NUMBER

Array = np.ndarray
ERROR = Metric("mae", metrics.mean_error, higher_is_better=False)


def judge(block: Block, judged: Mapping[str, dict], resamples: int) -> dict[str, dict]:
    """Returns the results of `judged` (`choice.judge`) about numbers, with the mean absolute error as the headline.

    An answer without probabilities counts as the middle of its bin; one that cannot be read, as the middle of all.
    The baseline answers the median of the evaluated faces.
    """
    found = {}
    for column, stats in _errors(block):
        if column.task not in judged:
            continue
        counted = stats[:, 1] > 0
        median = np.full(len(counted), np.median(column.years[counted]))
        error = scores(stats[counted], (ERROR,), resamples, error_stats(median, column.years, counted)[counted])
        result = judged[column.task]
        found[column.task] = result | {
            "headline": ERROR.name,
            "metrics": error | result["metrics"],
            "groups": breakdown(stats, counted, block.groups, ERROR, resamples),
        }
    return found


def statistics(block: Block) -> Iterator[tuple[str, Float[Array, "f 2"]]]:
    """Yields each number's task, and each face's error and whether it counts."""
    return ((column.task, stats) for column, stats in _errors(block))


def _errors(block: Block) -> Iterator[tuple[Predictions, Float[Array, "f 2"]]]:
    for column in block.predictions.values():
        counted = column.answered & ~np.isnan(column.years)
        if column.task.startswith(OWN_NUMBER) and counted.any():
            yield column, error_stats(said_number(column), column.years, counted)


def said_number(column: Predictions) -> Float[Array, "f"]:
    """The expected number of every face's answer."""
    centres = np.asarray(bin_centres(edges_of(column.options)))
    chosen: Int[Array, f] = column.answer
    of_bin = np.where(chosen >= 0, centres[chosen], centres.mean())
    return np.where(np.isnan(column.probs).any(-1), of_bin, column.probs @ centres)
