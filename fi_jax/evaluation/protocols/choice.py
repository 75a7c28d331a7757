"""Single-choice questions: one function judges them all; a table says by which metrics, after whom.

Classes of gender and race are the annotators' reading of a picture, not a person's identity. Each set keeps its own
race classes, never mapped onto another set's; the task exists to measure bias and to follow the paper's protocol, and
is not for use on people. Faces whose release says "unsure" (RAF-DB) are unknown.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from fi_jax.errors import UserError
from fi_jax.evaluation import metrics
from fi_jax.evaluation.columns import Block, Predictions
from fi_jax.evaluation.predictions import Answer
from fi_jax.evaluation.protocols.scoring import (
    Bootstrap,
    Metric,
    breakdown,
    calibrate,
    confidence_of,
    intervals,
    number,
    scores,
)

ACCURACY = Metric("accuracy", lambda sums: metrics.accuracy(metrics.as_confusion(sums)))
BALANCED_ACCURACY = Metric("balanced_accuracy", lambda sums: metrics.balanced_accuracy(metrics.as_confusion(sums)))
MACRO_F1 = Metric("macro_f1", lambda sums: metrics.macro_f1(metrics.as_confusion(sums)))
WITHIN_ONE = Metric("within_one_group", lambda sums: metrics.within_one(metrics.as_confusion(sums)))

# Task -> its metrics, the headline first. A further task is a line here.
CHOICES: Mapping[str, tuple[Metric, ...]] = {
    # Two classes (FairFace, UTKFace, RAF-DB). Kärkkäinen & Joo, FairFace, WACV 2021, report accuracy.
    "gender": (ACCURACY, BALANCED_ACCURACY, MACRO_F1),
    # FairFace 7 classes, UTKFace 5, RAF-DB 3. As gender; the classes are uneven outside FairFace.
    "race": (ACCURACY, BALANCED_ACCURACY, MACRO_F1),
    # Seven classes (ExpW, RAF-DB). Accuracy: Zhang et al., ExpW, IJCV 2018; the mean of the confusion matrix's
    # diagonal, which is balanced accuracy: Li et al., RAF-DB, CVPR 2017.
    "expression": (ACCURACY, MACRO_F1, BALANCED_ACCURACY),
    # FairFace's nine groups (FairFace, UTKFace). "1-off" accuracy: Levi & Hassner, CVPRW 2015.
    "age_group": (ACCURACY, WITHIN_ONE, BALANCED_ACCURACY, MACRO_F1),
}


def majority_of(column: Predictions, train_answer: Answer) -> tuple[int, str]:
    """Returns the majority's class and where it comes from: "train", else "evaluated"."""
    if train_answer is None:
        return metrics.majority_class(column.target, len(column.options)), "evaluated"
    if train_answer not in column.options:
        raise UserError(f"baseline answer '{train_answer}' is no option of '{column.question}' {list(column.options)}")
    return column.options.index(train_answer), "train"


def judge(block: Block, baselines: Mapping[str, Answer], bootstrap: Bootstrap) -> dict[str, dict]:
    """Returns the result (`score_choice`) of every single-choice task that some face's truth is known of."""
    found = {
        column.task: score_choice(column, block.groups, CHOICES[task], bootstrap, baselines.get(column.question))
        for task in CHOICES
        for column in block.of_task(task)
    }
    return {task: result for task, result in found.items() if result}


def score_choice(
    column: Predictions,
    groups: Mapping[str, Sequence[str | None]],
    measured: Sequence[Metric],
    bootstrap: Bootstrap,
    train_answer: Answer = None,
) -> dict | None:
    """Judges one question; the first of `measured` is the headline. None when no truth is known.

    Returns a plain dict: `headline` (metric name), `metrics` (value, interval, majority baseline), `groups`,
    `confusion`, `per_class`, `calibration`, `faces` (known truths), `unreadable` (free-form answers that could not be
    read).
    """
    target = column.known_target
    counted = target >= 0
    if not counted.any():
        return None
    k = len(column.options)
    stats = metrics.confusion_cells(target, column.answer, k)
    majority, origin = majority_of(column, train_answer)
    baseline = metrics.confusion_cells(target, np.full_like(target, majority), k)
    confusion = metrics.as_confusion(stats.sum(0, dtype=np.float64))
    confidence = confidence_of(column.probs, column.answer)
    samples = metrics.bootstrap_sums(stats[counted], bootstrap.resamples, bootstrap.seed)
    of_class = {"recall": metrics.recalls, "f1": metrics.f1_scores}
    values = {name: of(confusion) for name, of in of_class.items()}
    ranges = {name: intervals(of(metrics.as_confusion(samples)), bootstrap) for name, of in of_class.items()}
    return {
        "headline": measured[0].name,
        "metrics": scores(stats[counted], measured, bootstrap, baseline, samples),
        "baseline": {"answer": column.options[majority], "from": origin},
        "groups": breakdown(stats, counted, groups, measured[0], bootstrap),
        "confusion": {
            "classes": list(column.options),
            "counts": confusion[:, :k].astype(int).tolist(),
            "unreadable": confusion[:, k].astype(int).tolist(),
        },
        "per_class": {
            option: {name: number(values[name][i]) for name in of_class}
            | {"intervals": {name: ranges[name][i] for name in of_class}, "faces": int(confusion[i].sum())}
            for i, option in enumerate(column.options)
        },
        "calibration": calibrate(confidence[counted], (column.answer == target)[counted]),
        "faces": int(counted.sum()),
        "unreadable": int((column.answer[counted] < 0).sum()),
    }
