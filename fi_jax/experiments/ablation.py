"""Trains every variant of an ablation with every seed, judges each by the protocols, and keeps what was found.

A point (variant and seed) is one small JSON file, so a study that was stopped goes on, and a longer list of seeds or
variants only adds to it. Variants that differ in numbers train as members of one program.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fi_jax.config import Experiment, to_dict
from fi_jax.data.counts import count_records
from fi_jax.data.datasets import find_dataset
from fi_jax.data.pipeline import Mixture, load_mixture
from fi_jax.errors import UserError
from fi_jax.evaluation.answering import closed_lines
from fi_jax.evaluation.cells import Cell
from fi_jax.evaluation.parts import Asked, fill_part, part_path
from fi_jax.evaluation.predictions import Prediction, atomic_text, read_predictions, true_answer
from fi_jax.evaluation.summarise import summarise, train_baseline
from fi_jax.experiments.candidates import our_candidate
from fi_jax.experiments.frozen import Features, Trained, face_features, label_scores, train_on_features
from fi_jax.experiments.together import groups
from fi_jax.experiments.variants import Variant
from fi_jax.inference.answerer import head_probabilities
from fi_jax.labels.registry import vocabulary as find_vocabulary
from fi_jax.parallel.hosts import Hosts
from fi_jax.training.loop import train
from fi_jax.training.members_loop import train_members
from fi_jax.weights.bundle import TrainedModel

Say = Callable[[str], None]
# One point: the scores of one variant and seed, `{source: {dataset: {task: {"metric": …, "value": …}}}}` under "scores".
Result = dict


@dataclass(frozen=True)
class Point:
    """One model to train and judge."""

    variant: Variant
    seed: int
    config: Experiment

    @property
    def name(self) -> str:
        """Names the run's folder."""
        return f"{self.variant.name}-seed{self.seed}"


@dataclass(frozen=True)
class Study:
    """What all points have in common."""

    out: Path
    # Data sets that are trained on and judged, with their folders.
    sets: tuple[tuple[str, str], ...]
    asked: Asked
    # Most members of one program.
    together: int = 16
    # The model whose encoders stay as they are; None trains every point as its config says.
    frozen: TrainedModel | None = None
    # Most training faces a set whose features are kept (0: all).
    train_limit: int = 0

    def file_of(self, point: Point) -> Path:
        """The point's file: its name says what the result depends on."""
        values = to_dict(point.config)
        values.pop("name")
        weights = hashlib.sha256()
        if self.frozen is not None:
            for path in sorted(self.frozen.leaves):
                weights.update(np.ascontiguousarray(self.frozen.leaves[path]).tobytes())
        asked = (self.sets, self.asked.split, self.asked.limit, self.asked.head_only, self.train_limit)
        text = json.dumps([values, repr(asked), weights.hexdigest()], sort_keys=True)
        return self.out / "points" / f"{point.name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}.json"


def points_of(variants: Iterable[tuple[Variant, Experiment]], seeds: Sequence[int]) -> list[Point]:
    """Every variant with every seed; `train.seed` alone changes, so that all points see one stream of faces."""
    if len(set(seeds)) != len(seeds):
        raise UserError(f"--seeds names a seed twice: {' '.join(map(str, seeds))}")
    return [
        Point(variant, seed, replace(config, name=variant.name, train=replace(config.train, seed=seed)))
        for variant, config in variants
        for seed in seeds
    ]


def run_study(study: Study, points: Sequence[Point], hosts: Hosts, say: Say) -> tuple[list[Result], int]:
    """Runs what is missing; returns the results in the order of the points, and 0 or the status to start again."""
    files = {point.name: study.file_of(point) for point in points}
    missing = [point for point in points if not files[point.name].is_file()]
    say(f"{len(points)} points, {len(missing)} to run; folder {study.out}")
    frozen = _Frozen(study, missing[0].config, say) if missing and study.frozen is not None else None
    for chunk in programs(missing, study.together, any_seeds=frozen is not None):
        say(f"training {', '.join(point.name for point in chunk)}")
        if frozen is not None:
            scores = frozen.run(chunk)
        else:
            status = _train(study, chunk, hosts, say)
            if status:
                return [], status
            scores = [_judge_run(study, point) for point in chunk]
        for point, found in zip(chunk, scores, strict=True):
            _keep(files[point.name], point, found)
    return [json.loads(files[point.name].read_text()) for point in points], 0


def programs(points: Sequence[Point], together: int, any_seeds: bool = False) -> list[list[Point]]:
    """Sorts points into programs: members differ in numbers only, and are at most `together`.

    `any_seeds` says that whatever is frozen is given, so that no seed changes it.
    """
    chunks = []
    for group in groups([(point, point.config) for point in points]):
        alike = [point for point, _ in group]
        by_seed = {point.seed: [p for p in alike if p.seed == point.seed] for point in alike}
        for part in [alike] if any_seeds or _shares_seeds(alike[0].config) else by_seed.values():
            chunks += [part[i : i + together] for i in range(0, len(part), together)]
    return chunks


def _shares_seeds(config: Experiment) -> bool:
    """Whether members of other seeds may share a program: nothing that is frozen may be drawn from the seed."""
    prompts = bool(config.train.init_from) or config.weights.text_encoder != "random"
    llm = config.train.stage == "align" or config.weights.llm != "random" or bool(config.weights.llava)
    return prompts and llm


def _train(study: Study, chunk: Sequence[Point], hosts: Hosts, say: Say) -> int:
    folders = [study.out / "runs" / f"{study.file_of(point).stem}" for point in chunk]
    left = [
        (point, folder)
        for point, folder in zip(chunk, folders, strict=True)
        if not (folder / "model" / "weights.safetensors").is_file()
    ]
    if len(left) == 1:
        return train(left[0][0].config, left[0][1], hosts, say)
    if left:
        return train_members([point.config for point, _ in left], [folder for _, folder in left], hosts, say)
    return 0


def _judge_run(study: Study, point: Point) -> dict:
    folder = study.out / "runs" / study.file_of(point).stem
    model = our_candidate(str(folder))
    lines: list[Prediction] = []
    baselines = {}
    for dataset, root in study.sets:
        cell = Cell(dataset, "fine-tuned", 0)
        part = part_path(folder / "evaluation", cell, root, study.asked, model.fingerprint)
        baselines[dataset] = fill_part(part, cell, root, study.asked, model.load)
        lines += read_predictions(part)
    return scores_of(lines, baselines)


class _Frozen:
    """Everything that points over frozen encoders share, made once: features, counts, questions, baselines."""

    def __init__(self, study: Study, config: Experiment, say: Say):
        self.base, self.say = study.frozen, say
        assert self.base is not None
        vocabulary = find_vocabulary(config.data.vocabulary)
        cache = study.out / "features"
        mixture = _limited(load_mixture(config.data), study.train_limit)
        say(f"encoding {len(mixture.records)} faces to train on")
        self.train_features = face_features(self.base, mixture.records, cache, study.asked.mask_cache)
        self.epoch = mixture.epoch
        self.counts = count_records(mixture.records, vocabulary)
        self.judged: list[tuple[str, list, Features, list]] = []
        self.baselines = {}
        for name, root in study.sets:
            dataset = find_dataset(name)
            source = dataset.open(root)
            records = source.records(study.asked.split)
            records = list(records[: study.asked.limit] if study.asked.limit else records)
            if not records:
                raise UserError(f"{name} at '{root}' has no faces in split '{study.asked.split}'")
            asked = [q for q in dataset.questions if all(label is None or label in vocabulary for label in q.labels)]
            if not asked:
                raise UserError(f"vocabulary '{vocabulary.name}' knows no answer to any question about {name}")
            say(f"encoding {len(records)} faces of {name} to judge by")
            features = face_features(self.base, records, cache, study.asked.mask_cache)
            self.judged.append((name, records, features, asked))
            truths = ({q.name: true_answer(q, r.labels, r.age) for q in asked} for r in source.records("train"))
            self.baselines[name] = train_baseline(truths)

    def run(self, chunk: Sequence[Point]) -> list[dict]:
        """Trains a program's members and judges each by its alignment head."""
        assert self.base is not None
        configs = [point.config for point in chunk]
        trained = train_on_features(configs, self.train_features, self.epoch, self.counts, self.base.prompts, self.say)
        return [scores_of(self._answers(one), self.baselines) for one in trained]

    def _answers(self, trained: Trained) -> Iterable[Prediction]:
        vocabulary = find_vocabulary(trained.config.data.vocabulary)
        for _, records, features, asked in self.judged:
            said = head_probabilities(label_scores(trained, features), asked, vocabulary)
            for record, probabilities in zip(records, said, strict=True):
                yield from closed_lines(record, asked, probabilities, "head", True, "expected")


def _limited(mixture: Mixture, limit: int) -> Mixture:
    """The first `limit` faces of each set (0: all), each once an epoch where it is cut."""
    if not limit:
        return mixture
    taken: dict[str, int] = {}
    kept = []
    for record in mixture.records:
        if taken.setdefault(record.dataset, 0) < limit:
            taken[record.dataset] += 1
            kept.append(record)
    return replace(mixture, records=tuple(kept), epoch=np.arange(len(kept)))


def scores_of(lines: Iterable[Prediction], baselines: Mapping) -> dict:
    """Returns each task's headline and the violation rate, by source and data set, of all predictions of one model."""
    summary = summarise(lines, baselines, resamples=1, consistent=False)
    found: dict[str, dict] = {}
    for entry in summary["entries"]:
        results = entry["tasks"] | ({"rules": entry["rules"]} if entry["rules"] else {})
        found.setdefault(entry["source"], {})[entry["dataset"]] = {
            task: {"metric": result["headline"], "value": result["metrics"][result["headline"]]["value"]}
            for task, result in results.items()
        }
    return found


def _keep(path: Path, point: Point, scores: dict) -> None:
    found = {
        "variant": point.variant.name,
        "title": point.variant.title,
        "fields": dict(point.variant.fields),
        "seed": point.seed,
        "scores": scores,
    }
    with atomic_text(path) as file:
        json.dump(found, file, indent=1, ensure_ascii=False)
        file.write("\n")
