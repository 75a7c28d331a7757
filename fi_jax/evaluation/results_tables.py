"""The tables of results: data sets × tasks with two settings (the paper's), and the same numbers for programs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fi_jax.data.datasets import dataset_title
from fi_jax.evaluation.results import Cell
from fi_jax.evaluation.table import Table
from fi_jax.evaluation.titles import (
    GROUP_TITLES,
    SETTINGS,
    SOURCE_TITLES,
    format_interval,
    format_value,
    metric_title,
    task_title,
)


def results_table(cells: Sequence[Cell], title: str = "") -> Table:
    """One row a metric, one column a setting and source. A setting without results is a blank column, not a missing one.

    Sets of the same name share the majority, so the first stated one is shown.
    """
    sources = [source for source in SOURCE_TITLES if any(cell.source == source for cell in cells)]
    columns = [(setting, source) for setting in SETTINGS for source in sources]
    header = ["data set", "task", "metric", "faces", "majority"]
    for setting, source in columns:
        header += [f"{setting}, {SOURCE_TITLES[source]}", "group gap"]
    rows: dict[tuple[str, str, str], dict[tuple[str, str], Cell]] = {}
    for cell in cells:
        rows.setdefault((cell.dataset, cell.task, cell.metric), {})[cell.setting, cell.source] = cell
    lines = []
    for (dataset, task, metric), found in rows.items():
        stated = next((cell for cell in found.values() if cell.baseline is not None), None)
        majority = None if stated is None else format_value(metric, stated.baseline) + _mark(stated)
        line = [dataset_title(dataset), task_title(task), metric_title(metric), faces_of(found.values()), majority]
        for column in columns:
            line += _value_and_gaps(found.get(column))
        lines.append(line)
    first = [next(iter(found.values())) for found in rows.values()]
    return Table(
        header,
        lines,
        _footnotes(cells),
        title,
        bold={i for i, cell in enumerate(first) if cell.headline},
        tags=[{"dataset": cell.dataset, "task": cell.task} for cell in first],
    )


def faces_of(cells: Iterable[Cell | None]) -> str:
    """The number of faces behind the cells of a row; several numbers where they differ."""
    return " / ".join(dict.fromkeys(f"{cell.faces:,}" for cell in cells if cell is not None))


def _mark(cell: Cell) -> str:
    return "" if cell.baseline_from == "train" else "*"


def _value_and_gaps(cell: Cell | None) -> list[str | None]:
    if cell is None:
        return [None, None]
    gaps = [f"{GROUP_TITLES.get(name, name)} {format_value(cell.metric, gap)}" for name, gap in cell.gaps.items()]
    return [format_interval(cell.metric, cell.value, cell.low, cell.high), ", ".join(gaps) or None]


def _footnotes(cells: Iterable[Cell]) -> list[str]:
    notes = [
        "Percent unless said otherwise; [low, high] is a 95 % bootstrap interval over faces.",
        "Group gap: best minus worst group, over groups of at least 30 faces.",
    ]
    if any(_mark(cell) for cell in cells):
        notes.append("* The majority is that of the evaluated faces themselves, not of a train split.")
    else:
        notes.append("Majority: always giving the train split's commonest answer (years: its median age).")
    return notes


def flat_table(cells: Sequence[Cell]) -> Table:
    """One row a cell, numbers untouched: what the CSV and JSON files hold."""
    fields = ["dataset", "task", "metric", "headline", "setting", "source"]
    fields += ["value", "low", "high", "baseline", "baseline_from", "faces"]
    header = [*fields, *(f"gap_{name}" for name in GROUP_TITLES)]
    rows = [[getattr(c, name) for name in fields] + [c.gaps.get(name) for name in GROUP_TITLES] for c in cells]
    return Table(header, rows)


def notes_below(summary: Mapping[str, Any]) -> list[str]:
    """Returns what must be said below the table: who filled which cells, what could not be read, what rules cost."""
    cells = summary["meta"].get("cells", ())
    return [*_filled(cells), *_left_out(cells), *_unreadable(summary), *_consistent(summary)]


def _filled(cells: Iterable[Mapping]) -> list[str]:
    by_model: dict[tuple, list[str]] = {}
    for cell in cells:
        key = (cell["model"], tuple(cell["trained_on"]))
        by_model.setdefault(key, []).append(f"{dataset_title(cell['dataset'])} ({cell['setting']})")
    lines = []
    for (model, trained_on), filled in by_model.items():
        if model is None:
            lines.append(
                f"Blank, no model given may fill it: {', '.join(filled)}; --leave-one-out trains one that may."
            )
        else:
            learnt = ", ".join(map(dataset_title, trained_on)) or "none of these sets, as far as is known"
            lines.append(f"{', '.join(filled)}: {model}, trained on {learnt}.")
    return lines


def _left_out(cells: Iterable[Mapping]) -> list[str]:
    lines = []
    for cell in cells:
        names = list(cell.get("unreadable", ()))
        if names:
            more = f" and {len(names) - 3} more (in metrics.json)" if len(names) > 3 else ""
            where = f"{dataset_title(cell['dataset'])}, {cell['setting']}"
            lines.append(
                f"Left out, pictures that cannot be read ({where}): {len(names)}: {', '.join(names[:3])}{more}."
            )
    return lines


def _unreadable(summary: Mapping) -> list[str]:
    lines = []
    for entry in summary["entries"]:
        if entry["source"] == "free":
            counts = [
                f"{task_title(task)} {result['unreadable']:,} of {result.get('answers', result['faces']):,}"
                for task, result in entry["tasks"].items()
            ]
            where = f"{dataset_title(entry['dataset'])}, {entry['setting']}"
            lines.append(f"Free-form answers that could not be read, counted as wrong ({where}): {', '.join(counts)}.")
    return lines


def _consistent(summary: Mapping) -> list[str]:
    lines = []
    for entry in summary["entries"]:
        costs = (entry.get("rules") or {}).get("consistent") or {}
        shown = [
            f"{task_title(task)} {format_value('', c['as_answered'])} → {format_value('', c['consistent'])}"
            for task, c in costs.items()
        ]
        if shown:
            where = f"{dataset_title(entry['dataset'])}, {entry['setting']}, {SOURCE_TITLES[entry['source']]}"
            lines.append(f"Decoded without broken rules ({where}): accuracy {', '.join(shown)}.")
    return lines
