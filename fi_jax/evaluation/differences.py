"""How far two models differ about the same faces, metric by metric, with intervals (paired bootstrap over people)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

from fi_jax.evaluation import metrics
from fi_jax.evaluation.columns import Block, gather
from fi_jax.evaluation.predictions import Prediction
from fi_jax.evaluation.protocols import choice, numbers, years
from fi_jax.evaluation.protocols.scoring import Metric
from fi_jax.evaluation.rules import RATE, rule_statistics

_RESAMPLES = 1000


@dataclass(frozen=True)
class Difference:
    """One metric of two models on the faces that both answered about; `low` and `high` bound second − first (95 %)."""

    dataset: str
    source: str
    task: str
    metric: str
    faces: int
    people: int
    first: float
    second: float
    low: float
    high: float


def differences(first: Iterable[Prediction], second: Iterable[Prediction]) -> list[Difference]:
    """Compares two evaluations: every task's metrics and the violation rate, by data set and source.

    Each draw takes people with replacement, all faces of a person and all questions about a face together, the same ones
    for both models: what is hard about a face counts for neither. Where a release numbers no people, a face is one.
    """
    before = {(block.dataset, block.source, block.seen): block for block in gather(first)}
    found = []
    for after in gather(second):
        place = (after.dataset, after.source)
        # One model may be fine-tuned on a set on which the other is training-free.
        one = before.get((*place, after.seen)) or before.get((*place, not after.seen))
        if one is None:
            continue
        known = set(one.images)
        shared = [image for image in after.images if image in known]
        blocks = [_faces_of(block, shared) for block in (one, after)]
        people = np.unique(blocks[1].people, return_inverse=True)[1]
        for task, measured, stats in _paired(*blocks):
            for metric in measured:
                values, low, high = _difference(metric, stats, people)
                counts = (len(shared), int(people.max()) + 1)
                found.append(Difference(*place, task, metric.name, *counts, *values, low, high))
    return found


def _faces_of(block: Block, images: list[str]) -> Block:
    """The block with these faces alone, in this order."""
    places = {image: row for row, image in enumerate(block.images)}
    rows = np.array([places[image] for image in images], int)
    columns = {}
    for name, column in block.predictions.items():
        arrays = {key: value[rows] for key, value in vars(column).items() if isinstance(value, np.ndarray)}
        columns[name] = replace(column, **arrays)
    people = tuple(block.people[row] for row in rows)
    return replace(block, images=tuple(images), people=people, predictions=columns, groups={})


def _statistics(block: Block) -> Iterator[tuple[str, tuple[Metric, ...], Float[np.ndarray, "f s"]]]:
    yield from ((task, tuple(measured), stats) for task, measured, stats in choice.statistics(block))
    yield from ((years.TASK, (years.ERROR,), stats) for stats in years.statistics(block))
    yield from ((task, (numbers.ERROR,), stats) for task, stats in numbers.statistics(block))
    if (stats := rule_statistics(block)) is not None:
        yield "rules", (RATE,), stats


def _paired(first: Block, second: Block) -> Iterator[tuple[str, tuple[Metric, ...], list[Float[np.ndarray, "f s"]]]]:
    """Statistics of both about the questions that both were asked."""
    asked = first.predictions.keys() & second.predictions.keys()
    # A number has its error beside the metrics of its bins.
    both = [
        {(task, measured): stats for task, measured, stats in _statistics(_asked(block, asked))}
        for block in (first, second)
    ]
    for (task, measured), stats in both[0].items():
        if (task, measured) in both[1]:
            yield task, measured, [stats, both[1][task, measured]]


def _asked(block: Block, questions: set[str]) -> Block:
    kept = {name: column for name, column in block.predictions.items() if name in questions}
    return replace(block, predictions=kept)


def _difference(
    metric: Metric, stats: list[Float[np.ndarray, "f s"]], people: Int[np.ndarray, "f"]
) -> tuple[tuple[float, float], float, float]:
    width = stats[0].shape[1]
    by_person = np.zeros((int(people.max()) + 1, 2 * width))
    np.add.at(by_person, people, np.concatenate(stats, -1))
    drawn = metrics.bootstrap_sums(by_person, _RESAMPLES)
    sums = by_person.sum(0)
    low, high = metrics.interval(metric.of(drawn[:, width:]) - metric.of(drawn[:, :width]))
    return (float(metric.of(sums[:width])), float(metric.of(sums[width:]))), low, high
