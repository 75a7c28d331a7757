"""Questions with a choice of answers: one function judges them all; a table says by which metrics, after whom.

A single choice (gender, race, expression, age group) is one question. Facial attributes are many yes/no questions
judged together, unknown answers masked (MAAD-Face's 0 is "undefined"; Terhörst et al., TIFS 2021).

Classes of gender and race are the annotators' reading of a picture, not a person's identity. Each set keeps its own
race classes, never mapped onto another set's; the task exists to measure bias and to follow the paper's protocol, and
is not for use on people. Faces whose release says "unsure" (RAF-DB) are unknown.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from fi_jax.errors import UserError
from fi_jax.evaluation import metrics
from fi_jax.evaluation.columns import Block, Predictions
from fi_jax.evaluation.predictions import Answer
from fi_jax.evaluation.protocols.scoring import (
    Metric,
    breakdown,
    calibrate,
    confidence_of,
    intervals,
    number,
    scores,
)
from fi_jax.labels.questions import OWN_CHOICE, OWN_NUMBER

Array = np.ndarray
_FACES = partial(np.sum, axis=-1)
ACCURACY = Metric("accuracy", lambda sums: metrics.accuracy(metrics.as_confusion(sums)), faces=_FACES)
BALANCED_ACCURACY = Metric("balanced_accuracy", lambda sums: metrics.balanced_accuracy(metrics.as_confusion(sums)))
MACRO_F1 = Metric("macro_f1", lambda sums: metrics.macro_f1(metrics.as_confusion(sums)))
WITHIN_ONE = Metric("within_one_group", lambda sums: metrics.within_one(metrics.as_confusion(sums)), faces=_FACES)

# Task -> its metrics, the headline first. A further single-choice task is a line here.
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
# Of a choice of one's own table.
OWN_CHOICE_METRICS = (ACCURACY, BALANCED_ACCURACY, MACRO_F1)
ATTRIBUTE = "attribute"
_CELLS = 6  # of a yes/no question's 2 × 3 confusion matrix


def _mean_of(metric, sums: Float[Array, "... s"]) -> Float[Array, "..."]:
    return metrics.mean_attribute(metric, sums.reshape(*sums.shape[:-1], -1, _CELLS))


# Of every attribute by itself, and as a mean over them. Accuracy: Liu et al., CelebA, ICCV 2015; always answering the
# majority takes it to about 80 %, so balanced accuracy (mean recall of Yes and No; Huang et al., CVPR 2016) and F1 of
# "Yes" stand beside it.
_OF_ATTRIBUTE = {
    "accuracy": metrics.accuracy,
    "balanced_accuracy": metrics.balanced_accuracy,
    "f1": metrics.positive_f1,
}
ATTRIBUTE_METRICS = tuple(Metric(f"mean_{name}", partial(_mean_of, of)) for name, of in _OF_ATTRIBUTE.items())
_OF_CLASS = {"recall": metrics.recalls, "f1": metrics.f1_scores}


def majority_of(column: Predictions, train_answer: Answer) -> tuple[int, str]:
    """Returns the majority's class and where it comes from: "train", else "evaluated"."""
    if train_answer is None:
        return metrics.majority_class(column.target, len(column.options)), "evaluated"
    if train_answer not in column.options:
        raise UserError(f"baseline answer '{train_answer}' is no option of '{column.question}' {list(column.options)}")
    return column.options.index(train_answer), "train"


def judge(block: Block, baselines: Mapping[str, Answer], resamples: int) -> dict[str, dict]:
    """Returns the result of every task of choices that some face's truth is known of, attributes first.

    A result is a plain dict: `headline` (metric name), `metrics` (value, interval, majority baseline), `groups`,
    `calibration`, `faces` (known truths), `unreadable` (free-form answers that could not be read); of a single choice
    also `confusion` and `per_class`, of attributes `per_attribute` and the number of `answers`.
    """
    return {
        task: _Judged(columns, block, baselines, resamples).result(task, measured)
        for task, measured, columns in _tasks(block)
    }


def statistics(block: Block) -> Iterator[tuple[str, Sequence[Metric], Float[Array, "f s"]]]:
    """Yields each task of choices with its metrics and each face's statistics."""
    for task, measured, columns in _tasks(block):
        yield task, measured, _Judged(columns, block, {}, 1).stats


def _tasks(block: Block) -> Iterator[tuple[str, Sequence[Metric], list[Predictions]]]:
    own = {
        column.task: OWN_CHOICE_METRICS
        for column in block.predictions.values()
        if column.task.startswith((OWN_CHOICE, OWN_NUMBER))
    }
    for task, measured in {ATTRIBUTE: ATTRIBUTE_METRICS, **CHOICES, **own}.items():
        columns = [column for column in block.of_task(task) if (column.known_target >= 0).any()]
        if columns:
            yield task, measured, columns


class _Judged:
    """Questions with the same options, and the statistics that all their metrics are functions of."""

    def __init__(self, columns: Sequence[Predictions], block: Block, baselines: Mapping[str, Answer], resamples: int):
        self.columns, self.groups, self.resamples = columns, block.groups, resamples
        self.target = np.stack([column.known_target for column in columns], -1)
        self.answer = np.stack([column.answer for column in columns], -1)
        self.known = self.target >= 0
        self.counted: Array = np.any(self.known, axis=-1)
        self.majority = [majority_of(column, baselines.get(column.question)) for column in columns]
        constant = np.broadcast_to([option for option, _ in self.majority], self.target.shape)
        self.stats, self.baseline = self._cells(self.answer), self._cells(constant)
        self.samples = metrics.bootstrap_sums(self.stats[self.counted], resamples)

    def _cells(self, answer: Int[Array, "f q"]) -> Float[Array, "f s"]:
        """Each face's confusion cells of all questions, side by side."""
        k = len(self.columns[0].options)
        cells = [metrics.confusion_cells(t, a, k) for t, a in zip(self.target.T, answer.T, strict=True)]
        return np.concatenate(cells, -1)

    def confusion(self, stats: Float[Array, "... s"]) -> Float[Array, "... q k j"]:
        """Summed statistics as one confusion matrix a question."""
        return metrics.as_confusion(stats.reshape(*stats.shape[:-1], len(self.columns), -1))

    def result(self, task: str, measured: Sequence[Metric]) -> dict:
        confidence = np.stack([confidence_of(c.probs, c.answer) for c in self.columns], -1)
        origins = {origin for _, origin in self.majority}
        is_attribute = task == ATTRIBUTE
        majority = "each attribute's majority" if is_attribute else self.columns[0].options[self.majority[0][0]]
        return {
            "headline": measured[0].name,
            "metrics": scores(self.stats[self.counted], measured, self.resamples, self.baseline, self.samples),
            "baseline": {
                "answer": majority,
                "from": origins.pop() if len(origins) == 1 else "train where given, else evaluated",
            },
            "groups": breakdown(self.stats, self.counted, self.groups, measured[0], self.resamples),
            **(self.per_attribute() if is_attribute else self.per_class()),
            "calibration": calibrate(confidence[self.known], (self.answer == self.target)[self.known]),
            "faces": int(self.counted.sum()),
            **({"answers": int(self.known.sum())} if is_attribute else {}),
            "unreadable": int((self.answer[self.known] < 0).sum()),
        }

    def per_attribute(self) -> dict[str, Any]:
        """Every attribute's own metrics."""
        sums, constant = (self.confusion(s.sum(0, dtype=np.float64)) for s in (self.stats, self.baseline))
        drawn = self.confusion(self.samples)
        ranges = {name: intervals(of(drawn)) for name, of in _OF_ATTRIBUTE.items()}
        faces, positives = self.known.sum(0), (self.target == 0).sum(0)
        found = {
            column.question: {
                **{name: number(of(sums[i])) for name, of in _OF_ATTRIBUTE.items()},
                "intervals": {name: ranges[name][i] for name in _OF_ATTRIBUTE},
                "baseline": number(metrics.accuracy(constant[i])),
                "baselines": {name: number(of(constant[i])) for name, of in _OF_ATTRIBUTE.items()},
                "share_yes": number(positives[i] / faces[i]),
                "faces": int(faces[i]),
            }
            for i, column in enumerate(self.columns)
        }
        return {"per_attribute": found}

    def per_class(self) -> dict[str, Any]:
        """A single choice's confusion matrix, and recall and F1 of every class."""
        (confusion,) = self.confusion(self.stats.sum(0, dtype=np.float64))
        drawn = self.confusion(self.samples)[:, 0]
        values = {name: of(confusion) for name, of in _OF_CLASS.items()}
        ranges = {name: intervals(of(drawn)) for name, of in _OF_CLASS.items()}
        options = self.columns[0].options
        return {
            "confusion": {
                "classes": list(options),
                "counts": confusion[:, :-1].astype(int).tolist(),
                "unreadable": confusion[:, -1].astype(int).tolist(),
            },
            "per_class": {
                option: {name: number(values[name][i]) for name in _OF_CLASS}
                | {"intervals": {name: ranges[name][i] for name in _OF_CLASS}, "faces": int(confusion[i].sum())}
                for i, option in enumerate(options)
            },
        }
