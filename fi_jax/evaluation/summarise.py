"""From predictions to the `metrics.json` summary: every block judged by every protocol that its questions belong to."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fi_jax.errors import UserError
from fi_jax.evaluation.columns import Block, gather
from fi_jax.evaluation.predictions import Answer, Prediction, atomic_text
from fi_jax.evaluation.protocols import age, attributes, expression, gender, race
from fi_jax.evaluation.protocols.scoring import Options
from fi_jax.evaluation.rules import judge_rules

VERSION = 1
# data set -> question -> the train split's commonest answer (`age_years`: its median, in years).
Baselines = Mapping[str, Mapping[str, Answer]]


def train_baseline(truths: Iterable[Mapping[str, Answer]]) -> dict[str, Answer]:
    """Returns the majority answer (median for numbers) of each question, from the train split's true answers.

    Args:
      truths: one mapping a face, `Question.name` → true answer (None, or absent, where unknown).
    """
    seen: dict[str, list] = {}
    for face in truths:
        for name, value in face.items():
            if value is not None:
                seen.setdefault(name, []).append(value)
    found: dict[str, Answer] = {}
    for name, values in seen.items():
        if isinstance(values[0], str):
            found[name] = Counter(values).most_common(1)[0][0]
        else:
            found[name] = float(np.median(values))
    return found


def judge_block(
    block: Block, baselines: Mapping[str, Answer], options: Options, estimator: age.Estimator, consistent: bool = True
) -> dict:
    """Returns one entry of the summary: what one source answered about one data set in one setting."""
    tasks: dict[str, dict] = {}
    for protocol in (attributes, gender, race, expression):
        tasks |= protocol.judge(block, baselines, options)
    tasks |= age.judge(block, baselines, options, estimator)
    return {
        "dataset": block.dataset,
        "source": block.source,
        "setting": block.setting,
        "split": block.split,
        "faces": len(block.images),
        "tasks": tasks,
        "rules": judge_rules(block, baselines, options, consistent),
    }


def summarise(
    predictions: Iterable[Prediction],
    baselines: Baselines | None = None,
    *,
    estimator: age.Estimator = "expected",
    resamples: int = 1000,
    seed: int = 0,
    meta: Mapping[str, Any] | None = None,
    consistent: bool = True,
) -> dict:
    """Judges a stream of predictions. The result is plain JSON and is what `metrics.json` holds.

    Args:
      predictions: lines of any number of data sets, sources and settings.
      baselines: the train splits' majorities (`train_baseline`); without them a baseline is the evaluated faces' own
        majority, and each entry says which it is.
      estimator: how years are read for the headline; choose it on validation faces (`protocols.age.choose_estimator`).
      resamples: bootstrap samples of the faces behind each 95 % interval.
      seed: of the bootstrap.
      meta: whatever else the file should carry: config, command, checkpoint.
      consistent: whether to find what consistent decoding costs (an integer program a face that breaks a rule).

    Raises:
      UserError: no predictions at all, or inconsistent ones (see `columns.gather`).
    """
    blocks = gather(predictions)
    if not blocks:
        raise UserError("there are no predictions to summarise; evaluate at least one face")
    options = Options(resamples, seed)
    baselines = baselines or {}
    return {
        "version": VERSION,
        "interval": {"level": options.level, "resamples": resamples, "seed": seed, "unit": "face"},
        "entries": [judge_block(b, baselines.get(b.dataset, {}), options, estimator, consistent) for b in blocks],
        "meta": dict(meta or {}),
    }


def write_summary(path: Path | str, summary: dict) -> None:
    """Writes `metrics.json` atomically."""
    with atomic_text(path) as file:
        json.dump(summary, file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")


def read_summary(path: Path | str) -> dict:
    """Reads `metrics.json` (or that of a folder); a missing, broken or foreign file is a `UserError`."""
    path = Path(path)
    if path.is_dir():
        path = path / "metrics.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist; make it with 'fi-jax evaluate CONFIG --out DIR'")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error}); evaluate again") from error
    if not isinstance(summary, dict) or summary.get("version") != VERSION or "entries" not in summary:
        raise UserError(f"{path} is no metrics.json of this version; evaluate again")
    return summary
