"""Configs -> everything that their runs need: faces, sequences, model leaves, constants and the first states."""

import logging
import math
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from fi_jax.config import DataConfig, Experiment
from fi_jax.data.counts import training_counts
from fi_jax.data.datasets import find_dataset
from fi_jax.data.pipeline import (
    Batch,
    MakeMaps,
    Mixture,
    mix,
    open_dataset,
    open_sets,
    training_batches,
    validation_faces,
)
from fi_jax.errors import UserError
from fi_jax.faces.map_cache import maps_as_read, with_maps
from fi_jax.knowledge.correlation import shared_places
from fi_jax.knowledge.logic import compile_rules
from fi_jax.labels.question_bank import questions_for
from fi_jax.labels.questions import Question
from fi_jax.labels.rule_tables import rules_for
from fi_jax.labels.schema import find_vocabulary
from fi_jax.labels.vocabulary import Vocabulary
from fi_jax.models import batch as contract
from fi_jax.models.face_insight import Constants
from fi_jax.models.layer_stack import prepare_frozen
from fi_jax.models.precision import quantise_leaf
from fi_jax.parallel.hosts import Hosts, check_same
from fi_jax.parallel.mesh import check_batch, make_mesh, run_on
from fi_jax.parallel.rules import local_rows, place, place_batch, replicated, state_shardings
from fi_jax.prompting.builders import training_builders
from fi_jax.prompting.question_sampling import training_sequences
from fi_jax.training.abstract import split_shapes
from fi_jax.training.constants import carried_on, learnt_from, make_constants
from fi_jax.training.fingerprint import fingerprint
from fi_jax.training.members import shares_encoders
from fi_jax.training.numbers import stacked_numbers
from fi_jax.training.optimizer import cast, make_optimizer, split_params
from fi_jax.training.state import Leaves, TrainState, init_state
from fi_jax.training.step import StepInputs
from fi_jax.training.warm_start import word_connector
from fi_jax.trees import unflatten
from fi_jax.weights.assemble import assemble, init_leaves, label_prompts
from fi_jax.weights.bundle import TrainedModel, load_model
from fi_jax.weights.tokenizers import load_template, load_tokenizer

log = logging.getLogger(__name__)

# Whether an earlier run has trained the knowledge connector shows in this leaf.
_CONNECTOR = "knowledge_connector/fc1/kernel"


@dataclass(frozen=True)
class Setup:
    """What the runs of one program share, and what each starts from. `configs` differ in numbers only."""

    configs: tuple[Experiment, ...]
    mesh: Mesh
    mixture: Mixture
    # The config's data with the folder of the faces' maps.
    data: DataConfig
    # Makes the maps of faces that have none; None where all have one.
    make_maps: MakeMaps | None
    vocabulary: Vocabulary
    # Adds token arrays to a batch; None where the stage needs none.
    transform: Callable[[Batch, int], Batch] | None
    # Names of the kinds of steps that take turns; one without a name where all are alike.
    kinds: tuple[str, ...]
    inputs: StepInputs
    # Each run's T_p^0 and Ĉ, on the host.
    constants: list[Constants]
    # Leaves trained in an earlier stage and frozen in this one: they belong to the run all the same.
    carried: Leaves
    # What the finished model says about itself (JSON).
    info: dict[str, Any]
    # What the faces are, for a resume to compare.
    fingerprint: dict[str, Any]

    def batches(self, start: int) -> Iterator[dict[str, jax.Array]]:
        """Yields the global batches after step `start` on the mesh; this process reads its own rows."""
        size = self.data.batch_size
        rows = local_rows(self.mesh, size)
        share = rows.stop - rows.start
        stream = training_batches(
            open_dataset(self.mixture.records, self.data, self.vocabulary, self.make_maps),
            batch_size=size,
            seed=self.data.seed,
            epoch=self.mixture.epoch,
            start_step=start,
            host_index=rows.start // share,
            host_count=size // share,
            workers=self.data.workers,
            transform=self.transform,
        )
        return (place_batch(batch, self.mesh) for batch in stream)


class Fitting(NamedTuple):
    """What a head is fitted with before the runs start."""

    # The model of `train.init_from`.
    base: TrainedModel
    mixture: Mixture
    vocabulary: Vocabulary
    constants: Constants
    # All parameters, flat.
    leaves: Leaves
    # As `Setup` has it.
    info: dict[str, Any]


# Returns the leaves of the head and the graph network to start from, on the host.
FitHead = Callable[[Fitting], dict[str, np.ndarray]]


def setup(
    configs: Sequence[Experiment], hosts: Hosts, fit_head: FitHead | None = None
) -> tuple[Setup, list[TrainState]]:
    """Loads and makes everything. What can be checked without a picture is checked before one is looked at.

    Maps are made as faces are read; with `data.workers`, whose processes have no parser, all of them at once.

    Returns:
      What the runs share, and the state at step 0 of each, on the mesh.

    Raises:
      UserError: for whatever of the configs, the data or the weights does not fit.
    """
    config = configs[0]
    mesh = make_mesh(config.mesh)
    check_batch(config.data.batch_size, config.train.accumulate, mesh, hosts.count)
    check_same("config", repr(list(configs)), hosts)
    vocabulary = find_vocabulary(config.data.vocabulary, config.data.schemas)
    initial = _checked_initial(config, vocabulary)
    # Finds patterns that match nothing.
    trained, frozen = split_shapes(config)
    jax.eval_shape(make_optimizer(config.train).init, trained)
    given = _given(config, initial, {*trained, *frozen})
    if len(configs) > 1:
        _check_members(configs, set(frozen) - given)
    tokenizer = load_tokenizer(config.weights)
    texts: list[tuple[tuple[str, str], ...]] = []
    kinds, transform = make_transform(config, vocabulary, tokenizer, texts)
    opened = open_sets(config.data)
    held_out = validation_faces(opened, config.train.evaluate_faces) if config.train.evaluate_every else []

    def store(path: str, _: int, layer: jax.Array) -> Any:
        return quantise_leaf(path, layer, config.model.frozen_precision)

    given_leaves = dict(initial.leaves) if initial else {}
    # Prompts that the LLM makes are those of its kernels as they are: these are then rounded afterwards.
    as_they_are = config.weights.text_encoder == "llm" and bool(_new_labels(initial, vocabulary))
    leaves, base_info = assemble(config, given_leaves, mesh, store=None if as_they_are else store, announce=True)
    data, make_maps = config.data, None
    # Stage pretrain looks at pictures alone.
    reads_maps = config.reads_maps if config.train.stage != "pretrain" else config.data.frame == "aligned"
    if reads_maps:
        faces = [face for one in opened for face in one.faces] + held_out
        data, make_maps = maps_as_read(faces, config.data, config.weights.parser)
    mixture = mix(opened, config.data.max_unreadable, held_out)
    if vocabulary.open_questions:
        texts += [face.texts for face in mixture.records]
        if config.train.stage == "instruct" and not config.data.open_per_face:
            log.info("free text is not learnt: set --data.open-per-face 1 to ask the open questions of the table")
    for note in (*mixture.notes, *(f"skipped {bad.key}: {bad.reason}" for bad in mixture.unreadable)):
        log.info(note)
    counted = f"{len(mixture.records)} faces" + (f", {len(mixture.validation)} to validate" if held_out else "")
    log.info(f"{counted}; {jax.device_count()} device(s)")

    counts = cache(lambda: training_counts(mixture.records, config.data.counted, vocabulary))
    prompts = _prompts(config, initial, leaves, vocabulary, tokenizer)
    constants = [make_constants(one, prompts, counts, initial) for one in configs]
    info = {"labels": list(vocabulary.names), "base": base_info, "sources": learnt_from(config, initial)}
    info |= {"init_from": config.train.init_from, **carried_on(config, vocabulary, initial)}
    if fit_head and initial:
        fitted = fit_head(Fitting(initial, mixture, vocabulary, constants[0], leaves, info))
        initial = replace(initial, leaves=initial.leaves | fitted)
        leaves |= {path: place(leaf, leaves[path].sharding) for path, leaf in fitted.items()}
    words = config.weights.knowledge_connector == "words" and not (initial and _CONNECTOR in initial.leaves)
    if words:
        started = word_connector(config, leaves, constants[0], vocabulary, tokenizer)
        leaves |= {path: place(leaf, leaves[path].sharding) for path, leaf in started.items()}
    trained, frozen = split_params(unflatten(leaves), config.train.trainable)
    starts = [trained]
    if len(configs) > 1:
        fresh = [path for path in trained if path not in given]
        starts = [{**trained, **init_leaves(one.model, fresh, one.train.seed, mesh)} for one in configs]
        for one, start, own in zip(configs, starts, constants):
            started = word_connector(one, {**frozen, **start}, own, vocabulary, tokenizer) if words else {}
            start |= {path: leaf for path, leaf in started.items() if path in trained}
    frozen = cast(frozen, config.train.frozen_dtype)
    carried = {path: frozen[path] for path in (initial.leaves if initial else {}) if path in frozen}
    log.info(_describe(trained, frozen))
    if len(configs) > 1:
        log.info(f"encoders run {'once for all' if shares_encoders(config, trained) else 'for each member'}")
    del leaves
    frozen = prepare_frozen(frozen, run_on(config, mesh).model)

    states = [_first_state(one, start, mesh) for one, start in zip(configs, starts)]
    if make_maps and data.workers:
        with_maps([*mixture.records, *mixture.validation], config.data, config.weights.parser)
        make_maps = None
    # The frozen leaves have their places.
    read = (place(part, replicated(mesh)) for part in step_inputs(configs, frozen, constants)[1:])
    made = Setup(
        configs=tuple(configs),
        mesh=mesh,
        mixture=mixture,
        data=data,
        make_maps=make_maps,
        vocabulary=vocabulary,
        transform=transform,
        kinds=kinds,
        inputs=StepInputs(frozen, *read),
        constants=constants,
        carried=carried,
        info=info,
        fingerprint=fingerprint(mixture.records),
    )
    return made, states


def step_inputs(configs: Sequence[Experiment], frozen: Leaves, constants: Sequence[Constants]) -> StepInputs:
    """Returns what the step of the configs reads, on the host: of several, graphs and numbers of each one's own."""
    vocabulary = find_vocabulary(configs[0].data.vocabulary, configs[0].data.schemas)
    rules = compile_rules(rules_for(vocabulary), vocabulary)
    if len(configs) == 1:
        return StepInputs(frozen, constants[0], rules)
    own = [(one.graph, one.relations) for one in constants]
    graphs, relations = jax.tree.map(lambda *each: np.stack(each), *own)
    return StepInputs(frozen, constants[0]._replace(graph=graphs, relations=relations), rules, stacked_numbers(configs))


def answerable_questions(config: Experiment, vocabulary: Vocabulary) -> list[Question]:
    """The vocabulary's questions that some data set of the config annotates.

    Raises:
      UserError: there is none.
    """
    annotated = [find_dataset(source.name).vocabulary for source in config.data.sources]
    questions = [
        question
        for question in questions_for(vocabulary)
        if any(all(label is None or label in names for label in question.labels) for names in annotated)
    ]
    if not questions:
        raise UserError(f"no data set answers a question of vocabulary '{vocabulary.name}'")
    return questions


def make_transform(
    config: Experiment, vocabulary: Vocabulary, tokenizer, texts: Sequence[Sequence[tuple[str, str]]] = ()
) -> tuple[tuple[str, ...], Callable[[Batch, int], Batch] | None]:
    """Returns the kinds of steps that take turns, and `transform(batch, step) -> batch` that adds token arrays.

    The transform is None where the stage needs no tokens. `texts` are open questions of one's own and their answers, by
    the place of the face; they may be filled in before the first batch.
    """
    if config.train.stage != "instruct":
        return ("",), None
    asked, style = answerable_questions(config, vocabulary), load_template(config, tokenizer)
    builders = training_builders(config, vocabulary, tokenizer, asked, style)

    def transform(batch: Batch, step: int) -> Batch:
        builder = builders[step % len(builders)]
        open_per_face = config.data.open_per_face if builder.lm_length else 0
        made = training_sequences(
            typing.cast(contract.Batch, batch),
            builder,
            vocabulary,
            (config.data.seed, step),
            open_per_face=open_per_face,
            texts=texts,
            companions=config.data.companions_per_face,
        )
        return typing.cast(Batch, made)

    return ("short", "long") if len(builders) > 1 else ("",), transform


def _checked_initial(config: Experiment, vocabulary: Vocabulary) -> TrainedModel | None:
    """The model of `train.init_from`, where there is one."""
    if not config.train.init_from:
        return None
    initial = load_model(config.train.init_from)
    frame = initial.config.data.frame
    if frame != config.data.frame:
        log.warning(
            f"'{config.train.init_from}' was trained on faces cut with data.frame {frame}, this run cuts them with "
            f"{config.data.frame}: its encoders have to be trained anew, or give --data.frame {frame}"
        )
    fresh = _new_labels(initial, vocabulary)
    if len(fresh) == len(vocabulary):
        raise UserError(
            f"train.init_from '{config.train.init_from}' knows none of the labels of vocabulary '{vocabulary.name}'; "
            "join them, as in --data.vocabulary faces+tables, or start from nothing"
        )
    if fresh:
        log.info(
            f"{len(fresh)} labels that '{config.train.init_from}' does not know start fresh: {', '.join(fresh[:8])}"
        )
    return initial


def _prompts(
    config: Experiment, initial: TrainedModel | None, leaves: Leaves, vocabulary: Vocabulary, tokenizer
) -> np.ndarray:
    """T_p^0 (`n d0`): of labels that the model before knew, its own; of others, the text encoder's."""
    prompts = np.zeros((len(vocabulary), config.model.knowledge.prompt_size), np.float32)
    if _new_labels(initial, vocabulary):
        prompts[:] = label_prompts(config, leaves, vocabulary, tokenizer)
    if initial:
        shared, before = shared_places(initial.info["labels"], vocabulary.names)
        prompts[shared] = initial.prompts[before]
    return prompts


def _new_labels(initial: TrainedModel | None, vocabulary: Vocabulary) -> list[str]:
    """The labels that the model before does not know."""
    known = initial.info.get("labels", ()) if initial else ()
    return [name for name in vocabulary.names if name not in known]


def _given(config: Experiment, initial: TrainedModel | None, paths: set[str]) -> set[str]:
    """Leaves that come from an earlier run or a checkpoint, whatever the seed is."""
    weights = config.weights
    sources = {
        "image_encoder": weights.llava or weights.image_encoder != "random",
        "image_connector": bool(weights.llava),
        "segmentation_encoder": weights.segmentation_encoder != "random",
        "llm": weights.llava or weights.llm != "random",
    }
    loaded = {path for path in paths if sources.get(path.split("/")[0]) and "lora_" not in path}
    return loaded | (paths & set(initial.leaves) if initial else set())


def _check_members(configs: Sequence[Experiment], drawn: set[str]) -> None:
    """Raises `UserError` where members of other seeds would differ in `drawn`, the frozen leaves that are random."""
    config = configs[0]
    instruct = config.train.stage == "instruct"
    # Other stages read neither the LLM nor its connectors.
    read = sorted(path for path in drawn if instruct or not (path.startswith("llm/") or "_connector/" in path))
    if len({one.train.seed for one in configs}) > 1:
        if read:
            raise UserError(
                f"members differ in train.seed, and frozen leaves such as '{read[0]}' are drawn from it; "
                "load them (weights.*, train.init_from) or keep one seed"
            )
        if config.weights.text_encoder == "random" and not config.train.init_from:
            raise UserError("members differ in train.seed, and weights.text_encoder 'random' draws T_p^0 from it")
    if config.weights.knowledge_connector == "words" and instruct and _CONNECTOR in drawn:
        raise UserError("members that start the knowledge connector from words train it; add it to train.trainable")


def _first_state(config: Experiment, start: Leaves, mesh: Mesh) -> TrainState:
    state = init_state(start, make_optimizer(config.train), config.train)
    return place(state, state_shardings(state, mesh))


def _describe(trained: Leaves, frozen: Leaves) -> str:
    def millions(leaves: Leaves) -> float:
        return sum(math.prod(leaf.shape) for leaf in leaves.values()) / 1e6

    parts = sorted({path.split("/")[0] for path in trained})
    return f"training {millions(trained):.2f} M parameters ({', '.join(parts)}); {millions(frozen):.1f} M frozen"
