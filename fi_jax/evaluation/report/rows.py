"""Rows that compare evaluations: which cell each has in one place, and how a row is put together."""

from collections.abc import Sequence
from typing import NamedTuple

from fi_jax.data.datasets import dataset_title
from fi_jax.evaluation import tables
from fi_jax.evaluation.report.gather import Evaluation


class Place(NamedTuple):
    """What a row is about."""

    dataset: str
    task: str
    metric: str
    headline: bool
    setting: str
    source: str


def cells_by_place(
    evaluations: Sequence[Evaluation], headlines_only: bool = False
) -> dict[Place, dict[str, tables.Cell]]:
    """Returns, for every place that some evaluation fills, the cells of those that do, by the evaluation's name."""
    cells: dict[Place, dict[str, tables.Cell]] = {}
    for evaluation in evaluations:
        for row in tables.render(evaluation.summary, headlines_only=headlines_only):
            for (setting, source), cell in row.cells.items():
                place = Place(row.dataset, row.task, row.metric, row.headline, setting, source)
                cells.setdefault(place, {})[evaluation.name] = cell
    return cells


def metric_line(place: Place, texts: Sequence[str]) -> dict:
    """The row of the page's table: what it is about, who answered, then `texts`."""
    said = who(place.source, place.setting == "fine-tuned")
    return {
        "cells": [
            dataset_title(place.dataset),
            tables.task_title(place.task),
            tables.metric_title(place.metric),
            said,
            *texts,
        ],
        "headline": place.headline,
        "dataset": place.dataset,
        "task": place.task,
    }


def signed(metric: str, difference: float) -> str:
    """A difference as tables print it, always with its sign."""
    text = tables.format_value(metric, abs(difference))
    return ("+" if difference >= 0 else "−") + text


def who(source: str, seen: bool) -> str:
    """Who answered, in words: "LLM, training-free"."""
    said = {"llm": "LLM", "head": "alignment head"}.get(source, "LLM, free-form")
    return f"{said}, {'fine-tuned' if seen else 'training-free'}"
