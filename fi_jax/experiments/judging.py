"""Fills the cells of a results table: each data set and setting by the model that may, and what comes out as files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fi_jax.data.datasets import find_dataset
from fi_jax.errors import UserError
from fi_jax.evaluation.cells import Assignment, plan_cells
from fi_jax.evaluation.parts import EvaluationOptions, Part, fill_part
from fi_jax.evaluation.predictions import read_predictions, write_predictions
from fi_jax.evaluation.results import cells_of, write_summary
from fi_jax.evaluation.results_tables import flat_table, notes_below, results_table
from fi_jax.evaluation.summarise import summarise
from fi_jax.evaluation.titles import Setting
from fi_jax.experiments.candidates import Candidate
from fi_jax.files import write_text


@dataclass(frozen=True)
class Cells:
    """The filled cells, and those that no model may fill."""

    assignments: Sequence[Assignment]
    parts: Sequence[Part]
    blank: Sequence[tuple[str, Setting]]


def fill_cells(
    models: Sequence[Candidate],
    sets: Sequence[tuple[str, str]],
    settings: Sequence[Setting],
    options: EvaluationOptions,
    out: Path,
) -> Cells:
    """Asks the models about the data sets (names and folders); what was done before in `out` is not done again.

    Raises:
      UserError: no model may fill any cell, or a set cannot be read or asked about.
    """
    assignments, blank = plan_cells([name for name, _ in sets], [model.sources for model in models], settings)
    if not assignments:
        wanted = "; ".join(f"{name}, {setting}" for name, setting in blank)
        raise UserError(f"no model given may fill a cell ({wanted}); give another --setting, or --leave-one-out")
    roots = dict(sets)
    parts = []
    for assignment in assignments:
        model = models[assignment.model]
        parts.append(fill_part(out, assignment, roots[assignment.dataset], options, model.fingerprint, model.load))
    return Cells(assignments, parts, blank)


def write_results(
    out: Path, cells: Cells, models: Sequence[Candidate], options: EvaluationOptions, command: str
) -> dict[str, Any]:
    """Writes predictions, metrics and tables into `out`; returns the summary (`metrics.json`)."""
    predictions = out / "predictions.jsonl"
    write_predictions(predictions, (line for part in cells.parts for line in read_predictions(part.path)))
    datasets = [find_dataset(assignment.dataset) for assignment in cells.assignments]
    described: list[Mapping[str, Any]] = [
        {
            "dataset": dataset.name,
            "setting": assignment.setting,
            "model": models[assignment.model].name,
            "trained_on": models[assignment.model].sources,
        }
        | ({"unreadable": part.unreadable} if part.unreadable else {})
        for dataset, assignment, part in zip(datasets, cells.assignments, cells.parts, strict=True)
    ]
    described += [
        {"dataset": find_dataset(name).name, "setting": setting, "model": None, "trained_on": []}
        for name, setting in cells.blank
    ]
    meta = {
        "model": models[0].name,
        "fingerprint": models[0].fingerprint,
        "split": options.split,
        "trained_on": models[0].sources,
        "cells": described,
        "limit": options.limit,
        "command": command,
        "config": models[0].config,
    }
    summary = summarise(
        read_predictions(predictions),
        {dataset.name: part.baseline for dataset, part in zip(datasets, cells.parts, strict=True)},
        estimator=models[0].age_estimator,
        meta=meta,
        tables=[dataset.schema for dataset in datasets if dataset.schema],
    )
    write_summary(out / "metrics.json", summary)
    table, flat = results_table(cells_of(summary)), flat_table(cells_of(summary))
    write_text(out / "table.csv", flat.to_csv())
    write_text(out / "table.json", flat.to_json())
    write_text(out / "table.md", table.to_markdown() + "".join(f"{note}  \n" for note in notes_below(summary)))
    return summary
