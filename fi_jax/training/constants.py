"""What a run reads and never trains: T_p^0, Ĉ, the head's choices, and the relations between labels of one face."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from fi_jax.config import Experiment
from fi_jax.data.datasets import find_dataset
from fi_jax.knowledge.choices import head_groups
from fi_jax.knowledge.correlation import Counts, build_graph, extended_graph, normalised, with_bridges
from fi_jax.knowledge.score_graph import Relations, count_relations, extended_relations
from fi_jax.labels.question_bank import questions_for
from fi_jax.labels.schema import find_vocabulary
from fi_jax.labels.vocabulary import Vocabulary
from fi_jax.models.face_insight import Constants
from fi_jax.weights.bundle import TrainedModel


def make_constants(
    config: Experiment,
    prompts: Float[np.ndarray, "n d0"],
    counts: Callable[[], Counts],
    initial: TrainedModel | None = None,
) -> Constants:
    """Returns what a config makes of the training faces' co-occurrence, and of the model that it starts from.

    Args:
      prompts: T_p^0.
      counts: gives those of `data.counts.training_counts`; called only where something is counted.
    """
    vocabulary = find_vocabulary(config.data.vocabulary, config.data.schemas)
    groups, graph = head_groups(config.model.knowledge, vocabulary), _graph(config, vocabulary, counts, initial)
    relations = _relations(config, vocabulary, counts, initial)
    return Constants(np.asarray(prompts, np.float32), graph, groups, relations)


def learnt_from(config: Experiment, initial: TrainedModel | None) -> list[str]:
    """Data sets that a model has learnt from: this stage's, and those of every stage before it."""
    before = initial.info.get("sources", []) if initial else []
    return list(dict.fromkeys([*before, *(find_dataset(source.name).name for source in config.data.sources)]))


def carried_on(config: Experiment, vocabulary: Vocabulary, initial: TrainedModel | None) -> dict[str, Any]:
    """What the answers of the model before went by and its successor's go by too: mirror images, temperatures, and which
    questions see the face brought nearer, where all their labels were known before and faces are cut as before.
    """
    if initial is None:
        return {}
    before, questions = set(initial.info["labels"]), questions_for(vocabulary)

    def is_old(name: str) -> bool:
        about = [question.labels for question in questions if name in (question.name, question.family)]
        return bool(about) and all(label in before for labels in about for label in labels if label)

    same_head = config.model.knowledge.head == initial.config.model.knowledge.head
    names = ("mirror", "temperatures", *(("head_temperatures",) if same_head else ()))
    found = {name: initial.info[name] for name in names if initial.info.get(name)}
    near = initial.info.get("nearer", ()) if config.data.frame == initial.config.data.frame else ()
    if kept := [name for name in near if is_old(name)]:
        found["nearer"] = kept
    return found


def _graph(
    config: Experiment, vocabulary: Vocabulary, counts: Callable[[], Counts], initial: TrainedModel | None
) -> Float[np.ndarray, "n n"]:
    """Ĉ from the training split's labels alone, every face once, counted once.

    A stage over the sets of the stage before it has that one's graph. Over other sets, labels that they do not annotate
    keep their rows, and all others are counted anew.
    """
    knowledge, seed = config.model.knowledge, config.train.seed
    if initial is None or initial.config.model.knowledge != knowledge:
        return build_graph(counts(), knowledge, seed=seed)
    names, before = vocabulary.names, initial.info["labels"]
    same_sets = set(learnt_from(config, initial)) == set(initial.info.get("sources", ()))
    if same_sets and before == list(names):
        return normalised(initial.graph)
    annotated = counts().k.diagonal() > 0
    kept = [name for name, seen in zip(names, annotated, strict=True) if name in before and (same_sets or not seen)]
    return extended_graph(initial.graph, before, build_graph(counts(), knowledge, seed=seed), names, kept)


def _relations(
    config: Experiment, vocabulary: Vocabulary, counts: Callable[[], Counts], initial: TrainedModel | None
) -> Relations | None:
    """Relations as they were counted, bridges included; of pairs never seen here, the earlier model's."""
    # Counting reads every record.
    if config.model.knowledge.score_graph == "off":
        return None
    bridged = with_bridges(counts(), vocabulary)
    counted = count_relations(bridged, config.model.knowledge, config.train.seed)
    if counted is None or initial is None or initial.relations is None:
        return counted
    return extended_relations(initial.relations, initial.info["labels"], counted, vocabulary.names, bridged.k > 0)
