"""What came out of a sweep, as one table, one best point and one plot."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from fi_jax.experiments.expressions import Sweep

Row = tuple[str, dict[str, Any], dict[str, Any] | None]


def table(rows: Sequence[Row], sweep: Sweep) -> pd.DataFrame:
    """One line a point: `point`, `status`, `seconds`, the swept fields, every metric, `error`. Best first.

    `rows` are (point id, fields, result or None). Points without a result have the status "waiting".
    """
    lines = []
    for identity, point, result in rows:
        result = result or {"status": "waiting", "metrics": {}}
        # Lists have no place in a cell.
        fields = {
            name: value if isinstance(value, str | int | float | bool) else str(value) for name, value in point.items()
        }
        lines.append(
            {
                "point": identity,
                "status": result["status"],
                "seconds": result.get("seconds"),
                **fields,
                **result["metrics"],
                "error": result.get("error", ""),
            }
        )
    frame = pd.DataFrame(lines)
    if sweep.metric not in frame:
        frame[sweep.metric] = float("nan")
    # Runs that ended well come before the others, whatever those had measured.
    order = frame.assign(_ok=frame["status"] == "ok").sort_values(
        ["_ok", sweep.metric], ascending=[False, sweep.goal == "min"], kind="stable"
    )
    front = ["point", "status", "seconds", *sweep.fields, sweep.metric]
    rest = [name for name in frame.columns if name not in front and name != "error"]
    return order[[*front, *rest, "error"]].reset_index(drop=True)


def best_point(frame: pd.DataFrame) -> str | None:
    """Id of the best run that ended well; None when there is none."""
    ok = frame[frame["status"] == "ok"]
    return None if ok.empty else str(ok.iloc[0]["point"])


def plot(frame: pd.DataFrame, sweep: Sweep) -> Any:
    """Draws the metric against every swept field, one panel each; the best run is marked. Returns the figure."""
    from matplotlib.figure import Figure

    ok = frame[frame["status"] == "ok"]
    fields = sweep.fields
    columns = min(3, len(fields))
    rows = -(-len(fields) // columns)
    figure = Figure(figsize=(4 * columns, 3.2 * rows), layout="constrained")
    for i, name in enumerate(fields):
        axes = figure.add_subplot(rows, columns, i + 1)
        values = ok[name]
        numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
        axes.scatter(values if numeric else values.astype(str), ok[sweep.metric], s=18)
        if not ok.empty:
            first = ok.iloc[0]
            axes.scatter(
                [first[name] if numeric else str(first[name])],
                [first[sweep.metric]],
                s=90,
                facecolors="none",
                edgecolors="C3",
            )
        if numeric and len(values) and values.min() > 0 and values.max() / values.min() > 50:
            axes.set_xscale("log")
        axes.set_xlabel(name)
        axes.set_ylabel(sweep.metric)
        axes.grid(alpha=0.3)
    return figure
