"""Reads what a report is made of: summaries, the worst mistakes, where two models differ, training logs."""

import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fi_jax.errors import UserError
from fi_jax.evaluation.figures.compare import is_right
from fi_jax.evaluation.predictions import Prediction, option_of, read_predictions, years_of
from fi_jax.evaluation.results import read_summary
from fi_jax.evaluation.run_log import read_run_config, read_run_log
from fi_jax.evaluation.summarise import summarise


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: its summary, its worst mistakes, and the answers that its broken rules are about."""

    name: str
    folder: Path
    summary: dict
    # The worst mistakes of each (dataset, task, source, seen), worst first.
    mistakes: dict[tuple, list[Prediction]]
    # (dataset, source, seen, image) of the summary's rule-breaking examples -> where the picture lies, groups.
    faces: dict[tuple, Prediction]


@dataclass(frozen=True)
class Run:
    """One training run: its config and what it logged."""

    name: str
    folder: Path
    config: dict | None
    records: list[dict]
    # Labels and Ĉ of the model that the run ended with, where it did.
    graph: tuple[list[str], np.ndarray] | None = None


@dataclass
class Flips:
    """How two evaluations differ on the same questions: what the second corrects (`mended`), what it breaks."""

    both_right: int = 0
    both_wrong: int = 0
    mended: int = 0
    broken: int = 0
    # Pairs of predictions, the ones the two models were surest of first.
    examples: list[tuple[Prediction, Prediction]] = field(default_factory=list)

    @property
    def p_value(self) -> float:
        """Two-sided exact McNemar test: how likely so uneven a split of the flips is by chance."""
        from scipy.stats import binomtest

        flips = self.mended + self.broken
        return float(binomtest(self.mended, flips).pvalue) if flips else 1.0


class _Largest:
    """Keeps the `most` items of largest score in each of several groups; the earlier of equals wins."""

    def __init__(self, most: int):
        self.most, self.count = most, 0
        self.heaps: dict[tuple, list[tuple]] = {}

    def add(self, group: tuple, score: float, item) -> None:
        self.count += 1
        heap = self.heaps.setdefault(group, [])
        push = heapq.heappush if len(heap) < self.most else heapq.heappushpop
        push(heap, (score, -self.count, item))

    def items(self) -> dict[tuple, list]:
        """Returns each group's items, largest score first."""
        return {group: [item for *_, item in sorted(heap, reverse=True)] for group, heap in self.heaps.items()}


def badness(prediction: Prediction) -> float | None:
    """How bad a wrong answer is: years off, or how much likelier than the truth it was held; None if not wrong."""
    if prediction.label is None or prediction.answer == prediction.label:
        return None
    if prediction.task == "age_years":
        return None if prediction.answer is None else abs(years_of(prediction.answer) - years_of(prediction.label))
    probabilities = prediction.probabilities
    held = probabilities.get(option_of(prediction.answer), 1.0) if prediction.answer is not None else 0.0
    return held - probabilities.get(option_of(prediction.label), 0.0)


def worst_mistakes(predictions: Iterable[Prediction], most: int) -> dict[tuple, list[Prediction]]:
    """Returns the `most` worst mistakes of each data set, task, source and setting, worst first."""
    worst = _Largest(most)
    for p in predictions:
        bad = badness(p)
        if bad is not None:
            worst.add((p.dataset, p.task, p.source, p.seen), bad, p)
    return worst.items()


def read_evaluation(folder: Path, name: str, most: int) -> Evaluation:
    """Reads `metrics.json` (or makes it, where only predictions are there) and `predictions.jsonl` of a folder."""
    if (folder / "metrics.json").is_file():
        summary = read_summary(folder)
    else:
        summary = summarise(read_predictions(folder))
    wanted = {
        (e["dataset"], e["source"], e["setting"] == "fine-tuned", example["image"])
        for e in summary["entries"]
        for example in (e["rules"] or {}).get("examples", [])
    }
    faces: dict[tuple, Prediction] = {}

    def watched():
        for p in read_predictions(folder):
            key = (p.dataset, p.source, p.seen, p.image)
            if key in wanted:
                faces.setdefault(key, p)
            yield p

    has_predictions = (folder / "predictions.jsonl").is_file()
    mistakes = worst_mistakes(watched(), most) if has_predictions else {}
    return Evaluation(name, folder, summary, mistakes, faces)


def read_inputs(folders: Iterable[Path], most: int = 24) -> tuple[list[Evaluation], list[Run]]:
    """Finds evaluations and runs in folders: each is an evaluation, a run, or holds evaluations one level down.

    Raises:
      UserError: a folder holds neither `predictions.jsonl`, `metrics.json` nor `metrics.jsonl`.
    """
    evaluations: list[Evaluation] = []
    runs: list[Run] = []
    names: Counter[str] = Counter()
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder; give a run folder or the --out of 'fi-jax evaluate'")
        name = folder.resolve().name
        names[name] += 1
        name += f" ({names[name]})" if names[name] > 1 else ""
        found = len(evaluations) + len(runs)
        if (folder / "metrics.jsonl").is_file():
            runs.append(Run(name, folder, read_run_config(folder), read_run_log(folder)))
        for place in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())):
            if (place / "metrics.json").is_file() or (place / "predictions.jsonl").is_file():
                evaluations.append(read_evaluation(place, name if place == folder else f"{name}/{place.name}", most))
        if found == len(evaluations) + len(runs):
            raise UserError(f"{folder} holds neither predictions.jsonl, metrics.json nor metrics.jsonl")
    return evaluations, runs


def compare(
    first: Iterable[Prediction], second: Iterable[Prediction], most: int = 24
) -> dict[tuple[str, str, str, bool], Flips]:
    """Pairs two evaluations' answers by data set, source, picture and question.

    Returns the flips of each (dataset, task, source, seen), `seen` being the second's. Ages in years count as right
    within the true age group.
    """
    kept = {(p.dataset, p.source, p.image, p.question, p.seen): p for p in first if p.label is not None}
    found: dict[tuple[str, str, str, bool], Flips] = {}
    surest = _Largest(most)
    for after in second:
        asked = (after.dataset, after.source, after.image, after.question)
        # One model may be fine-tuned on a set on which the other is training-free.
        before = kept.get((*asked, after.seen)) or kept.get((*asked, not after.seen))
        if before is None or after.label is None:
            continue
        place = (after.dataset, after.task, after.source, after.seen)
        flips = found.setdefault(place, Flips())
        was, now = is_right(before), is_right(after)
        if was == now:
            flips.both_right += bool(was)
            flips.both_wrong += not was
        else:
            flips.mended += bool(now)
            flips.broken += bool(was)
            surest.add(place, _sureness(before) + _sureness(after), (before, after))
    for place, examples in surest.items().items():
        found[place].examples = examples
    return found


def faces_that_differ(first: Path, second: Path, most: int = 2) -> list[tuple[list[Prediction], list[Prediction]]]:
    """Returns both models' answers about the faces on which they differ most, `most` faces a data set.

    Two models differ on a question when one is right and the other wrong. Each pair is about one face, by one source.
    """
    before = {(p.dataset, p.source, p.image, p.question): is_right(p) for p in read_predictions(first)}
    differ: Counter[tuple[str, str, str]] = Counter()
    for p in read_predictions(second):
        was, now = before.get((p.dataset, p.source, p.image, p.question)), is_right(p)
        differ[p.dataset, p.source, p.image] += was is not None and now is not None and was != now
    chosen: list[tuple[str, str, str]] = []
    for face, count in differ.most_common():
        # One source a face is enough: the same face by head and LLM reads twice.
        taken = [image for dataset, _, image in chosen if dataset == face[0]]
        if count and len(taken) < most and face[2] not in taken:
            chosen.append(face)
    # A set in both settings: the first line about a question is shown.
    pairs: dict[tuple, tuple[dict, dict]] = {face: ({}, {}) for face in chosen}
    for which, folder in enumerate((first, second)):
        for p in read_predictions(folder):
            face = (p.dataset, p.source, p.image)
            if face in pairs:
                pairs[face][which].setdefault(p.question, p)
    return [(list(a.values()), list(b.values())) for a, b in pairs.values()]


def _sureness(p: Prediction) -> float:
    return p.probabilities.get(p.answer, 0.0) if isinstance(p.answer, str) else 0.0
