"""Trains every variant of an ablation with every seed, judges each by the protocols, and keeps what was found.

A point (variant and seed) is a trial of an Optuna study, so an ablation that was stopped goes on, and a longer list of
seeds or variants only adds to it. Variants that differ in numbers train as members of one program.
"""

import contextlib
import hashlib
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from fi_jax.config import Experiment
from fi_jax.data.counts import training_counts
from fi_jax.data.datasets import find_dataset
from fi_jax.data.pipeline import load_mixture
from fi_jax.errors import UserError
from fi_jax.evaluation.answering import closed_lines
from fi_jax.evaluation.cells import Assignment
from fi_jax.evaluation.parts import EvaluationOptions, fill_part, judged_faces, majorities
from fi_jax.evaluation.predictions import Prediction, read_predictions
from fi_jax.evaluation.results import results_of
from fi_jax.evaluation.summarise import summarise
from fi_jax.experiments.candidates import our_candidate
from fi_jax.experiments.frozen import (
    Features,
    Trained,
    face_features,
    fresh_head,
    label_scores,
    train_on_features,
)
from fi_jax.experiments.points import point_id
from fi_jax.experiments.runners import groups
from fi_jax.experiments.store import Store, status_of
from fi_jax.experiments.training import train_run, train_runs
from fi_jax.experiments.variants import Variant
from fi_jax.inference.answerer import head_probabilities
from fi_jax.labels.question_bank import answerable
from fi_jax.labels.schema import find_vocabulary
from fi_jax.parallel.hosts import Hosts, from_first
from fi_jax.training.constants import make_constants
from fi_jax.weights.bundle import TrainedModel

log = logging.getLogger(__name__)

# Seconds between two looks for points that others train.
_POLL = 10.0
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
    options: EvaluationOptions
    # Most members of one program.
    members: int = 16
    # The model whose encoders stay as they are; None trains every point as its config says.
    frozen: TrainedModel | None = None

    def key(self, point: Point) -> str:
        """Names a point by what its result depends on."""
        depends = (self.sets, self.options.split, self.options.limit, self.options.head_only)
        return f"{point.name}-{point_id(point.config, repr(depends), self._weights)}"

    def run_folder(self, point: Point) -> Path:
        """The run folder that training a point leaves."""
        return self.out / "runs" / self.key(point)

    @cached_property
    def _weights(self) -> str:
        digest = hashlib.sha256()
        if self.frozen is not None:
            for path in sorted(self.frozen.leaves):
                digest.update(np.ascontiguousarray(self.frozen.leaves[path]).tobytes())
        return digest.hexdigest()


def points_of(variants: Iterable[tuple[Variant, Experiment]], seeds: Sequence[int]) -> list[Point]:
    """Every variant with every seed; `train.seed` alone changes, so that all points see one stream of faces."""
    if len(set(seeds)) != len(seeds):
        raise UserError(f"--seeds names a seed twice: {' '.join(map(str, seeds))}")
    return [
        Point(variant, seed, replace(config, name=variant.name, train=replace(config.train, seed=seed)))
        for variant, config in variants
        for seed in seeds
    ]


def run_study(study: Study, points: Sequence[Point], hosts: Hosts) -> tuple[list[Result], int]:
    """Runs what is missing; returns the results in the order of the points, and 0 or the status to start again."""
    keys = {point.name: study.key(point) for point in points}
    frozen = None
    with Store(study.out) as store:
        if hosts.is_first:
            fields = {point.name: {**point.variant.fields, "train.seed": point.seed} for point in points}
            store.add({keys[name]: given for name, given in fields.items()})
        left = _left(store, points, keys)
        log.info(f"{len(points)} points, {len(left)} to run; folder {study.out}")
        while chunk := _next_program(study, store, points, keys, hosts):
            log.info(f"training {', '.join(point.name for point in chunk)}")
            trials = [store.points()[keys[point.name]] for point in chunk]
            try:
                if study.frozen is not None:
                    frozen = frozen or _Frozen(study, chunk[0].config)
                    scores, status = frozen.run(chunk), 0
                else:
                    status = _train(study, chunk, hosts)
                    scores = [] if status else [_judge_run(study, point) for point in chunk]
            except BaseException:
                status = 1
                raise
            finally:
                if hosts.is_first and status:
                    for trial in trials:
                        store.give_back(trial)
            if status:
                return [], status
            for trial, point, found in zip(trials, chunk, scores, strict=True):
                # Of a point that another worker took over, its result counts.
                with contextlib.suppress(UpdateFinishedTrialError):
                    if hosts.is_first:
                        store.finish(trial, TrialState.COMPLETE, 0.0, result=_result(point, found))
        found = store.points()
        return [found[keys[point.name]].user_attrs["result"] for point in points], 0


def _left(store: Store, points: Sequence[Point], keys: Mapping[str, str]) -> list[Point]:
    found = store.points()
    return [point for point in points if status_of(found[keys[point.name]]) != "ok"]


def _next_program(
    study: Study, store: Store, points: Sequence[Point], keys: Mapping[str, str], hosts: Hosts
) -> list[Point]:
    """Claims the points of one program, the same ones on every process; waits for those that others train."""
    mine = np.zeros(len(points), bool)
    while hosts.is_first and (left := _left(store, points, keys)):
        store.give_back_lost()
        waiting = [point for point in left if status_of(store.points()[keys[point.name]]) == "waiting"]
        for chunk in programs(waiting, study.members, any_seeds=study.frozen is not None)[:1]:
            claimed = [point.name for point in chunk if store.claim(store.points()[keys[point.name]])]
            mine = np.asarray([point.name in claimed for point in points])
        if mine.any():
            break
        log.info(f"waiting for {', '.join(point.name for point in left)}, which run elsewhere")
        time.sleep(_POLL)
    return [point for point, one in zip(points, from_first(mine, hosts), strict=True) if one]


def programs(points: Sequence[Point], members: int, any_seeds: bool = False) -> list[list[Point]]:
    """Sorts points into programs: members differ in numbers only, and are at most `members`.

    `any_seeds` says that whatever is frozen is given, so that no seed changes it.
    """
    chunks = []
    for group in groups([(point, point.config) for point in points]):
        alike = [point for point, _ in group]
        by_seed = {point.seed: [p for p in alike if p.seed == point.seed] for point in alike}
        for part in [alike] if any_seeds or _shares_seeds(alike[0].config) else by_seed.values():
            chunks += [part[i : i + members] for i in range(0, len(part), members)]
    return chunks


def _shares_seeds(config: Experiment) -> bool:
    """Whether members of other seeds may share a program: nothing that is frozen may be drawn from the seed."""
    prompts = bool(config.train.init_from) or config.weights.text_encoder != "random"
    llm = config.train.stage == "align" or config.weights.llm != "random" or bool(config.weights.llava)
    return prompts and llm


def _train(study: Study, chunk: Sequence[Point], hosts: Hosts) -> int:
    left = [
        (point.config, study.run_folder(point))
        for point in chunk
        if not (study.run_folder(point) / "model" / "weights.safetensors").is_file()
    ]
    if len(left) == 1:
        return train_run(*left[0], hosts)
    if left:
        return train_runs([config for config, _ in left], [folder for _, folder in left], hosts)
    return 0


def _judge_run(study: Study, point: Point) -> dict:
    folder = study.run_folder(point)
    model = our_candidate(str(folder))
    lines: list[Prediction] = []
    baselines = {}
    for dataset, root in study.sets:
        assignment = Assignment(dataset, "fine-tuned", 0)
        part = fill_part(folder / "evaluation", assignment, root, study.options, model.fingerprint, model.load)
        baselines[find_dataset(dataset).name] = part.baseline
        lines += read_predictions(part.path)
    return scores_of(lines, baselines)


class _Frozen:
    """Everything that points over frozen encoders share, made once: features, counts, questions, baselines."""

    def __init__(self, study: Study, config: Experiment):
        self.base = study.frozen
        assert self.base is not None
        vocabulary = find_vocabulary(config.data.vocabulary, config.data.schemas)
        cache = study.out / "features"
        mixture = load_mixture(config.data)
        log.info(f"encoding {len(mixture.records)} faces to train on")
        self.train_features = face_features(self.base, mixture.records, cache, study.options.mask_cache)
        self.epoch = mixture.epoch
        self.counts = training_counts(mixture.records, config.data.counted, vocabulary)
        self.judged: list[tuple[str, list, Features, list]] = []
        self.baselines = {}
        for name, root in study.sets:
            dataset = find_dataset(name)
            source, records = judged_faces(dataset, root, study.options)
            questions = answerable(dataset.questions, vocabulary)
            if not questions:
                raise UserError(f"vocabulary '{vocabulary.name}' knows no answer to any question about {name}")
            log.info(f"encoding {len(records)} faces of {name} to judge by")
            features = face_features(self.base, records, cache, study.options.mask_cache)
            self.judged.append((name, records, features, questions))
            self.baselines[dataset.name] = majorities(source, questions)

    def run(self, chunk: Sequence[Point]) -> list[dict]:
        """Trains a program's members and judges each by its alignment head."""
        assert self.base is not None
        configs = [point.config for point in chunk]
        starts = [fresh_head(config) for config in configs]
        constants = [make_constants(config, self.base.prompts, lambda: self.counts) for config in configs]
        trained = train_on_features(configs, starts, constants, self.train_features, self.epoch)
        return [scores_of(self._answers(one), self.baselines) for one in trained]

    def _answers(self, trained: Trained) -> Iterable[Prediction]:
        vocabulary = find_vocabulary(trained.config.data.vocabulary, trained.config.data.schemas)
        for _, records, features, questions in self.judged:
            answers = head_probabilities(
                label_scores(trained, features), questions, vocabulary, trained.constants.groups
            )
            for record, probabilities in zip(records, answers, strict=True):
                yield from closed_lines(record, questions, probabilities, "head", True, "expected")


def scores_of(lines: Iterable[Prediction], baselines: Mapping) -> dict:
    """Returns each task's headline and the violation rate, by source and data set, of all predictions of one model."""
    summary = summarise(lines, baselines, resamples=1, consistent=False)
    found: dict[str, dict] = {}
    for result in results_of(summary):
        metric = result.values["headline"]
        score = {"metric": metric, "value": result.values["metrics"][metric]["value"]}
        found.setdefault(result.source, {}).setdefault(result.dataset, {})[result.task] = score
    return found


def _result(point: Point, scores: dict) -> Result:
    variant = point.variant
    fields = dict(variant.fields)
    return {"variant": variant.name, "title": variant.title, "fields": fields, "seed": point.seed, "scores": scores}
