"""The ablation's tables: variants by tasks, mean and sample deviation over seeds."""

from collections.abc import Iterator, Sequence

import numpy as np

from fi_jax.data.datasets import dataset_title
from fi_jax.evaluation.table import Table, Value
from fi_jax.evaluation.titles import SOURCE_TITLES, format_value, metric_title, task_title

# Variant -> (data set, task, metric) -> its values over seeds.
_Scores = dict[str, dict[tuple[str, str, str], list[float]]]


def _scores(results: Sequence[dict], source: str) -> _Scores:
    found: _Scores = {}
    for result in results:
        for dataset, tasks in result["scores"].get(source, {}).items():
            for task, score in tasks.items():
                if score["value"] is not None:
                    place = (dataset, task, score["metric"])
                    found.setdefault(result["variant"], {}).setdefault(place, []).append(score["value"])
    return found


def _spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample deviation, which one value has not."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def ablation_tables(results: Sequence[dict], *notes: str) -> Iterator[Table]:
    """Yields a table a source, from points as `experiments.ablation` keeps them; variants in order of appearance."""
    titles = {result["variant"]: result["title"] for result in results}
    for source, source_title in SOURCE_TITLES.items():
        scores = _scores(results, source)
        if not scores:
            continue
        places = list(dict.fromkeys(place for row in scores.values() for place in row))
        header = ["variant"]
        for dataset, task, metric in places:
            what = metric_title(metric) if task == "rules" else f"{task_title(task)}, {metric_title(metric)}"
            header.append(f"{dataset_title(dataset)}: {what}")
        rows = [[titles[v], *(_text(place[2], row.get(place)) for place in places)] for v, row in scores.items()]
        seeds = max(len(values) for row in scores.values() for values in row.values())
        spread = f"mean ± sample deviation over {seeds} seeds" if seeds > 1 else "one seed, so no deviation"
        yield Table(header, rows, (f"Answers of the {source_title}; percent, ages in years; {spread}.", *notes))


def _text(metric: str, values: Sequence[float] | None) -> str | None:
    if values is None:
        return None
    mean, deviation = _spread(values)
    return format_value(metric, mean) + ("" if deviation is None else f" ± {format_value(metric, deviation)}")


def flat_ablation_table(results: Sequence[dict]) -> Table:
    """Returns one row a variant, source, data set and task, numbers untouched: what the CSV file holds."""
    rows: list[list[Value]] = []
    for source in SOURCE_TITLES:
        for variant, places in _scores(results, source).items():
            for place, values in places.items():
                rows.append([variant, source, *place, *_spread(values), len(values)])
    return Table(["variant", "source", "dataset", "task", "metric", "mean", "deviation", "seeds"], rows)
