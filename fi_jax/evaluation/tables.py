"""The result table shaped like the paper's (data sets × tasks, two settings), as rows, Markdown, CSV, JSON, console."""

import csv
import io
from dataclasses import asdict, dataclass

from fi_jax.data.datasets import DATASET_NAMES, dataset_title

SETTINGS = ("training-free", "fine-tuned")
SOURCE_TITLES = {"head": "alignment head", "llm": "LLM", "free": "LLM, free-form"}
_TASKS = {
    "attribute": "attributes",
    "age_group": "age group",
    "age_years": "age in years",
    "gender": "gender",
    "race": "race",
    "expression": "expression",
    "rules": "rules",
}
_METRICS = {
    "mae_years": "MAE (years)",
    "mae_years_expected": "MAE, expected value (years)",
    "mae_years_median": "MAE, median (years)",
    "macro_f1": "macro-F1",
    "mean_f1": "mean F1",
    "violation_rate": "violation rate",
}
_IN_YEARS = ("mae_years", "mae_years_expected", "mae_years_median")
_GROUPINGS = {"gender": "gender", "race": "race", "age_group": "age"}
BLANK = "–"


@dataclass(frozen=True)
class Cell:
    """One number with what stands beside it. Shares lie in [0, 1]; years are years."""

    value: float
    low: float | None
    high: float | None
    baseline: float | None
    baseline_from: str
    # Grouping -> gap of best and worst group; empty where it is not the headline or no group is stated.
    gaps: dict[str, float]
    faces: int


@dataclass(frozen=True)
class Row:
    """One metric of one task of one data set; cells by `(setting, source)`."""

    dataset: str
    task: str
    metric: str
    headline: bool
    cells: dict[tuple[str, str], Cell]


def task_title(name: str) -> str:
    """A task family in words."""
    return _TASKS.get(name, name)


def metric_title(name: str) -> str:
    """A metric in words."""
    return _METRICS.get(name, name.replace("_", " "))


def format_value(metric: str, value: float | None) -> str:
    """A number as tables print it: percent with one decimal, or years with two."""
    if value is None:
        return BLANK
    return f"{value:.2f}" if metric in _IN_YEARS else f"{100 * value:.1f}"


def render(summary: dict, headlines_only: bool = False) -> list[Row]:
    """Returns the table's rows: per data set and task, the headline first, then the other metrics."""
    rows: dict[tuple[str, str, str], Row] = {}
    for entry in summary["entries"]:
        place = (entry["setting"], entry["source"])
        results = dict(entry["tasks"])
        if entry.get("rules"):
            results["rules"] = entry["rules"]
        for task, result in results.items():
            for metric, score in result["metrics"].items():
                headline = metric == result["headline"]
                if score["value"] is None or (headlines_only and not headline):
                    continue
                key = (entry["dataset"], task, metric)
                row = rows.setdefault(key, Row(*key, headline, {}))
                gaps = {name: g["gap"] for name, g in result["groups"].items() if g["gap"] is not None}
                row.cells[place] = Cell(
                    score["value"],
                    score["low"],
                    score["high"],
                    score.get("baseline"),
                    result["baseline"]["from"],
                    gaps if headline else {},
                    result["faces"],
                )
    order = {name: i for i, name in enumerate(DATASET_NAMES)}
    tasks = {name: i for i, name in enumerate(_TASKS)}
    return sorted(
        rows.values(), key=lambda r: (order.get(r.dataset, 99), r.dataset, tasks.get(r.task, 99), not r.headline)
    )


def consistent_rows(summary: dict) -> list[str]:
    """Returns one sentence an entry on what consistent decoding costs, to stand below the table."""
    lines = []
    for entry in summary["entries"]:
        costs = (entry.get("rules") or {}).get("consistent") or {}
        shown = [
            f"{task_title(task)} {format_value('', c['as_answered'])} → {format_value('', c['consistent'])}"
            for task, c in costs.items()
        ]
        if shown:
            who = f"{dataset_title(entry['dataset'])}, {entry['setting']}, {SOURCE_TITLES[entry['source']]}"
            lines.append(f"Decoded without broken rules ({who}): accuracy {', '.join(shown)}.")
    return lines


def cell_lines(summary: dict) -> list[str]:
    """Returns who filled which cells and which stay blank, in sentences, to stand below the table."""
    by_model: dict[tuple, list[str]] = {}
    for cell in summary["meta"].get("cells", ()):
        key = (cell["model"], tuple(cell["trained_on"]))
        by_model.setdefault(key, []).append(f"{dataset_title(cell['dataset'])} ({cell['setting']})")
    lines = []
    for (model, trained_on), cells in by_model.items():
        if model is None:
            lines.append(f"Blank, no model given may fill it: {', '.join(cells)}; --leave-one-out trains one that may.")
        else:
            learnt = ", ".join(map(dataset_title, trained_on)) or "none of these sets, as far as is known"
            lines.append(f"{', '.join(cells)}: {model}, trained on {learnt}.")
    return lines


def _places(rows: list[Row]) -> list[tuple[str, str]]:
    """Both settings for every source that occurs: a setting without results is a blank column, not a missing one."""
    sources = [s for s in SOURCE_TITLES if any(source == s for row in rows for _, source in row.cells)]
    return [(setting, source) for setting in SETTINGS for source in sources]


def _text(row: Row, place: tuple[str, str]) -> tuple[str, str]:
    cell = row.cells.get(place)
    if cell is None:
        return BLANK, BLANK
    value = format_value(row.metric, cell.value)
    if cell.low is not None:
        value += f" [{format_value(row.metric, cell.low)}, {format_value(row.metric, cell.high)}]"
    gaps = ", ".join(f"{_GROUPINGS.get(name, name)} {format_value(row.metric, gap)}" for name, gap in cell.gaps.items())
    return value, gaps or BLANK


def _baseline(row: Row) -> str:
    """The majority's number; sets of the same name share it, so the first stated one is shown."""
    cell = next((c for c in row.cells.values() if c.baseline is not None), None)
    if cell is None:
        return BLANK
    mark = "" if cell.baseline_from == "train" else "*"
    return format_value(row.metric, cell.baseline) + mark


def text_grid(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of text, the common source of Markdown, console and HTML tables."""
    places = _places(rows)
    header = ["data set", "task", "metric", "majority"]
    for setting, source in places:
        header += [f"{setting}, {SOURCE_TITLES[source]}", "group gap"]
    grid = []
    for row in rows:
        line = [dataset_title(row.dataset), task_title(row.task), metric_title(row.metric), _baseline(row)]
        for place in places:
            line += _text(row, place)
        grid.append(line)
    return header, grid


def footnotes(rows: list[Row]) -> list[str]:
    """What a reader of the table must know, in sentences."""
    notes = [
        "Percent unless said otherwise; [low, high] is a 95 % bootstrap interval over faces.",
        "Group gap: best minus worst group, over groups of at least 30 faces.",
    ]
    if any(c.baseline_from != "train" for row in rows for c in row.cells.values()):
        notes.append("* The majority is that of the evaluated faces themselves, not of a train split.")
    else:
        notes.append("Majority: always giving the train split's commonest answer (years: its median age).")
    return notes


def to_markdown(rows: list[Row]) -> str:
    """Returns the table in Markdown, with its footnotes."""
    header, grid = text_grid(rows)
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(line) + " |" for line in grid]
    return "\n".join(lines + [""] + [f"{note}  " for note in footnotes(rows)]) + "\n"


def to_records(rows: list[Row]) -> list[dict]:
    """Returns one flat record a cell, numbers untouched: what the CSV and JSON files hold."""
    records = []
    for row in rows:
        for (setting, source), cell in row.cells.items():
            values = asdict(cell)
            gaps = values.pop("gaps")
            records.append(
                {
                    "dataset": row.dataset,
                    "task": row.task,
                    "metric": row.metric,
                    "headline": row.headline,
                    "setting": setting,
                    "source": source,
                }
                | values
                | {f"gap_{name}": gaps.get(name) for name in _GROUPINGS}
            )
    return records


def to_csv(rows: list[Row]) -> str:
    """Returns the table in CSV, one line a cell."""
    records = to_records(rows)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(records[0]) if records else ["dataset"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def print_table(rows: list[Row], console=None) -> None:
    """Prints the table with `rich`, leaving out columns that are blank throughout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    header, grid = text_grid(rows)
    used = [i for i in range(len(header)) if i < 4 or any(line[i] != BLANK for line in grid)]
    # `Text`, because rich reads "[low, high]" as markup.
    table = Table(*(header[i] for i in used), caption=Text("\n".join(footnotes(rows))), caption_justify="left")
    for line, row in zip(grid, rows, strict=True):
        table.add_row(*(Text(line[i]) for i in used), style="bold" if row.headline else None)
    if console is None:
        console = Console()
        # A file or a pipe has no width of its own; 80 columns would cut words short.
        console = console if console.is_terminal else Console(width=200)
    console.print(table)
