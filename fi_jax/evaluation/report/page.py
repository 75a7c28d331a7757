"""Builds the report's HTML from evaluations and runs: tables, figures, galleries, configs. Reads no predictions."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fi_jax import __version__
from fi_jax.data.datasets import dataset_title
from fi_jax.evaluation import tables
from fi_jax.evaluation.entries import Result, results_of
from fi_jax.evaluation.figures import style
from fi_jax.evaluation.figures.compare import compare_figure
from fi_jax.evaluation.figures.curves import curves_figure
from fi_jax.evaluation.figures.graph import graph_figure, strongest_edges
from fi_jax.evaluation.figures.headings import readable
from fi_jax.evaluation.figures.summary import (
    attributes_figure,
    confusion_figure,
    groups_figure,
    headline_text,
    reliability_figure,
)
from fi_jax.evaluation.predictions import Prediction
from fi_jax.evaluation.report.ablation import ablation_table
from fi_jax.evaluation.report.cards import Budget, Thumbnails, data_uri, flip_cards, mistake_cards, rule_blocks
from fi_jax.evaluation.report.gather import Evaluation, Flips, Run
from fi_jax.evaluation.report.rows import cells_by_place, metric_line, signed, who
from fi_jax.pictures.decode import decode

LARGEST_PAGE = 5_000_000
# Thumbnails and figures stop being added when they fill these shares of the page.
_PICTURE_BYTES = 1_800_000
_FIGURE_BYTES = 2_600_000


@dataclass(frozen=True)
class Figure:
    """A picture inside the page, with words for those who do not see it."""

    source: str
    words: str
    dataset: str = ""
    task: str = ""


def _embed(drawn, words: str, budget: Budget, dataset: str = "", task: str = "") -> Figure | None:
    # Outlined text: the reader's machine may lack the font, and labels would then overlap.
    svg = style.to_bytes(drawn, "svg", outlined=True)
    source = data_uri("image/svg+xml", svg)
    if len(source) > 200_000:
        source = data_uri("image/png", style.to_bytes(drawn, "png"))
    return Figure(source, words, dataset, task) if budget.take(len(source)) else None


def task_figures(evaluation: Evaluation, budget: Budget) -> list[Figure]:
    """Reliability and groups a task (all sources and settings together), confusion and attributes one by one."""
    by_task: dict[tuple[str, str], list[Result]] = {}
    for result in results_of(evaluation.summary):
        by_task.setdefault((result.dataset, result.task), []).append(result)
    figures: list[Figure | None] = []
    for (dataset, task), results in by_task.items():
        what = results[0].what
        said = "; ".join(f"{r.who}: {headline_text(r.values)}" for r in results)
        place = (budget, dataset, task)
        if any(r.values["groups"] for r in results):
            drawn = groups_figure({r.who: r.values for r in results}, what)
            figures.append(_embed(drawn, f"{what} by group. {said}", *place))
        if any(r.values.get("calibration") for r in results):
            drawn = reliability_figure({r.who: r.values for r in results}, what)
            figures.append(_embed(drawn, f"{what}: reliability diagram. {said}", *place))
        for r in results:
            if r.values.get("confusion"):
                drawn = confusion_figure(r.values, f"{what}: {r.who}, % of truth")
                figures.append(_embed(drawn, f"{what}: confusion matrix of {r.who}. {headline_text(r.values)}", *place))
            if r.values.get("per_attribute"):
                drawn = attributes_figure(r.values, title=f"{what}: {r.who}")
                figures.append(_embed(drawn, f"{what}: accuracy of every attribute, {r.who}", *place))
    return [f for f in figures if f]


def graph_figures(runs: Sequence[Run], budget: Budget) -> list[Figure]:
    """The graph behind Ĉ of every run that has one with an edge; runs with the same graph share a figure."""
    figures = []
    drawn_already: list[np.ndarray] = []
    for run in runs:
        if run.graph is None or not strongest_edges(run.graph[1], 1):
            continue
        labels, weights = run.graph
        if any(np.array_equal(weights, other) for other in drawn_already):
            continue
        drawn_already.append(weights)
        edges = ", ".join(f"{readable(labels[i])} to {readable(labels[j])}" for i, j, _ in strongest_edges(weights, 5))
        drawn = graph_figure(labels, weights, title=f"{run.name}: strongest relations between labels")
        figures.append(_embed(drawn, f"Label graph of {run.name}; strongest: {edges}", budget))
    return [f for f in figures if f]


def side_figures(
    pairs: Sequence[tuple[Sequence[Prediction], Sequence[Prediction]]],
    names: tuple[str, ...],
    thumbnails: Thumbnails | None,
    budget: Budget,
) -> list[Figure]:
    """Both models' answers about one face, right and wrong marked: the faces on which they differ most."""
    figures = []
    for before, after in pairs:
        face = after[0]
        data = thumbnails(face) if thumbnails else None
        what = f"{dataset_title(face.dataset)}, {face.image} ({who(face.source, face.seen)})"
        drawn = compare_figure(dict(zip(names, (before, after))), decode(data) if data else None, what, most=16)
        words = f"Answers of {' and '.join(names)} side by side about {what}"
        figures.append(_embed(drawn, words, budget, face.dataset))
    return [f for f in figures if f]


def result_table(evaluation: Evaluation) -> dict:
    """The two-setting table as header, rows and footnotes."""
    rows = tables.render(evaluation.summary)
    header, grid = tables.text_grid(rows)
    lines = [
        {"cells": line, "headline": row.headline, "dataset": row.dataset, "task": row.task}
        for line, row in zip(grid, rows, strict=True)
    ]
    return {"name": evaluation.name, "header": header, "rows": lines, "notes": tables.footnotes(rows)}


def comparison_table(evaluations: Sequence[Evaluation]) -> dict:
    """One row a data set, task, metric, setting and source; one column an evaluation; of two, their difference too."""
    names = [e.name for e in evaluations]
    lines = []
    for place, found in cells_by_place(evaluations).items():
        metric, texts = place.metric, []
        for name in names:
            cell = found.get(name)
            text = tables.format_value(metric, cell.value if cell else None)
            if cell and cell.low is not None:
                text += f" [{tables.format_value(metric, cell.low)}, {tables.format_value(metric, cell.high)}]"
            texts.append(text)
        if len(names) == 2:
            before, after = (found.get(n) for n in names)
            texts.append(
                tables.BLANK if before is None or after is None else signed(metric, after.value - before.value)
            )
        lines.append(metric_line(place, texts))
    header = ["data set", "task", "metric", "who", *names, *(["difference"] if len(names) == 2 else [])]
    return {"name": "Comparison", "header": header, "rows": lines, "notes": ["Percent unless said otherwise."]}


def flip_table(flips: dict[tuple, Flips], names: tuple[str, str]) -> dict:
    """How many answers the second model mends and breaks, with an exact McNemar test."""
    lines = []
    for (dataset, task, source, seen), f in flips.items():
        p = f.p_value
        lines.append(
            {
                "cells": [
                    dataset_title(dataset),
                    tables.task_title(task),
                    who(source, seen),
                    f"{f.both_right:,}",
                    f"{f.mended:,}",
                    f"{f.broken:,}",
                    f"{f.both_wrong:,}",
                    f"{p:.3f}" if p >= 0.001 else "< 0.001",
                ],
                "headline": False,
                "dataset": dataset,
                "task": task,
            }  # fmt: skip
        )
    notes = [
        "Exact McNemar test over answers; answers about one face are not independent, so for attributes p is too small.",
        "An age in years counts as right when it falls into the true age group.",
    ]
    header = [
        "data set",
        "task",
        "who",
        "both right",
        f"{names[1]} mends",
        f"{names[1]} breaks",
        "both wrong",
        "p (McNemar)",
    ]
    return {"name": "Where they differ", "header": header, "rows": lines, "notes": notes}


def build_page(
    evaluations: Sequence[Evaluation],
    runs: Sequence[Run],
    flips: dict[tuple, Flips] | None = None,
    thumbnails: Thumbnails | None = None,
    command: str = "",
    pairs: Sequence[tuple[Sequence[Prediction], Sequence[Prediction]]] = (),
) -> str:
    """Returns the report as one HTML document that needs no network.

    Args:
      evaluations: one for a plain report; two or more give a comparison.
      runs: training runs whose curves and configs are shown.
      flips: where two evaluations differ (`gather.compare`).
      thumbnails: how to get pictures; None shows none, which is the default because data sets are research-only.
      command: the command that makes this page again.
      pairs: both models' answers about single faces, to be shown side by side (`gather.faces_that_differ`).
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    pictures, drawings = Budget(_PICTURE_BYTES), Budget(_FIGURE_BYTES)
    names = tuple(e.name for e in evaluations[:2])
    page_tables = [ablation_table(evaluations), comparison_table(evaluations)] if len(evaluations) > 1 else []
    cards = []
    if flips:
        first, second = names
        page_tables.append(flip_table(flips, (first, second)))
        cards += [("differ", c) for c in flip_cards(flips, (first, second), thumbnails, pictures)]
    page_tables += [result_table(e) for e in evaluations]
    curves = []
    if runs:
        drawn = curves_figure({r.name: r.records for r in runs})
        curves = [_embed(drawn, f"Training curves of {', '.join(r.name for r in runs)}", drawings)]
        curves += graph_figures(runs, drawings)
    sides = side_figures(pairs, names, thumbnails, drawings)
    figures = [(e.name, f) for e in evaluations for f in task_figures(e, drawings)]
    cards += [("mistake", c) for e in evaluations for c in mistake_cards(e, thumbnails, pictures)]
    rules = [b for e in evaluations for b in rule_blocks(e, thumbnails, pictures)]
    settings = [
        (f"{e.name}: evaluation", json.dumps(e.summary["meta"], indent=2, ensure_ascii=False))
        for e in evaluations
        if e.summary["meta"]
    ]
    settings += [(f"{r.name}: training config", json.dumps(r.config, indent=2)) for r in runs if r.config]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["dataset_title"] = dataset_title
    environment.filters["task_title"] = tables.task_title
    environment.filters["readable"] = readable
    in_page = [(c.dataset, c.task, c.groups) for _, c in cards]
    return environment.get_template("template.html").render(
        title=" against ".join(e.name for e in evaluations) or ", ".join(r.name for r in runs),
        version=__version__,
        tables=page_tables,
        curves=[c for c in curves if c],
        figures=figures,
        sides=sides,
        left_out={"figures": drawings.refused, "pictures": pictures.refused},
        cards=cards,
        rules=rules,
        settings=settings,
        command=command,
        datasets=list(dict.fromkeys(e["dataset"] for v in evaluations for e in v.summary["entries"])),
        tasks=list(dict.fromkeys(r.task for v in evaluations for r in results_of(v.summary))),
        models=[e.name for e in evaluations],
        groups=sorted({f"{name}: {value}" for *_, groups in in_page for name, value in groups}),
        has_pictures=any(c.picture for _, c in cards),
    )
