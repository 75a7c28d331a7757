"""The report's tables over several evaluations: side by side, against the first, and where two differ."""

from collections.abc import Iterator, Mapping, Sequence

from fi_jax.data.datasets import dataset_title
from fi_jax.evaluation.differences import Difference
from fi_jax.evaluation.report.gather import Evaluation, Flips
from fi_jax.evaluation.results import Cell, cells_of
from fi_jax.evaluation.results_tables import faces_of
from fi_jax.evaluation.table import Table
from fi_jax.evaluation.titles import (
    SOURCE_TITLES,
    format_difference,
    format_interval,
    format_value,
    metric_title,
    setting_of,
    task_title,
    who,
)

# Parts of a config that say where and how long, not what was trained.
_NOT_COMPARED = ("name", "data.sources.", "data.mask_cache", "data.cache_in_memory", "train.log_every")
MOST_CHANGES = 6


def _cells_by_place(
    evaluations: Sequence[Evaluation], headlines_only: bool = False
) -> Iterator[tuple[Cell, list[Cell | None]]]:
    """Yields, for every metric that some evaluation has, its first cell and the cell of each evaluation."""
    places: dict[tuple, dict[str, Cell]] = {}
    for evaluation in evaluations:
        for cell in cells_of(evaluation.summary, headlines_only):
            place = (cell.dataset, cell.task, cell.metric, cell.headline, cell.setting, cell.source)
            places.setdefault(place, {})[evaluation.name] = cell
    for found in places.values():
        yield next(iter(found.values())), [found.get(e.name) for e in evaluations]


def _comparison(name: str, columns: Sequence[str], rows: Sequence[tuple[Cell, str, list]], notes, bold: bool) -> Table:
    """A table whose rows start with what they are about and who answered."""
    return Table(
        ["data set", "task", "metric", "who", "faces", *columns],
        [
            [dataset_title(c.dataset), task_title(c.task), metric_title(c.metric), who(c.source, c.setting), n, *texts]
            for c, n, texts in rows
        ],
        notes,
        name,
        bold={i for i, (cell, *_) in enumerate(rows) if bold and cell.headline},
        tags=[{"dataset": cell.dataset, "task": cell.task} for cell, *_ in rows],
    )


def comparison_table(evaluations: Sequence[Evaluation]) -> Table:
    """One row a metric, setting and source; one column an evaluation; of two, their difference too."""
    columns = [e.name for e in evaluations] + (["difference"] if len(evaluations) == 2 else [])
    rows: list[tuple[Cell, str, list]] = []
    for first, cells in _cells_by_place(evaluations):
        metric = first.metric
        texts = [format_interval(metric, c.value, c.low, c.high) if c else None for c in cells]
        if len(cells) == 2:
            before, after = cells
            texts.append(format_difference(metric, after.value - before.value) if before and after else None)
        rows.append((first, faces_of(cells), texts))
    return _comparison("Comparison", columns, rows, ["Percent unless said otherwise."], bold=True)


def ablation_table(evaluations: Sequence[Evaluation]) -> Table:
    """One row a headline metric, one column an evaluation; every column after the first says its difference to it.

    The notes say how each evaluation's config differs from the first one's.
    """
    name = evaluations[0].name
    rows: list[tuple[Cell, str, list]] = []
    for first, cells in _cells_by_place(evaluations, headlines_only=True):
        base, *others = cells
        texts = [format_value(first.metric, base.value if base else None)]
        for cell in others:
            text = format_value(first.metric, cell.value if cell else None)
            if cell and base:
                text += f" ({format_difference(first.metric, cell.value - base.value)})"
            texts.append(text)
        rows.append((first, faces_of(cells), texts))
    notes = [f"Headline metrics in percent unless said otherwise; in brackets the difference to {name}."]
    configs = [e.summary["meta"].get("config") for e in evaluations]
    for evaluation, config in zip(evaluations[1:], configs[1:], strict=True):
        changed = changes(configs[0], config)
        more = f"; and {len(changed) - MOST_CHANGES} more fields" if len(changed) > MOST_CHANGES else ""
        listed = "; ".join(changed[:MOST_CHANGES]) + more if changed else "no field of the config differs"
        notes.append(f"{evaluation.name} against {name}: {listed}.")
    return _comparison(f"Ablation, against {name}", [e.name for e in evaluations], rows, notes, bold=False)


def difference_table(found: Sequence[Difference], names: tuple[str, str]) -> Table:
    """Both models' metrics on the faces that both answered about, and the interval of their difference."""
    rows = []
    for one in found:
        said = [format_value(one.metric, value) for value in (one.first, one.second)]
        between = " to ".join(format_difference(one.metric, edge) for edge in (one.low, one.high))
        difference = format_difference(one.metric, one.second - one.first)
        about = [dataset_title(one.dataset), task_title(one.task), metric_title(one.metric), SOURCE_TITLES[one.source]]
        rows.append([*about, f"{one.faces:,} of {one.people:,}", *said, f"{difference} ({between})"])
    header = ["data set", "task", "metric", "who", "faces of people", *names, "difference (95 %)"]
    notes = [
        "Paired bootstrap over people, the same draws for both: an interval without 0 is no accident of the faces."
    ]
    tags = [{"dataset": one.dataset, "task": one.task} for one in found]
    return Table(header, rows, notes, "Differences", tags=tags)


def flip_table(flips: Mapping[tuple, Flips], names: tuple[str, str]) -> Table:
    """How many answers the second model corrects and breaks, with an exact McNemar test."""
    rows = []
    for (dataset, task, source, seen), f in flips.items():
        counts = [f"{count:,}" for count in (f.both_right, f.mended, f.broken, f.both_wrong)]
        p = f"{f.p_value:.3f}" if f.p_value >= 0.001 else "< 0.001"
        rows.append([dataset_title(dataset), task_title(task), who(source, setting_of(seen)), *counts, p])
    header = ["data set", "task", "who", "both right", f"{names[1]} mends", f"{names[1]} breaks", "both wrong"]
    notes = [
        "Exact McNemar test over answers; answers about one face are not independent, so for attributes p is too small.",
        "An age in years counts as right when it falls into the true age group.",
    ]
    tags = [{"dataset": dataset, "task": task} for dataset, task, *_ in flips]
    return Table([*header, "p (McNemar)"], rows, notes, "Where they differ", tags=tags)


def flat(config: Mapping, prefix: str = "") -> dict[str, object]:
    """Returns a nested config as {dotted name: value}; a list is one value unless it holds mappings."""
    found: dict[str, object] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            found |= flat({str(i): item for i, item in enumerate(value)}, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def changes(first: Mapping | None, other: Mapping | None) -> list[str]:
    """Returns how a config differs from the first, field by field: "knowledge.enabled: true → false"."""
    if not first or not other:
        return []
    before, after = flat(first), flat(other)
    return [
        f"{name}: {_text(before.get(name))} → {_text(after.get(name))}"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
        and not any(
            name == skipped or (skipped.endswith(".") and name.startswith(skipped)) for skipped in _NOT_COMPARED
        )
    ]


def _text(value) -> str:
    if value is None:
        return "unset"
    return str(value).lower() if isinstance(value, bool) else str(value)
