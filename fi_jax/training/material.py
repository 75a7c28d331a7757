"""A config's data -> the sequences asked about each batch of faces, and the co-occurrence graph."""

from collections.abc import Callable

import numpy as np

from fi_jax.config import Experiment
from fi_jax.data.counts import count_records
from fi_jax.data.pipeline import Mixture
from fi_jax.knowledge.correlation import build_graph
from fi_jax.labels.vocabulary import Vocabulary
from fi_jax.models.batch import Batch
from fi_jax.prompting.builders import training_builders
from fi_jax.prompting.question_sampling import training_sequences
from fi_jax.weights.bundle import TrainedModel


def make_transform(config: Experiment, vocabulary: Vocabulary, tokenizer) -> Callable | None:
    """Returns `transform(batch, step) -> batch` that adds token arrays, or None where the stage needs none."""
    if config.train.stage != "instruct":
        return None
    builders = training_builders(config, vocabulary, tokenizer)

    def transform(batch: Batch, step: int) -> Batch:
        builder = builders[step % len(builders)]
        open_per_face = config.data.open_per_face if builder.lm_length else 0
        return training_sequences(batch, builder, vocabulary, (config.data.seed, step), open_per_face=open_per_face)

    return transform


def learnt_from(config: Experiment, initial: TrainedModel | None) -> list[str]:
    """Data sets that a model has learnt from: this stage's, and those of every stage before it."""
    before = initial.info.get("sources", []) if initial else []
    return list(dict.fromkeys([*before, *(source.name for source in config.data.sources)]))


def training_graph(config: Experiment, mixture: Mixture, vocabulary: Vocabulary) -> np.ndarray:
    """Ĉ from the training split's labels alone, every face once, in one streaming pass."""
    counts = count_records(mixture.records, vocabulary)
    return build_graph(counts, config.model.knowledge, seed=config.train.seed)
