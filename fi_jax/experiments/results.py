"""What came out of a sweep, as one table, one best point and one plot."""

import math
from typing import Any

from fi_jax.evaluation.table import Table, Value
from fi_jax.experiments.expressions import Sweep
from fi_jax.experiments.store import Store, fields_of, status_of


def tabulate(store: Store, sweep: Sweep) -> Table:
    """One row a point: `point`, `status`, `seconds`, the swept fields, every metric, `error`. Best first.

    Points that wait or run have the status "waiting".
    """
    rows: list[dict[str, Value]] = []
    for point, trial in sorted(store.points().items()):
        status, noted = status_of(trial), trial.user_attrs
        row: dict[str, Value] = {"point": point, "status": "waiting" if status == "running" else status}
        row["seconds"] = noted.get("seconds")
        # Lists have no place in a cell, and infinity and NaN none in JSON.
        row |= {
            name: value if isinstance(value, str | int | float) else str(value)
            for name, value in fields_of(trial).items()
        }
        row |= {name: value if math.isfinite(value) else None for name, value in noted.get("metrics", {}).items()}
        rows.append({**row, "error": noted.get("error", "")})
    rows.sort(key=lambda row: _rank(row, sweep))
    names = dict.fromkeys(name for row in rows for name in row if name != "error")
    front = ("point", "status", "seconds", *sweep.fields, sweep.metric)
    header = (*dict.fromkeys([*front, *names]), "error")
    return Table(header, [[row.get(name) for name in header] for row in rows])


def _rank(row: dict[str, Value], sweep: Sweep) -> tuple[bool, float]:
    """Runs that ended well come before the others, whatever those had measured."""
    value = row.get(sweep.metric)
    number = value if isinstance(value, int | float) else math.inf
    return row["status"] != "ok", number if sweep.goal == "min" or number == math.inf else -number


def best_row(table: Table) -> dict[str, Value] | None:
    """The best run that ended well; None when there is none."""
    return next((row for row in table.records() if row["status"] == "ok"), None)


def plot(table: Table, sweep: Sweep) -> Any:
    """Draws the metric against every swept field, one panel each; the best run is marked. Returns the figure."""
    from matplotlib.figure import Figure

    ok = [row for row in table.records() if row["status"] == "ok"]
    columns = min(3, len(sweep.fields))
    rows = -(-len(sweep.fields) // columns)
    figure = Figure(figsize=(4 * columns, 3.2 * rows), layout="constrained")
    scores: Any = [row[sweep.metric] for row in ok]
    for i, name in enumerate(sweep.fields):
        axes = figure.add_subplot(rows, columns, i + 1)
        values: Any = [row[name] for row in ok]
        numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        values = values if numeric else list(map(str, values))
        axes.scatter(values, scores, s=18)
        axes.scatter(values[:1], scores[:1], s=90, facecolors="none", edgecolors="C3")
        if numeric and values and min(values) > 0 and max(values) / min(values) > 50:
            axes.set_xscale("log")
        axes.set_xlabel(name)
        axes.set_ylabel(sweep.metric)
        axes.grid(alpha=0.3)
    return figure
