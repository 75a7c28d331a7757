"""Builds the report's HTML from evaluations and runs: tables, figures, galleries, configs. Reads no predictions."""

import base64
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fi_jax import __version__
from fi_jax.evaluation import tables
from fi_jax.evaluation.entries import Result, results_of
from fi_jax.evaluation.figures import style
from fi_jax.evaluation.figures.compare import is_right
from fi_jax.evaluation.figures.curves import curves_figure
from fi_jax.evaluation.figures.headings import readable
from fi_jax.evaluation.figures.summary import (
    attributes_figure,
    confusion_figure,
    groups_figure,
    headline_text,
    reliability_figure,
)
from fi_jax.evaluation.predictions import Prediction
from fi_jax.evaluation.report.gather import Evaluation, Flips, Run
from fi_jax.labels.question_bank import question

LARGEST_PAGE = 5_000_000
# Thumbnails and figures stop being added when they fill these shares of the page.
_PICTURE_BYTES = 1_800_000
_FIGURE_BYTES = 2_600_000
_THUMBNAIL = 112

# (picture's key, where it lies) -> JPEG bytes, or None when it cannot be shown.
Thumbnails = Callable[[Prediction], bytes | None]


@dataclass(frozen=True)
class Figure:
    """A picture inside the page, with words for those who do not see it."""

    source: str
    words: str
    dataset: str = ""
    task: str = ""


@dataclass(frozen=True)
class Card:
    """One face with one question in a gallery."""

    image: str
    dataset: str
    task: str
    who: str
    model: str
    question: str
    truth: str
    # (whose, answer, chance in percent or None, right)
    answers: tuple[tuple[str, str, int | None, bool | None], ...]
    groups: tuple[tuple[str, str], ...]
    picture: str | None


class _Budget:
    def __init__(self, most: int):
        self.left = most

    def take(self, size: int) -> bool:
        if size > self.left:
            return False
        self.left -= size
        return True


def thumbnails_from_paths(prediction: Prediction) -> bytes | None:
    """A small JPEG of the picture at the prediction's own `path`, or None when it has none or cannot be read."""
    from PIL import Image, UnidentifiedImageError

    if prediction.path is None or not Path(prediction.path).is_file():
        return None
    try:
        with Image.open(prediction.path) as image:
            image.draft("RGB", (_THUMBNAIL * 2, _THUMBNAIL * 2))
            small = image.convert("RGB")
            small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    except (UnidentifiedImageError, OSError, ValueError):
        return None
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _embed(drawn, words: str, budget: _Budget, dataset: str = "", task: str = "") -> Figure | None:
    # Outlined text: the reader's machine may lack the font, and labels would then overlap.
    svg = style.to_bytes(drawn, "svg", outlined=True)
    source = _data_uri("image/svg+xml", svg)
    if len(source) > 200_000:
        source = _data_uri("image/png", style.to_bytes(drawn, "png"))
    return Figure(source, words, dataset, task) if budget.take(len(source)) else None


def _words(prediction: Prediction, value) -> str:
    if value is None:
        return "could not be read"
    return f"{value:.0f} years" if isinstance(value, int | float) else str(value)


def _question_text(prediction: Prediction) -> str:
    asked = question(prediction.question)
    if asked.is_binary:
        return asked.text
    # The options are in the answers; the text before them is enough.
    return asked.text.split("?")[0] + "?"


def _chance(prediction: Prediction) -> int | None:
    chance = prediction.probabilities.get(prediction.answer) if isinstance(prediction.answer, str) else None
    return None if chance is None else round(100 * chance)


def _groups(prediction: Prediction) -> tuple[tuple[str, str], ...]:
    stated = (("gender", prediction.gender), ("race", prediction.race), ("age", prediction.age_group))
    return tuple((name, value) for name, value in stated if value)


def _who(source: str, seen: bool) -> str:
    return f"{'LLM' if source == 'llm' else 'alignment head'}, {'fine-tuned' if seen else 'training-free'}"


def _picture(prediction: Prediction, thumbnails: Thumbnails | None, budget: _Budget) -> str | None:
    data = thumbnails(prediction) if thumbnails else None
    return _data_uri("image/jpeg", data) if data and budget.take(4 * len(data) // 3) else None


def mistake_cards(evaluation: Evaluation, thumbnails: Thumbnails | None, budget: _Budget) -> list[Card]:
    """One card a mistake, worst first within each data set, task, source and setting."""
    return [
        Card(
            p.image, p.dataset, p.task, _who(p.source, p.seen), evaluation.name, _question_text(p), _words(p, p.label),
            ((evaluation.name, _words(p, p.answer), _chance(p), False),), _groups(p), _picture(p, thumbnails, budget),
        )
        for found in evaluation.mistakes.values()
        for p in found
    ]  # fmt: skip


def flip_cards(
    flips: dict[tuple, Flips], names: tuple[str, str], thumbnails: Thumbnails | None, budget: _Budget
) -> list[Card]:
    """One card a question on which two models differ."""
    cards = []
    for found in flips.values():
        for _, before, after in found.examples:
            answers = tuple(
                (name, _words(p, p.answer), _chance(p), is_right(p)) for name, p in zip(names, (before, after))
            )
            cards.append(
                Card(
                    after.image,
                    after.dataset,
                    after.task,
                    _who(after.source, after.seen),
                    " against ".join(names),
                    _question_text(after),
                    _words(after, after.label),
                    answers,
                    _groups(after),
                    _picture(after, thumbnails, budget),
                )  # fmt: skip
            )
    return cards


def rule_blocks(evaluation: Evaluation, thumbnails: Thumbnails | None, budget: _Budget) -> list[dict]:
    """One block a data set, source and setting: every rule with its rate, and faces that break some."""
    blocks = []
    for entry in evaluation.summary["entries"]:
        rules = entry["rules"]
        if not rules:
            continue
        examples = []
        for example in rules["examples"][:24]:
            face = evaluation.faces.get(
                (entry["dataset"], entry["source"], entry["setting"] == "fine-tuned", example["image"])
            )
            picture = _picture(face, thumbnails, budget) if face else None
            groups = _groups(face) if face else ()
            examples.append(
                {"image": example["image"], "rules": example["rules"], "picture": picture, "groups": groups}
            )
        by_rule = sorted(rules["by_rule"].items(), key=lambda item: -(item[1]["rate"] or 0))
        blocks.append(
            {
                "model": evaluation.name,
                "dataset": entry["dataset"],
                "who": _who(entry["source"], entry["setting"] == "fine-tuned"),
                "headline": headline_text(rules),
                "annotations": rules["annotations"],
                "consistent": rules.get("consistent"),
                "rules": [
                    {"name": name, "why": r["why"], "rate": 100 * (r["rate"] or 0), "faces": r["faces"]}
                    for name, r in by_rule
                ],
                "examples": examples,
            }
        )
    return blocks


def task_figures(evaluation: Evaluation, budget: _Budget) -> list[Figure]:
    """Reliability and groups a task (all sources and settings together), confusion and attributes one by one."""
    by_task: dict[tuple[str, str], list[Result]] = {}
    for result in results_of(evaluation.summary):
        by_task.setdefault((result.dataset, result.task), []).append(result)
    figures: list[Figure | None] = []
    for (dataset, task), results in by_task.items():
        what = results[0].what
        said = "; ".join(f"{r.who}: {headline_text(r.values)}" for r in results)
        place = (budget, dataset, task)
        if any(r.values["groups"] for r in results):
            drawn = groups_figure({r.who: r.values for r in results}, what)
            figures.append(_embed(drawn, f"{what} by group. {said}", *place))
        if any(r.values.get("calibration") for r in results):
            drawn = reliability_figure({r.who: r.values for r in results}, what)
            figures.append(_embed(drawn, f"{what}: reliability diagram. {said}", *place))
        for r in results:
            if r.values.get("confusion"):
                drawn = confusion_figure(r.values, f"{what}: {r.who}, % of truth")
                figures.append(_embed(drawn, f"{what}: confusion matrix of {r.who}. {headline_text(r.values)}", *place))
            if r.values.get("per_attribute"):
                drawn = attributes_figure(r.values, title=f"{what}: {r.who}")
                figures.append(_embed(drawn, f"{what}: accuracy of every attribute, {r.who}", *place))
    return [f for f in figures if f]


def result_table(evaluation: Evaluation) -> dict:
    """The two-setting table as header, rows and footnotes."""
    rows = tables.render(evaluation.summary)
    header, grid = tables.text_grid(rows)
    lines = [
        {"cells": line, "headline": row.headline, "dataset": row.dataset, "task": row.task}
        for line, row in zip(grid, rows, strict=True)
    ]
    return {"name": evaluation.name, "header": header, "rows": lines, "notes": tables.footnotes(rows)}


def comparison_table(evaluations: Sequence[Evaluation]) -> dict:
    """One row a data set, task, metric, setting and source; one column an evaluation; of two, their difference too."""
    cells: dict[tuple, dict[str, tables.Cell]] = {}
    for evaluation in evaluations:
        for row in tables.render(evaluation.summary):
            for place, cell in row.cells.items():
                cells.setdefault((row.dataset, row.task, row.metric, row.headline, *place), {})[evaluation.name] = cell
    names = [e.name for e in evaluations]
    lines = []
    for (dataset, task, metric, headline, setting, source), found in cells.items():
        texts = []
        for name in names:
            cell = found.get(name)
            text = tables.format_value(metric, cell.value if cell else None)
            if cell and cell.low is not None:
                text += f" [{tables.format_value(metric, cell.low)}, {tables.format_value(metric, cell.high)}]"
            texts.append(text)
        if len(names) == 2:
            both = [found.get(n) for n in names]
            texts.append(tables.BLANK if None in both else _signed(metric, both[1].value - both[0].value))
        lines.append(
            {
                "cells": [
                    tables.dataset_title(dataset),
                    tables.task_title(task),
                    tables.metric_title(metric),
                    _who(source, setting == "fine-tuned"),
                    *texts,
                ],
                "headline": headline,
                "dataset": dataset,
                "task": task,
            }  # fmt: skip
        )
    header = ["data set", "task", "metric", "who", *names, *(["difference"] if len(names) == 2 else [])]
    return {"name": "Comparison", "header": header, "rows": lines, "notes": ["Percent unless said otherwise."]}


def _signed(metric: str, difference: float) -> str:
    text = tables.format_value(metric, abs(difference))
    return ("+" if difference >= 0 else "−") + text


def flip_table(flips: dict[tuple, Flips], names: tuple[str, str]) -> dict:
    """How many answers the second model mends and breaks, with an exact McNemar test."""
    lines = []
    for (dataset, task, source, seen), f in flips.items():
        p = f.p_value
        lines.append(
            {
                "cells": [
                    tables.dataset_title(dataset),
                    tables.task_title(task),
                    _who(source, seen),
                    f"{f.both_right:,}",
                    f"{f.mended:,}",
                    f"{f.broken:,}",
                    f"{f.both_wrong:,}",
                    f"{p:.3f}" if p >= 0.001 else "< 0.001",
                ],
                "headline": False,
                "dataset": dataset,
                "task": task,
            }  # fmt: skip
        )
    notes = [
        "Exact McNemar test over answers; answers about one face are not independent, so for attributes p is too small.",
        "An age in years counts as right when it falls into the true age group.",
    ]
    header = [
        "data set",
        "task",
        "who",
        "both right",
        f"{names[1]} mends",
        f"{names[1]} breaks",
        "both wrong",
        "p (McNemar)",
    ]
    return {"name": "Where they differ", "header": header, "rows": lines, "notes": notes}


def build_page(
    evaluations: Sequence[Evaluation],
    runs: Sequence[Run],
    flips: dict[tuple, Flips] | None = None,
    thumbnails: Thumbnails | None = None,
    command: str = "",
) -> str:
    """Returns the report as one HTML document that needs no network.

    Args:
      evaluations: one for a plain report; two or more give a comparison.
      runs: training runs whose curves and configs are shown.
      flips: where two evaluations differ (`gather.compare`).
      thumbnails: how to get pictures; None shows none, which is the default because data sets are research-only.
      command: the command that makes this page again.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    pictures, drawings = _Budget(_PICTURE_BYTES), _Budget(_FIGURE_BYTES)
    names = tuple(e.name for e in evaluations[:2])
    page_tables = [comparison_table(evaluations)] if len(evaluations) > 1 else []
    cards = []
    if flips:
        page_tables.append(flip_table(flips, names))
        cards += [("differ", c) for c in flip_cards(flips, names, thumbnails, pictures)]
    page_tables += [result_table(e) for e in evaluations]
    curves = []
    if runs:
        drawn = curves_figure({r.name: r.records for r in runs})
        curves = [_embed(drawn, f"Training curves of {', '.join(r.name for r in runs)}", drawings)]
    figures = [(e.name, f) for e in evaluations for f in task_figures(e, drawings)]
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
    environment.filters["dataset_title"] = tables.dataset_title
    environment.filters["task_title"] = tables.task_title
    environment.filters["readable"] = readable
    in_page = [(c.dataset, c.task, c.groups) for _, c in cards]
    return environment.get_template("template.html").render(
        title=" against ".join(e.name for e in evaluations) or ", ".join(r.name for r in runs),
        version=__version__,
        tables=page_tables,
        curves=[c for c in curves if c],
        figures=figures,
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
