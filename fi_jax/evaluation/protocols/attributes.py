"""Facial attributes: one yes/no question each (CelebA's 40, MAAD-Face's 47), unknown answers masked.

Metric: mean over the attributes of each one's accuracy (Liu et al., CelebA, ICCV 2015), which always answering the
majority already takes to about 80 %; so balanced accuracy (mean recall of Yes and No; Huang et al., CVPR 2016) and F1
of "Yes" stand beside it. MAAD-Face's 0 is "undefined" (Terhörst et al., TIFS 2021) and never counted.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from fi_jax.data.datasets import find_dataset
from fi_jax.evaluation import metrics
from fi_jax.evaluation.columns import Answers, Block
from fi_jax.evaluation.predictions import Answer
from fi_jax.evaluation.protocols.choice import majority_of
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

Array = np.ndarray
FAMILIES = ("attribute",)
CELLS = 6  # of a 2 × 3 confusion matrix


def _mean_of(metric):
    return lambda sums: metrics.mean_attribute(metric, sums.reshape(*sums.shape[:-1], -1, CELLS))


METRICS = (
    Metric("mean_accuracy", _mean_of(metrics.accuracy)),
    Metric("mean_balanced_accuracy", _mean_of(metrics.balanced_accuracy)),
    Metric("mean_f1", _mean_of(metrics.positive_f1)),
)

# Of every attribute by itself.
_EACH = {"accuracy": metrics.accuracy, "balanced_accuracy": metrics.balanced_accuracy, "f1": metrics.positive_f1}


def questions(dataset: str):
    """The questions this family asks about `dataset`."""
    return tuple(q for q in find_dataset(dataset).questions if q.family in FAMILIES)


def _targets(answers: Answers) -> Array:
    return np.where(answers.asked, answers.target, -1)


def attribute_stats(answers: list[Answers], said: list[Array]) -> Float[Array, "f s"]:
    """Returns each face's confusion cells of all attributes, side by side (`s = 6 q`)."""
    cells = [metrics.confusion_cells(_targets(a), s, 2) for a, s in zip(answers, said, strict=True)]
    return np.concatenate(cells, -1)


def judge(block: Block, baselines: Mapping[str, Answer], options: Options) -> dict[str, dict]:
    """Returns scores under "attribute": the means with intervals, and every attribute's own."""
    asked = [a for a in block.of_task(*FAMILIES) if (_targets(a) >= 0).any()]
    if not asked:
        return {}
    stats = attribute_stats(asked, [a.answer for a in asked])
    majority = [majority_of(a, baselines.get(a.question)) for a in asked]
    baseline = attribute_stats(asked, [np.full(len(a.target), m) for a, (m, _) in zip(asked, majority)])
    target = np.stack([_targets(a) for a in asked], -1)
    answer = np.stack([a.answer for a in asked], -1)
    known = target >= 0
    counted = np.any(known, axis=-1)
    confidence = np.stack([confidence_of(a.probs, a.answer) for a in asked], -1)
    sums = metrics.as_confusion(stats.sum(0, dtype=np.float64).reshape(-1, CELLS))
    constant = metrics.as_confusion(baseline.sum(0, dtype=np.float64).reshape(-1, CELLS))
    samples = metrics.bootstrap_sums(stats[counted], options.resamples, options.seed)
    drawn = metrics.as_confusion(samples.reshape(len(samples), -1, CELLS))
    ranges = {name: intervals(of(drawn), options) for name, of in _EACH.items()}
    positives = (target == 0).sum(0)
    per_attribute: dict[str, dict[str, Any]] = {
        a.question: {
            **{name: number(of(sums[i])) for name, of in _EACH.items()},
            "intervals": {name: ranges[name][i] for name in _EACH},
            "baseline": number(metrics.accuracy(constant[i])),
            "baselines": {name: number(of(constant[i])) for name, of in _EACH.items()},
            "share_yes": number(positives[i] / known[:, i].sum()),
            "faces": int(known[:, i].sum()),
        }
        for i, a in enumerate(asked)
    }
    origins = {origin for _, origin in majority}
    return {
        "attribute": {
            "headline": METRICS[0].name,
            "metrics": scores(stats[counted], METRICS, options, baseline, samples),
            "baseline": {
                "answer": "each attribute's majority",
                "from": origins.pop() if len(origins) == 1 else "train where given, else evaluated",
            },
            "groups": breakdown(stats, counted, block.groups, METRICS[0], options),
            "per_attribute": per_attribute,
            "calibration": calibrate(confidence[known], (answer == target)[known]),
            "faces": int(counted.sum()),
            "answers": int(known.sum()),
            "unreadable": int((answer[known] < 0).sum()),
        }
    }
