"""From predictions to the `metrics.json` summary: every block judged by every protocol that its questions belong to."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fi_jax.errors import UserError
from fi_jax.evaluation.columns import Block, gather
from fi_jax.evaluation.predictions import Answer, Prediction
from fi_jax.evaluation.protocols import choice, numbers, years
from fi_jax.evaluation.results import VERSION
from fi_jax.evaluation.rules import judge_rules
from fi_jax.labels.schema import find_vocabulary, read_schema

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
    block: Block,
    baselines: Mapping[str, Answer],
    resamples: int,
    estimator: years.Estimator,
    consistent: bool = True,
) -> dict:
    """Returns one entry of the summary: what one source answered about one data set in one setting."""
    tasks = choice.judge(block, baselines, resamples)
    tasks |= years.judge(block, baselines, resamples, estimator) | numbers.judge(block, tasks, resamples)
    return {
        "dataset": block.dataset,
        "source": block.source,
        "setting": block.setting,
        "split": block.split,
        "faces": len(block.images),
        "tasks": tasks,
        "rules": judge_rules(block, baselines, resamples, consistent),
    }


def summarise(
    predictions: Iterable[Prediction],
    baselines: Baselines | None = None,
    *,
    estimator: years.Estimator = "expected",
    resamples: int = 1000,
    meta: Mapping[str, Any] | None = None,
    consistent: bool = True,
    tables: Iterable[str] = (),
) -> dict:
    """Judges a stream of predictions. The result is plain JSON and is what `metrics.json` holds.

    Args:
      predictions: lines of any number of data sets, sources and settings.
      baselines: the train splits' majorities (`train_baseline`); without them a baseline is the evaluated faces' own
        majority, and each entry says which it is.
      estimator: how years are read for the headline; chosen on validation faces when a model is packed.
      resamples: bootstrap samples of the faces behind each 95 % interval.
      meta: whatever else the file should carry: config, command, checkpoint.
      tables: schemas (YAML) of tables of one's own among the data sets; their rules are judged too.
      consistent: whether to find what consistent decoding costs (an integer program a face that breaks a rule).

    Raises:
      UserError: no predictions at all, or inconsistent ones (see `columns.gather`).
    """
    own = {
        schema.name: find_vocabulary(f"all+{schema.name}", (text,)) for text in tables for schema in [read_schema(text)]
    }
    blocks = [replace(block, vocabulary=own.get(block.dataset)) for block in gather(predictions)]
    if not blocks:
        raise UserError("there are no predictions to summarise; evaluate at least one face")
    baselines = baselines or {}
    return {
        "version": VERSION,
        "interval": {"level": 0.95, "resamples": resamples, "seed": 0, "unit": "face"},
        "entries": [judge_block(b, baselines.get(b.dataset, {}), resamples, estimator, consistent) for b in blocks],
        "meta": dict(meta or {}),
    }
