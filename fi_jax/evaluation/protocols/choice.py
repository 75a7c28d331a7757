"""Scoring of one single-choice question, shared by the age-group, gender, race and expression protocols."""

from collections.abc import Mapping, Sequence

import numpy as np

from fi_jax.errors import UserError
from fi_jax.evaluation import metrics
from fi_jax.evaluation.columns import Answers
from fi_jax.evaluation.predictions import Answer
from fi_jax.evaluation.protocols.scoring import (
    Metric,
    Options,
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


def majority_of(answers: Answers, train_answer: Answer) -> tuple[int, str]:
    """Returns the majority's class and where it comes from: "train", else "evaluated"."""
    if train_answer is None:
        return metrics.majority_class(answers.target, len(answers.options)), "evaluated"
    if train_answer not in answers.options:
        raise UserError(
            f"baseline answer '{train_answer}' is no option of '{answers.question}' {list(answers.options)}"
        )
    return answers.options.index(train_answer), "train"


def score_choice(
    answers: Answers,
    groups: Mapping[str, Sequence[str | None]],
    measured: Sequence[Metric],
    options: Options,
    train_answer: Answer = None,
) -> dict | None:
    """Judges one question; the first of `measured` is the headline. None when no truth is known.

    Returns a plain dict: `headline` (metric name), `metrics` (value, interval, majority baseline), `groups`,
    `confusion`, `calibration`, `faces` (known truths), `unreadable` (free-form answers that could not be read).
    """
    counted = (answers.target >= 0) & answers.asked
    if not counted.any():
        return None
    k = len(answers.options)
    target = np.where(counted, answers.target, -1)
    stats = metrics.confusion_cells(target, answers.answer, k)
    majority, origin = majority_of(answers, train_answer)
    baseline = metrics.confusion_cells(target, np.full_like(target, majority), k)
    confusion = metrics.as_confusion(stats.sum(0, dtype=np.float64))
    confidence = confidence_of(answers.probs, answers.answer)
    samples = metrics.bootstrap_sums(stats[counted], options.resamples, options.seed)
    drawn = metrics.as_confusion(samples)
    ranges = {"recall": intervals(metrics.recalls(drawn), options), "f1": intervals(metrics.f1_scores(drawn), options)}
    return {
        "headline": measured[0].name,
        "metrics": scores(stats[counted], measured, options, baseline, samples),
        "baseline": {"answer": answers.options[majority], "from": origin},
        "groups": breakdown(stats, counted, groups, measured[0], options),
        "confusion": {
            "classes": list(answers.options),
            "counts": confusion[:, :k].astype(int).tolist(),
            "unreadable": confusion[:, k].astype(int).tolist(),
        },
        "per_class": {
            name: {
                "recall": number(r),
                "f1": number(f),
                "intervals": {of: edges[i] for of, edges in ranges.items()},
                "faces": int(n),
            }
            for i, (name, r, f, n) in enumerate(
                zip(answers.options, metrics.recalls(confusion), metrics.f1_scores(confusion), confusion.sum(-1))
            )
        },
        "calibration": calibrate(confidence[counted], (answers.answer == target)[counted]),
        "faces": int(counted.sum()),
        "unreadable": int((answers.answer[counted] < 0).sum()),
    }
