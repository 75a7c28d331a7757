"""Age: FairFace's nine groups by accuracy, and years by mean absolute error.

Questions: `age_group` (FairFace, UTKFace): accuracy over the nine groups and accuracy within one group ("1-off",
Levi & Hassner, CVPRW 2015). `age_years` (UTKFace, the set that states years): a distribution over twenty five-year
bins, read as one number by an estimator and judged by mean absolute error in years. Two estimators: the expected
value (Rothe et al., DEX, IJCV 2018) and the median, which minimises absolute error; both are reported, and the one
of the headline is chosen on validation faces (`choose_estimator`), the expected value when none were given.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from jaxtyping import Float

from fi_jax.data.datasets import find_dataset
from fi_jax.evaluation import metrics
from fi_jax.evaluation.columns import Answers, Block
from fi_jax.evaluation.predictions import Answer
from fi_jax.evaluation.protocols.choice import ACCURACY, BALANCED_ACCURACY, MACRO_F1, WITHIN_ONE, score_choice
from fi_jax.evaluation.protocols.scoring import Metric, Options, breakdown, scores
from fi_jax.labels.tasks import expected_age, median_age

Array = np.ndarray
Estimator = Literal["expected", "median"]
ESTIMATORS: Mapping[Estimator, Callable[[Array], Array]] = {"expected": expected_age, "median": median_age}

FAMILIES = ("age_group", "age_years")
METRICS = (ACCURACY, WITHIN_ONE, BALANCED_ACCURACY, MACRO_F1)
ERROR = Metric("mae_years", metrics.mean_error, higher_is_better=False)


def questions(dataset: str):
    """The questions this family asks about `dataset`."""
    return tuple(q for q in find_dataset(dataset).questions if q.family in FAMILIES)


def years_from(probs: Float[Array, "f 20"], estimator: Estimator = "expected") -> Float[Array, "f"]:
    """Reads ages in years off the five-year bins; NaN where a row is NaN."""
    return ESTIMATORS[estimator](probs)


def choose_estimator(probs: Float[Array, "f 20"], years: Float[Array, "f"]) -> Estimator:
    """Returns the estimator of smaller mean absolute error; `probs` and `years` are validation faces."""
    known = ~np.isnan(years) & ~np.isnan(probs).any(-1)
    errors = {name: np.abs(years_from(probs[known], name) - years[known]).mean() for name in ESTIMATORS}
    return min(errors, key=errors.__getitem__)


def _error_stats(said: Float[Array, "f"], years: Float[Array, "f"], counted: Array) -> Float[Array, "f 2"]:
    error = np.where(counted, np.abs(said - years), 0)
    return np.stack([error, counted], -1)


def score_years(
    answers: Answers, groups, options: Options, train_median: Answer = None, estimator: Estimator = "expected"
) -> dict | None:
    """Judges `age_years`: MAE of the headline estimator and of each; baseline: the train split's median age."""
    counted = ~np.isnan(answers.years) & answers.asked
    if not counted.any():
        return None
    has_probs = counted & ~np.isnan(answers.probs).any(-1)
    baseline = float(np.median(answers.years[counted])) if train_median is None else float(train_median)
    constant = _error_stats(np.full(len(counted), baseline), answers.years, counted)

    # Free-form answers have no distribution, only the number they say; one that says none is off by the baseline's error.
    said: dict[str, Array] = {"answer": answers.said_years}
    if has_probs.any():
        said |= {name: np.where(has_probs, years_from(answers.probs, name), answers.said_years) for name in ESTIMATORS}
    headline = estimator if has_probs.any() else "answer"
    unreadable = counted & np.isnan(said[headline])
    stats = {
        name: _error_stats(np.where(np.isnan(value), baseline, value), answers.years, counted)
        for name, value in said.items()
    }
    result = scores(stats[headline][counted], (ERROR,), options, constant)
    for name in ESTIMATORS:
        if name in stats:
            metric = Metric(f"mae_years_{name}", metrics.mean_error, higher_is_better=False)
            result |= scores(stats[name][counted], (metric,), options, constant)
    return {
        "headline": ERROR.name,
        "metrics": result,
        "estimator": headline,
        "baseline": {"answer": baseline, "from": "evaluated" if train_median is None else "train"},
        "groups": breakdown(stats[headline], counted, groups, ERROR, options),
        "calibration": None,
        "faces": int(counted.sum()),
        "unreadable": int(unreadable.sum()),
    }


def judge(
    block: Block, baselines: Mapping[str, Answer], options: Options, estimator: Estimator = "expected"
) -> dict[str, dict]:
    """Returns scores under "age_group" and "age_years", for whichever the block's faces state."""
    found = {}
    for a in block.of_task("age_group"):
        found["age_group"] = score_choice(a, block.groups, METRICS, options, baselines.get(a.question))
    for a in block.of_task("age_years"):
        found["age_years"] = score_years(a, block.groups, options, baselines.get(a.question), estimator)
    return {task: result for task, result in found.items() if result}
