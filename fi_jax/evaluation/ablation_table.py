"""The ablation table: variants by tasks, mean and deviation over seeds, as rows, Markdown, CSV and on the console."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fi_jax.data.datasets import dataset_title
from fi_jax.evaluation.tables import BLANK, SOURCE_TITLES, format_value, metric_title, task_title

Place = tuple[str, str, str]  # data set, task, metric


@dataclass(frozen=True)
class Spread:
    """A score over seeds; `deviation` (sample standard deviation) is None with one seed."""

    mean: float
    deviation: float | None
    values: tuple[float, ...]


@dataclass(frozen=True)
class AblationTable:
    """One source's scores; `cells[variant][place]`."""

    source: str
    titles: dict[str, str]
    places: tuple[Place, ...]
    cells: dict[str, dict[Place, Spread]]
    seeds: int


def tabulate(results: Sequence[dict]) -> list[AblationTable]:
    """Returns a table a source, from points as `experiments.ablation` keeps them; variants in order of appearance."""
    tables = []
    for source in SOURCE_TITLES:
        values: dict[str, dict[Place, list[float]]] = {}
        titles: dict[str, str] = {}
        for result in results:
            for dataset, tasks in result["scores"].get(source, {}).items():
                for task, score in tasks.items():
                    if score["value"] is not None:
                        titles[result["variant"]] = result["title"]
                        place = (dataset, task, score["metric"])
                        values.setdefault(result["variant"], {}).setdefault(place, []).append(score["value"])
        if not values:
            continue
        places = tuple(dict.fromkeys(place for row in values.values() for place in row))
        cells = {
            variant: {
                place: Spread(float(np.mean(v)), float(np.std(v, ddof=1)) if len(v) > 1 else None, tuple(v))
                for place, v in row.items()
            }
            for variant, row in values.items()
        }
        seeds = max(len(v) for row in values.values() for v in row.values())
        tables.append(AblationTable(source, titles, places, cells, seeds))
    return tables


def grid(table: AblationTable) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of text."""
    header = ["variant"]
    for dataset, task, metric in table.places:
        what = metric_title(metric) if task == "rules" else f"{task_title(task)}, {metric_title(metric)}"
        header.append(f"{dataset_title(dataset)}: {what}")
    rows = []
    for variant, cells in table.cells.items():
        rows.append([table.titles[variant], *(_text(place, cells.get(place)) for place in table.places)])
    return header, rows


def _text(place: Place, cell: Spread | None) -> str:
    if cell is None:
        return BLANK
    mean = format_value(place[2], cell.mean)
    return mean if cell.deviation is None else f"{mean} ± {format_value(place[2], cell.deviation)}"


def notes(table: AblationTable, *more: str) -> list[str]:
    """What a reader must know, in sentences."""
    spread = f"mean ± sample deviation over {table.seeds} seeds" if table.seeds > 1 else "one seed, so no deviation"
    return [f"Answers of the {SOURCE_TITLES[table.source]}; percent, ages in years; {spread}.", *more]


def to_markdown(tables: Sequence[AblationTable], *more: str) -> str:
    """Returns the tables in Markdown, with their notes."""
    parts = []
    for table in tables:
        header, rows = grid(table)
        lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        parts.append("\n".join([*lines, "", *(f"{note}  " for note in notes(table, *more))]))
    return "\n\n".join(parts) + "\n"


def to_csv(tables: Sequence[AblationTable]) -> str:
    """Returns one line a cell, numbers untouched."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["variant", "source", "dataset", "task", "metric", "mean", "deviation", "seeds"])
    for table in tables:
        for variant, cells in table.cells.items():
            for (dataset, task, metric), cell in cells.items():
                deviation = "" if cell.deviation is None else cell.deviation
                writer.writerow([variant, table.source, dataset, task, metric, cell.mean, deviation, len(cell.values)])
    return out.getvalue()


def print_tables(tables: Sequence[AblationTable], *more: str) -> None:
    """Prints the tables with `rich`."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console = console if console.is_terminal else Console(width=240)
    for table in tables:
        header, rows = grid(table)
        shown = Table(*header, caption="\n".join(notes(table, *more)), caption_justify="left")
        for row in rows:
            shown.add_row(*row)
        console.print(shown)
