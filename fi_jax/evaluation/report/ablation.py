"""Several evaluations in one table: what was changed in each config, and what that did to every headline metric."""

from collections.abc import Mapping, Sequence

from fi_jax.evaluation import tables
from fi_jax.evaluation.report.gather import Evaluation
from fi_jax.evaluation.report.rows import cells_by_place, metric_line, signed

# Parts of a config that say where and how long, not what was trained.
_NOT_COMPARED = ("name", "data.sources.", "data.mask_cache", "data.cache_in_memory", "train.log_every")
MOST_CHANGES = 6


def flat(config: Mapping, prefix: str = "") -> dict[str, object]:
    """Returns a nested config as {dotted name: value}; a list is one value unless it holds mappings."""
    found: dict[str, object] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            for i, item in enumerate(value):
                found |= flat(item, f"{prefix}{name}.{i}.")
        else:
            found[prefix + name] = value
    return found


def changes(first: Mapping | None, other: Mapping | None) -> list[str]:
    """Returns how a config differs from the first, field by field: "knowledge.enabled: true → false"."""
    if not first or not other:
        return []
    before, after = flat(first), flat(other)
    names = [n for n in dict.fromkeys([*before, *after]) if before.get(n) != after.get(n)]
    return [
        f"{n}: {_text(before.get(n))} → {_text(after.get(n))}"
        for n in names
        if not any(n == skipped or (skipped.endswith(".") and n.startswith(skipped)) for skipped in _NOT_COMPARED)
    ]


def _text(value) -> str:
    if value is None:
        return "unset"
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def ablation_table(evaluations: Sequence[Evaluation]) -> dict:
    """One row a headline metric, one column an evaluation; every column after the first says its difference to it.

    The notes say how each evaluation's config differs from the first one's.
    """
    first, *others = (e.name for e in evaluations)
    lines = []
    for place, found in cells_by_place(evaluations, headlines_only=True).items():
        metric = place.metric
        base = found.get(first)
        texts = [tables.format_value(metric, base.value if base else None)]
        for name in others:
            cell = found.get(name)
            text = tables.format_value(metric, cell.value if cell else None)
            if cell and base:
                text += f" ({signed(metric, cell.value - base.value)})"
            texts.append(text)
        lines.append(metric_line(place._replace(headline=False), texts))
    notes = [f"Headline metrics in percent unless said otherwise; in brackets the difference to {first}."]
    for evaluation in evaluations[1:]:
        changed = changes(evaluations[0].summary["meta"].get("config"), evaluation.summary["meta"].get("config"))
        more = f"; and {len(changed) - MOST_CHANGES} more fields" if len(changed) > MOST_CHANGES else ""
        said = "; ".join(changed[:MOST_CHANGES]) + more if changed else "no field of the config differs"
        notes.append(f"{evaluation.name} against {first}: {said}.")
    return {
        "name": f"Ablation, against {first}",
        "header": ["data set", "task", "metric", "who", first, *others],
        "rows": lines,
        "notes": notes,
    }
