"""Does knowledge help where labels are few, wrong, or not there? Heads over features that no label has shaped.

A cell is a condition (how many faces are labelled, what share of their labels is flipped, which labels no face has), a
variant and a seed. The seed draws the labelled faces too. Labels are judged one by one; every cell's scores of the judged
faces are written before anything is measured.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from fi_jax.config import Experiment, KnowledgeConfig, LossConfig, VitConfig
from fi_jax.data.counts import annotation_records, count_records
from fi_jax.data.datasets import find_dataset
from fi_jax.data.records import label_arrays
from fi_jax.errors import UserError
from fi_jax.evaluation.metrics import average_precision, interval
from fi_jax.evaluation.table import Table as ResultsTable
from fi_jax.experiments.descriptors import face_descriptors, main_directions
from fi_jax.experiments.frozen import Features, fresh_head, label_scores, train_on_features
from fi_jax.experiments.points import apply
from fi_jax.experiments.runners import groups
from fi_jax.experiments.variants import Condition, Table
from fi_jax.files import atomic_path, sha256, write_text
from fi_jax.knowledge.correlation import Counts
from fi_jax.training.constants import make_constants

log = logging.getLogger(__name__)

# Directions of the descriptors that the heads see.
FEATURES = 256
RAREST = 10
_RESAMPLES = 400


class Faces(NamedTuple):
    """Features, labels and people of some faces; every label of the vocabulary is known of each."""

    features: Float[np.ndarray, "f d"]
    labels: Float[np.ndarray, "f n"]
    people: Int[np.ndarray, "f"]


@dataclass(frozen=True)
class Cell:
    """One head that is trained and judged."""

    condition: Condition
    variant: str
    seed: int

    @property
    def name(self) -> str:
        """Names the file of its scores."""
        return f"{self.variant}-{self.condition.name}-seed{self.seed}"


def read_faces(dataset: str, root: Path, cache: Path, split: str) -> tuple[Faces, Faces]:
    """Returns the faces to train on and those of `split`, to judge by.

    Raises:
      UserError: the release is not there, has no such faces, or does not tell its people apart.
    """
    source, vocabulary = find_dataset(dataset).open(root), find_dataset(dataset).vocabulary
    parts = [source.records("train"), source.records(split)]
    if not all(parts):
        raise UserError(f"{dataset} at '{root}' has no faces in split '{split if parts[0] else 'train'}'")
    described = [face_descriptors(records, cache) for records in parts]
    directions = main_directions(described[0], FEATURES)
    made = []
    for records, features in zip(parts, described, strict=True):
        labels, known = label_arrays(records, vocabulary)
        if not known.all() or any(record.identity is None for record in records):
            raise UserError(f"{dataset}: few-label tables need every label and the person of every face")
        people = np.unique([record.identity for record in records], return_inverse=True)[1]
        made.append(Faces(directions.of(features), labels, people))
    return made[0], made[1]


def base_config(dataset: str, prompt_size: int) -> Experiment:
    """The head and graph that all variants change: stage `align` over features, in float32."""
    return apply(
        Experiment(
            model=replace(
                Experiment().model,
                image_encoder=VitConfig(hidden_size=FEATURES, num_heads=4),
                use_segmentation=False,
                knowledge=KnowledgeConfig(hidden_size=128, align_size=128, prompt_size=prompt_size),
                dtype="float32",
                remat="none",
            ),
            loss=LossConfig(head_logic=0.0),
        ),
        {
            "data.vocabulary": find_dataset(dataset).vocabulary.name,
            "data.batch_size": 64,
            "train.stage": "align",
            "train.steps": 200,
            "train.learning_rate": 1e-3,
            "train.warmup_steps": 20,
            "train.weight_decay": 0.05,
            "train.frozen_dtype": "float32",
            "train.log_every": 100,
        },
    )


def labelled_faces(faces: Faces, condition: Condition, seed: int) -> Features:
    """Draws the faces that are labelled, and flips a share of their labels."""
    rng = np.random.default_rng((seed, condition.labelled))
    count = min(condition.labelled or len(faces.labels), len(faces.labels))
    rows = rng.permutation(len(faces.labels))[:count]
    labels = faces.labels[rows]
    wrong = rng.random(labels.shape) < condition.flipped
    labels = np.where(wrong, 1 - labels, labels).astype(np.float32)
    return Features(faces.features[rows], None, labels, np.ones(labels.shape, bool))


def left_out(condition: Condition, labels: int, seed: int) -> list[Bool[np.ndarray, "n"]]:
    """Which labels no face has, in each training of a cell: a fold of them in turn; none, once, where none is left out."""
    if not condition.folds:
        return [np.zeros(labels, bool)]
    fold = np.random.default_rng(seed).permutation(labels) % condition.folds
    return [fold == i for i in range(condition.folds)]


def run_table(
    table: Table,
    dataset: str,
    root: Path,
    out: Path,
    prompts: Mapping[str, np.ndarray],
    seeds: Sequence[int],
    split: str = "test",
) -> dict[str, Any]:
    """Trains what is missing, writes every cell's scores under `out/scores`, and returns the table.

    Args:
      prompts: T_p^0 by label, of any text encoder.
      split: faces to judge by.
    """
    train, judged = read_faces(dataset, root, out / "features", split)
    vocabulary = find_dataset(dataset).vocabulary
    t0 = np.stack([prompts[name] for name in vocabulary.names])
    counts = count_records(annotation_records(dataset, root), vocabulary)
    base = base_config(dataset, t0.shape[1])
    cells = [Cell(c, v.name, s) for c in table.conditions for v in table.variants for s in seeds]
    # Scores belong to what they were made of: another model's prompts, or a corrected release, make them anew.
    digest = hashlib.sha256()
    for part in (*train, *judged, *counts, t0):
        digest.update(part.tobytes())
    keys = {cell: f"{cell.name}-{_key(cell, table, base, digest.hexdigest())}" for cell in cells}
    for condition in table.conditions:
        for seed in seeds:
            left = [
                c for c in cells if c.condition == condition and c.seed == seed and not _file(out, keys[c]).is_file()
            ]
            for group in groups([(cell, _config(cell, table, base)) for cell in left]):
                log.info(f"training {', '.join(cell.name for cell, _ in group)}")
                for (cell, _), of_cell in zip(group, _train(group, train, judged, counts, t0), strict=True):
                    with atomic_path(_file(out, keys[cell])) as temporary, temporary.open("wb") as opened:
                        np.save(opened, of_cell.astype(np.float32))
    scores = {cell: np.load(_file(out, keys[cell])) for cell in cells}
    result = measure(table, scores, judged, seeds, vocabulary.names)
    result |= {"dataset": dataset, "split": split, "trained_on": len(train.labels), "judged": len(judged.labels)}
    write_text(out / "few_labels.json", json.dumps(result, indent=1) + "\n")
    return result


def _file(out: Path, key: str) -> Path:
    return out / "scores" / f"{key}.npy"


def _key(cell: Cell, table: Table, base: Experiment, given: str) -> str:
    return sha256(repr((_config(cell, table, base), cell.condition, given)))[:10]


def _config(cell: Cell, table: Table, base: Experiment) -> Experiment:
    fields = next(dict(variant.fields) for variant in table.variants if variant.name == cell.variant)
    return apply(base, {**fields, "train.seed": cell.seed, "data.seed": cell.seed})


def _train(
    group: Sequence[tuple[Cell, Experiment]], train: Faces, judged: Faces, counts: Counts, prompts: np.ndarray
) -> list[Float[np.ndarray, "f n"]]:
    cell = group[0][0]
    labelled = labelled_faces(train, cell.condition, cell.seed)
    epoch = np.arange(len(labelled.labels))
    configs = [config for _, config in group]
    constants = [make_constants(config, prompts, lambda: counts) for config in configs]
    others = Features(judged.features, None, judged.labels, np.ones(judged.labels.shape, bool))
    scores = [np.zeros(judged.labels.shape, np.float32) for _ in group]
    for unknown in left_out(cell.condition, labelled.labels.shape[1], cell.seed):
        features = labelled._replace(known=labelled.known & ~unknown)
        trained = train_on_features(configs, [fresh_head(config) for config in configs], constants, features, epoch)
        # A label is judged by the head that never saw it.
        columns = unknown if unknown.any() else slice(None)
        for of_member, one in zip(scores, trained, strict=True):
            of_member[:, columns] = label_scores(one, others)[:, columns]
    return scores


def measure(
    table: Table,
    scores: Mapping[Cell, Float[np.ndarray, "f n"]],
    judged: Faces,
    seeds: Sequence[int],
    names: Sequence[str],
) -> dict[str, Any]:
    """Mean over seeds of mAP, of mAP of the rarest labels, and of balanced accuracy, of every condition and variant.

    Each stands with its difference to the first variant and that difference's 95 % interval: the same people are drawn
    again for both, with all their faces (paired bootstrap; seeds are averaged within a draw).
    """
    truth = judged.labels >= 0.5
    rare = np.argsort(truth.mean(0), kind="stable")[:RAREST]
    draws = _draws(judged.people, _RESAMPLES)
    rows = []
    for condition in table.conditions:
        found = {}
        for variant in table.variants:
            each = [judge(scores[Cell(condition, variant.name, seed)], truth, rare, draws) for seed in seeds]
            found[variant.name] = np.mean(each, 0)
        first = found[table.variants[0].name]
        for variant in table.variants:
            row: dict[str, Any] = {
                "labelled": condition.labelled,
                "flipped": condition.flipped,
                "variant": variant.name,
            }
            for at, metric in enumerate(("map", "map_rarest", "balanced_accuracy")):
                values, differences = found[variant.name][at], found[variant.name][at] - first[at]
                # The first draw is the faces as they are.
                row[metric] = round(100 * float(values[0]), 2)
                low, high = interval(differences[1:])
                row[f"{metric}_gain"] = [round(100 * float(d), 2) for d in (differences[0], low, high)]
            rows.append(row)
    return {"rows": rows, "seeds": list(seeds), "rarest": [names[i] for i in rare]}


def as_table(result: Mapping[str, Any], table: Table) -> ResultsTable:
    """The result as people read it, the gain over the first variant and its interval in brackets."""
    titles = {variant.name: variant.title for variant in table.variants}
    rows = []
    for row in result["rows"]:
        cells = [str(row["labelled"] or result["trained_on"]), f"{100 * row['flipped']:.0f} %", titles[row["variant"]]]
        for metric in ("map", "map_rarest", "balanced_accuracy"):
            gain, low, high = row[f"{metric}_gain"]
            against = "" if row["variant"] == table.variants[0].name else f" ({gain:+.1f}: {low:+.1f} to {high:+.1f})"
            cells.append(f"{row[metric]:.1f}{against}")
        rows.append(cells)
    header = ("labelled faces", "labels flipped", "variant", "mAP", "ten rarest, mAP", "balanced accuracy")
    return ResultsTable(header, rows)


def _draws(people: Int[np.ndarray, "f"], count: int) -> Float[np.ndarray, "r f"]:
    """Weights of the faces: first all one, then how often each face's person is drawn with replacement."""
    rng = np.random.default_rng(0)
    total = int(people.max()) + 1
    drawn = rng.multinomial(total, np.full(total, 1 / total), size=count)
    return np.concatenate([np.ones((1, len(people))), drawn[:, people]]).astype(np.float32)


def judge(
    scores: Float[np.ndarray, "f n"],
    truth: Bool[np.ndarray, "f n"],
    rare: Int[np.ndarray, "k"],
    draws: Float[np.ndarray, "r f"],
) -> Float[np.ndarray, "3 r"]:
    """mAP, mAP of the rarest, and mean balanced accuracy at the threshold of one half, of each draw of faces."""
    precision = np.stack([average_precision(scores[:, i], truth[:, i], draws) for i in range(truth.shape[1])])
    yes = (scores > 0).astype(np.float32)
    positive, negative = truth.astype(np.float32), 1 - truth.astype(np.float32)
    hits = draws @ (yes * positive) / np.maximum(draws @ positive, 1)
    rejections = draws @ ((1 - yes) * negative) / np.maximum(draws @ negative, 1)
    return np.stack([precision.mean(0), precision[rare].mean(0), ((hits + rejections) / 2).mean(1)])
