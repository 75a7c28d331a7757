"""Facial attributes: one yes/no question each (CelebA's 40, MAAD-Face's 47), unknown answers masked.

Metric: mean over the attributes of each one's accuracy (Liu et al., CelebA, ICCV 2015), which always answering the
majority already takes to about 80 %; so balanced accuracy (mean recall of Yes and No; Huang et al., CVPR 2016) and F1
of "Yes" stand beside it. MAAD-Face's 0 is "undefined" (Terhörst et al., TIFS 2021) and never counted.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from fi_jax.evaluation import metrics
from fi_jax.evaluation.columns import Block, Predictions
from fi_jax.evaluation.predictions import Answer
from fi_jax.evaluation.protocols.choice import majority_of
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

Array = np.ndarray
TASK = "attribute"
CELLS = 6  # of a 2 × 3 confusion matrix
# Of every attribute by itself, and as a mean over them.
_EACH = {"accuracy": metrics.accuracy, "balanced_accuracy": metrics.balanced_accuracy, "f1": metrics.positive_f1}


def _mean_of(metric, sums: Float[Array, "... s"]) -> Float[Array, "..."]:
    return metrics.mean_attribute(metric, sums.reshape(*sums.shape[:-1], -1, CELLS))


METRICS = tuple(Metric(f"mean_{name}", partial(_mean_of, metric)) for name, metric in _EACH.items())


def _stats(columns: Sequence[Predictions], answers: Sequence[Int[Array, "f"]]) -> Float[Array, "f s"]:
    """Returns each face's confusion cells of all attributes, side by side (`s = 6 q`)."""
    cells = [metrics.confusion_cells(c.known_target, answer, 2) for c, answer in zip(columns, answers, strict=True)]
    return np.concatenate(cells, -1)


def judge(block: Block, baselines: Mapping[str, Answer], bootstrap: Bootstrap) -> dict[str, dict]:
    """Returns the result under "attribute": the means with intervals, and every attribute's own."""
    columns = [column for column in block.of_task(TASK) if (column.known_target >= 0).any()]
    if not columns:
        return {}
    stats = _stats(columns, [column.answer for column in columns])
    majority = [majority_of(column, baselines.get(column.question)) for column in columns]
    baseline = _stats(columns, [np.full(len(c.target), m) for c, (m, _) in zip(columns, majority)])
    target = np.stack([column.known_target for column in columns], -1)
    answer = np.stack([column.answer for column in columns], -1)
    known = target >= 0
    counted = np.any(known, axis=-1)
    confidence = np.stack([confidence_of(column.probs, column.answer) for column in columns], -1)
    sums, constant = (metrics.as_confusion(s.sum(0, dtype=np.float64).reshape(-1, CELLS)) for s in (stats, baseline))
    samples = metrics.bootstrap_sums(stats[counted], bootstrap.resamples, bootstrap.seed)
    drawn = metrics.as_confusion(samples.reshape(len(samples), -1, CELLS))
    ranges = {name: intervals(of(drawn), bootstrap) for name, of in _EACH.items()}
    positives = (target == 0).sum(0)
    per_attribute: dict[str, dict[str, Any]] = {
        column.question: {
            **{name: number(of(sums[i])) for name, of in _EACH.items()},
            "intervals": {name: ranges[name][i] for name in _EACH},
            "baseline": number(metrics.accuracy(constant[i])),
            "baselines": {name: number(of(constant[i])) for name, of in _EACH.items()},
            "share_yes": number(positives[i] / known[:, i].sum()),
            "faces": int(known[:, i].sum()),
        }
        for i, column in enumerate(columns)
    }
    origins = {origin for _, origin in majority}
    return {
        TASK: {
            "headline": METRICS[0].name,
            "metrics": scores(stats[counted], METRICS, bootstrap, baseline, samples),
            "baseline": {
                "answer": "each attribute's majority",
                "from": origins.pop() if len(origins) == 1 else "train where given, else evaluated",
            },
            "groups": breakdown(stats, counted, block.groups, METRICS[0], bootstrap),
            "per_attribute": per_attribute,
            "calibration": calibrate(confidence[known], (answer == target)[known]),
            "faces": int(counted.sum()),
            "answers": int(known.sum()),
            "unreadable": int((answer[known] < 0).sum()),
        }
    }
