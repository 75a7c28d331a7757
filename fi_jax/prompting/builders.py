"""A config -> the sequences that its steps ask: how many questions a face, how long, of which kinds."""

from collections.abc import Sequence
from functools import partial

from fi_jax.config import Experiment, ModelConfig
from fi_jax.errors import UserError
from fi_jax.labels.question_bank import questions_for
from fi_jax.labels.questions import Question
from fi_jax.labels.vocabulary import Vocabulary
from fi_jax.prompting.sequences import SequenceBuilder, Slots
from fi_jax.prompting.templates import template


def slots_of(model: ModelConfig, vocabulary: Vocabulary) -> Slots:
    """How many prefix tokens each modality takes."""
    segmentation = model.segmentation_encoder.num_tokens if model.use_segmentation else 0
    return Slots(model.image_encoder.num_tokens, segmentation, len(vocabulary))


def training_builder(
    config: Experiment,
    vocabulary: Vocabulary,
    tokenizer,
    questions: Sequence[Question],
    *,
    per_face: int,
    open_per_face: int,
    segment_length: int,
) -> SequenceBuilder:
    """The sequences of instruction tuning: any of `questions` may be asked, `per_face` of them and some open ones."""
    return SequenceBuilder(
        tokenizer,
        template(config.data.template),
        vocabulary,
        questions,
        slots_of(config.model, vocabulary),
        num_segments=per_face + open_per_face,
        segment_length=segment_length,
        lm_length=(segment_length + 2) if open_per_face else 0,
    )


def training_builders(config: Experiment, vocabulary: Vocabulary, tokenizer) -> list[SequenceBuilder]:
    """The kinds of sequences that steps take in turn: one, or with `data.short_segment` short and long questions.

    Raises:
      UserError: no question fits `data.short_segment`, or all do.
    """
    data, questions = config.data, questions_for(vocabulary)
    make = partial(training_builder, config, vocabulary, tokenizer)
    per_face = data.questions_per_face or len(questions)
    if not data.short_segment:
        length = data.segment_length
        return [make(questions, per_face=per_face, open_per_face=data.open_per_face, segment_length=length)]
    measure = make(questions, per_face=per_face, open_per_face=0, segment_length=0)
    fits = [len(measure.question_ids(question.text)) <= data.short_segment for question in questions]
    short = [question for question, fit in zip(questions, fits, strict=True) if fit]
    long = [question for question, fit in zip(questions, fits, strict=True) if not fit]
    if not short or not long:
        which = "no question fits" if not short else "every question fits"
        raise UserError(f"{which} data.short_segment {data.short_segment}; set it to 0, for segments of one length")
    few = min(max(1, per_face * data.short_segment // data.segment_length - data.open_per_face), len(long))
    return [
        make(short, per_face=min(per_face, len(short)), open_per_face=0, segment_length=data.short_segment),
        make(long, per_face=few, open_per_face=data.open_per_face, segment_length=data.segment_length),
    ]
