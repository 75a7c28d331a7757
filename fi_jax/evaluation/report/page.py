"""Builds the report's HTML from evaluations and runs: tables, figures, galleries, configs. Reads no predictions."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fi_jax import __version__
from fi_jax.data.datasets import dataset_title
from fi_jax.evaluation.differences import Difference
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
from fi_jax.evaluation.report.cards import Budget, Thumbnails, data_uri, flip_cards, mistake_cards, rule_blocks
from fi_jax.evaluation.report.gather import Evaluation, Flips, Run
from fi_jax.evaluation.report.tables import ablation_table, comparison_table, difference_table, flip_table
from fi_jax.evaluation.results import Result, cells_of, results_of
from fi_jax.evaluation.results_tables import results_table
from fi_jax.evaluation.titles import setting_of, task_title, who
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
    model: str = ""


def _embed(drawn, *about: str) -> Figure:
    """The figure as it stands in the page."""
    # Outlined text: the reader's machine may lack the font, and labels would then overlap.
    svg = style.to_bytes(drawn, "svg", outlined=True)
    source = data_uri("image/svg+xml", svg)
    if len(source) > 200_000:
        source = data_uri("image/png", style.to_bytes(drawn, "png"))
    return Figure(source, *about)


def _fitting(rows: Iterable[list[Figure]], budget: Budget) -> list[list[Figure]]:
    """The rows for which there is room: one is shown whole or not at all."""
    return [row for row in rows if budget.take(sum(len(figure.source) for figure in row), len(row))]


def task_figures(evaluation: Evaluation) -> list[Figure]:
    """Reliability and groups a task (all sources and settings together), confusion and attributes one by one."""
    by_task: dict[tuple[str, str], list[Result]] = {}
    for result in results_of(evaluation.summary):
        by_task.setdefault((result.dataset, result.task), []).append(result)
    figures: list[Figure] = []
    for place, results in by_task.items():
        what, about = results[0].what, (*place, evaluation.name)
        values = {r.who: r.values for r in results}
        headlines = "; ".join(f"{name}: {headline_text(v)}" for name, v in values.items())
        if any(v["groups"] for v in values.values()):
            figures.append(_embed(groups_figure(values, what), f"{what} by group. {headlines}", *about))
        if any(v.get("calibration") for v in values.values()):
            drawn = reliability_figure(values, what)
            figures.append(_embed(drawn, f"{what}: reliability diagram. {headlines}", *about))
        for name, v in values.items():
            if v.get("confusion"):
                drawn = confusion_figure(v, f"{what}: {name}, % of truth")
                figures.append(_embed(drawn, f"{what}: confusion matrix of {name}. {headline_text(v)}", *about))
            if v.get("per_attribute"):
                drawn = attributes_figure(v, title=f"{what}: {name}")
                figures.append(_embed(drawn, f"{what}: accuracy of every attribute, {name}", *about))
    return figures


def side_by_side(figures: Iterable[Figure]) -> list[list[Figure]]:
    """Groups figures into rows: the models' figures of one kind, data set and task."""
    rows: dict[tuple, list[Figure]] = {}
    drawn: Counter[tuple] = Counter()
    for figure in figures:
        # A model's figures of one task come in the same order for every model.
        nth = drawn[figure.model, figure.dataset, figure.task]
        drawn[figure.model, figure.dataset, figure.task] += 1
        rows.setdefault((figure.dataset, figure.task, nth), []).append(figure)
    return list(rows.values())


def graph_figures(runs: Sequence[Run]) -> list[Figure]:
    """The graph behind Ĉ of every run that has one with an edge; runs with the same graph share a figure."""
    figures: list[Figure] = []
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
        figures.append(_embed(drawn, f"Label graph of {run.name}; strongest: {edges}"))
    return figures


def side_figures(
    pairs: Sequence[tuple[Sequence[Prediction], Sequence[Prediction]]],
    names: tuple[str, ...],
    thumbnails: Thumbnails | None,
) -> list[Figure]:
    """Both models' answers about one face, right and wrong marked: the faces on which they differ most."""
    figures: list[Figure] = []
    for before, after in pairs:
        face = after[0]
        data = thumbnails(face) if thumbnails else None
        what = f"{dataset_title(face.dataset)}, {face.image} ({who(face.source, setting_of(face.seen))})"
        drawn = compare_figure(dict(zip(names, (before, after))), decode(data) if data else None, what, most=16)
        figures.append(_embed(drawn, f"Answers of {' and '.join(names)} side by side about {what}", face.dataset))
    return figures


def build_page(
    evaluations: Sequence[Evaluation],
    runs: Sequence[Run],
    flips: dict[tuple, Flips] | None = None,
    thumbnails: Thumbnails | None = None,
    command: str = "",
    pairs: Sequence[tuple[Sequence[Prediction], Sequence[Prediction]]] = (),
    apart: Sequence[Difference] = (),
) -> str:
    """Returns the report as one HTML document that needs no network.

    Args:
      evaluations: one for a plain report; two or more give a comparison.
      runs: training runs whose curves and configs are shown.
      flips: where two evaluations differ (`gather.compare`).
      thumbnails: how to get pictures; None shows none, which is the default because data sets are research-only.
      command: the command that makes this page again.
      pairs: both models' answers about single faces, to be shown side by side (`gather.faces_that_differ`).
      apart: two evaluations' differences with their intervals (`evaluation.differences`).
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    pictures, drawings = Budget(_PICTURE_BYTES), Budget(_FIGURE_BYTES)
    names = tuple(e.name for e in evaluations[:2])
    page_tables = [ablation_table(evaluations), comparison_table(evaluations)] if len(evaluations) > 1 else []
    cards = []
    if apart:
        page_tables.insert(0, difference_table(apart, (names[0], names[1])))
    if flips:
        first, second = names
        page_tables.append(flip_table(flips, (first, second)))
        cards += [("differ", c) for c in flip_cards(flips, (first, second), thumbnails, pictures)]
    page_tables += [results_table(cells_of(e.summary), e.name) for e in evaluations]
    curves: list[Figure] = []
    if runs:
        drawn = curves_figure({r.name: r.records for r in runs})
        curves = [_embed(drawn, f"Training curves of {', '.join(r.name for r in runs)}"), *graph_figures(runs)]
    sides = side_figures(pairs, names, thumbnails)
    figures = side_by_side(figure for e in evaluations for figure in task_figures(e))
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
    environment.filters["task_title"] = task_title
    environment.filters["readable"] = readable
    in_page = [(c.dataset, c.task, c.groups) for _, c in cards]
    return environment.get_template("template.html").render(
        title=" against ".join(e.name for e in evaluations) or ", ".join(r.name for r in runs),
        version=__version__,
        tables=page_tables,
        curves=_fitting([[figure] for figure in curves], drawings),
        sides=_fitting([[figure] for figure in sides], drawings),
        figures=_fitting(figures, drawings),
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
