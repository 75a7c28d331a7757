"""A config's data -> the sequences asked about each batch of faces, and the co-occurrence graph."""

from collections.abc import Callable

import numpy as np

from fi_jax.config import Experiment, ModelConfig
from fi_jax.data.asking import training_sequences
from fi_jax.data.counts import count_records
from fi_jax.data.pipeline import Mixture
from fi_jax.data.sequences import SequenceBuilder, Slots
from fi_jax.data.templates import template
from fi_jax.knowledge.correlation import build_graph
from fi_jax.labels.question_bank import questions_for
from fi_jax.labels.vocabulary import Vocabulary


def slots_of(model: ModelConfig, vocabulary: Vocabulary) -> Slots:
    """How many prefix tokens each modality takes."""
    segmentation = model.segmentation_encoder.num_tokens if model.use_segmentation else 0
    return Slots(model.image_encoder.num_tokens, segmentation, len(vocabulary))


def training_builder(config: Experiment, vocabulary: Vocabulary, tokenizer) -> SequenceBuilder:
    """The sequences of instruction tuning: every question of the vocabulary may be asked."""
    questions = questions_for(vocabulary)
    per_face = config.data.questions_per_face or len(questions)
    return SequenceBuilder(
        tokenizer,
        template(config.data.template),
        vocabulary,
        questions,
        slots_of(config.model, vocabulary),
        num_segments=per_face + config.data.open_per_face,
        segment_length=config.data.segment_length,
        lm_length=(config.data.segment_length + 2) if config.data.open_per_face else 0,
    )


def make_transform(config: Experiment, vocabulary: Vocabulary, tokenizer) -> Callable | None:
    """Returns `transform(batch, step) -> batch` that adds token arrays, or None where the stage needs none."""
    if config.train.stage == "align":
        return None
    builder = training_builder(config, vocabulary, tokenizer)

    def transform(batch: dict[str, np.ndarray], step: int) -> dict[str, np.ndarray]:
        seed = (config.data.seed, step)
        return training_sequences(batch, builder, vocabulary, seed, open_per_face=config.data.open_per_face)

    return transform


def training_graph(config: Experiment, mixture: Mixture, vocabulary: Vocabulary) -> np.ndarray:
    """Ĉ from the training split's labels alone, every face once, in one streaming pass."""
    counts = count_records(mixture.records, vocabulary)
    return build_graph(counts, config.model.knowledge, seed=config.train.seed)
