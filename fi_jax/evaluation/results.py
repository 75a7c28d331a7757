"""What `metrics.json` holds, taken apart: one result a task, one cell a metric."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fi_jax.data.datasets import DATASET_NAMES, dataset_title
from fi_jax.errors import UserError, require_choice
from fi_jax.evaluation.summary_shape import check_summary
from fi_jax.evaluation.titles import TASK_TITLES, task_title, who
from fi_jax.files import write_text

VERSION = 1


@dataclass(frozen=True)
class Result:
    """One task of one entry of a summary, "rules" among them."""

    dataset: str
    task: str
    source: str
    setting: str
    values: dict

    @property
    def who(self) -> str:
        """Who answered, in words: "LLM, training-free"."""
        return who(self.source, self.setting)

    @property
    def what(self) -> str:
        """What was asked, in words: "UTKFace, age group"."""
        return f"{dataset_title(self.dataset)}, {task_title(self.task)}"


@dataclass(frozen=True)
class Cell:
    """One metric of one result, with what stands beside it. Shares lie in [0, 1]; years are years."""

    dataset: str
    task: str
    metric: str
    headline: bool
    setting: str
    source: str
    value: float
    low: float | None
    high: float | None
    baseline: float | None
    baseline_from: str
    faces: int
    # Grouping -> gap of best and worst group; empty where it is not the headline or no group is stated.
    gaps: dict[str, float]


def results_of(summary: dict) -> Iterator[Result]:
    """Yields every task's result of a summary."""
    for entry in summary["entries"]:
        tasks = entry["tasks"] | ({"rules": entry["rules"]} if entry.get("rules") else {})
        for task, values in tasks.items():
            yield Result(entry["dataset"], task, entry["source"], entry["setting"], values)


def select(summary: dict, needs: str = "", **wanted: str | None) -> list[Result]:
    """Returns the results that match every given field and hold the key `needs`.

    Raises:
      UserError: a field has a value that the summary does not hold, or nothing is left.
    """
    found = [r for r in results_of(summary) if not needs or r.values.get(needs)]
    for name, value in wanted.items():
        if value is not None:
            require_choice(name.replace("_", " "), value, dict.fromkeys(getattr(r, name) for r in found))
            found = [r for r in found if getattr(r, name) == value]
    if not found:
        raise UserError(f"the summary holds no result with {needs or 'any task'} for this choice")
    return found


def cells_of(summary: dict, headlines_only: bool = False) -> list[Cell]:
    """Returns the cells by data set and task, the headline first; the cells of one metric stand together."""
    rows: dict[tuple[str, str, str], list[Cell]] = {}
    for result in results_of(summary):
        values = result.values
        gaps = {name: g["gap"] for name, g in values["groups"].items() if g["gap"] is not None}
        for metric, score in values["metrics"].items():
            headline = metric == values["headline"]
            if score["value"] is None or (headlines_only and not headline):
                continue
            cell = Cell(
                result.dataset,
                result.task,
                metric,
                headline,
                result.setting,
                result.source,
                score["value"],
                score["low"],
                score["high"],
                score.get("baseline"),
                values["baseline"]["from"],
                values["faces"],
                gaps if headline else {},
            )
            rows.setdefault((cell.dataset, cell.task, metric), []).append(cell)
    datasets = {name: i for i, name in enumerate(DATASET_NAMES)}
    tasks = {name: i for i, name in enumerate(TASK_TITLES)}

    def place(row: list[Cell]) -> tuple:
        first = row[0]
        return datasets.get(first.dataset, 99), first.dataset, tasks.get(first.task, 99), not first.headline

    return [cell for row in sorted(rows.values(), key=place) for cell in row]


def write_summary(path: Path | str, summary: dict) -> None:
    """Writes `metrics.json`; it appears whole or not at all."""
    write_text(Path(path), json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_summary(path: Path | str) -> dict:
    """Reads `metrics.json` (or that of a folder); a missing, broken or foreign file is a `UserError`."""
    path = Path(path)
    if path.is_dir():
        path = path / "metrics.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist; make it with 'fi-jax evaluate CONFIG --out DIR'")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); evaluate again") from error
    if not isinstance(summary, dict) or summary.get("version") != VERSION or "entries" not in summary:
        raise UserError(f"{path} is no metrics.json of this version; evaluate again")
    try:
        check_summary(summary)
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}; evaluate again") from error
    return summary
