"""Age in years (UTKFace): a distribution over twenty five-year bins, read as one number, judged by absolute error.

Two estimators read the number: the expected value (Rothe et al., DEX, IJCV 2018) and the median, which minimises
absolute error. Both are reported; the model says which is the headline (chosen on validation faces when it was packed).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from fi_jax.evaluation import metrics
from fi_jax.evaluation.columns import Block
from fi_jax.evaluation.predictions import Answer
from fi_jax.evaluation.protocols.scoring import Metric, breakdown, scores
from fi_jax.labels.tasks import expected_age, median_age

Array = np.ndarray
TASK = "age_years"
Estimator = Literal["expected", "median"]
ESTIMATORS: Mapping[Estimator, Callable[[Array], Array]] = {"expected": expected_age, "median": median_age}
ERROR = Metric("mae_years", metrics.mean_error, higher_is_better=False)


def error_stats(years: Float[Array, "f"], truth: Float[Array, "f"], counted: Bool[Array, "f"]) -> Float[Array, "f 2"]:
    """Each face's absolute error, 0 where it does not count, and whether it counts."""
    return np.stack([np.where(counted, np.abs(years - truth), 0), counted], -1)


def statistics(block: Block) -> Iterator[Float[np.ndarray, "f 2"]]:
    """Yields each face's error, and whether it counts, of every question about years; an unread answer is left out."""
    for column in block.of_task(TASK):
        counted = ~np.isnan(column.years) & ~np.isnan(column.predicted_years)
        if counted.any():
            yield error_stats(column.predicted_years, column.years, counted)


def judge(
    block: Block, baselines: Mapping[str, Answer], resamples: int, estimator: Estimator = "expected"
) -> dict[str, dict]:
    """Returns the result under "age_years": the error of the headline estimator and of each; empty without truths.

    The baseline is the train split's median age. An answer that cannot be read is as far off as the baseline.
    """
    found = {}
    for column in block.of_task(TASK):
        truth, counted = column.years, ~np.isnan(column.years) & column.answered
        if not counted.any():
            continue
        median = baselines.get(column.question)
        baseline = float(np.median(truth[counted])) if median is None else float(median)
        constant = error_stats(np.full(len(counted), baseline), truth, counted)
        # Free-form answers have no distribution, only a number in words.
        read: dict[str, Array] = {"answer": column.predicted_years}
        has_probs = counted & ~np.isnan(column.probs).any(-1)
        if has_probs.any():
            read |= {
                name: np.where(has_probs, of(column.probs), column.predicted_years) for name, of in ESTIMATORS.items()
            }
        headline = estimator if has_probs.any() else "answer"
        stats = {
            name: error_stats(np.where(np.isnan(years), baseline, years), truth, counted)
            for name, years in read.items()
        }
        measured = {ERROR.name: headline} | {f"{ERROR.name}_{name}": name for name in ESTIMATORS if name in stats}
        result: dict[str, dict] = {}
        for metric_name, name in measured.items():
            metric = Metric(metric_name, metrics.mean_error, higher_is_better=False)
            result |= scores(stats[name][counted], (metric,), resamples, constant)
        found[TASK] = {
            "headline": ERROR.name,
            "metrics": result,
            "estimator": headline,
            "baseline": {"answer": baseline, "from": "evaluated" if median is None else "train"},
            "groups": breakdown(stats[headline], counted, block.groups, ERROR, resamples),
            "calibration": None,
            "faces": int(counted.sum()),
            "unreadable": int((counted & np.isnan(read[headline])).sum()),
        }
    return found
