"""A config -> the sequences that its training steps ask: how many questions a face, how long, of which kinds."""

from collections.abc import Sequence

from fi_jax.config import Experiment, ModelConfig
from fi_jax.errors import UserError
from fi_jax.labels.questions import Question
from fi_jax.labels.vocabulary import Vocabulary
from fi_jax.prompting.sequences import SequenceBuilder, Slots
from fi_jax.prompting.templates import Template, template


def slots_of(model: ModelConfig, vocabulary: Vocabulary) -> Slots:
    """How many prefix tokens each modality takes."""
    segmentation = model.segmentation_encoder.num_tokens if model.use_segmentation else 0
    return Slots(model.image_slots, segmentation, len(vocabulary) if model.knowledge.tokens else 0)


def training_builders(
    config: Experiment,
    vocabulary: Vocabulary,
    tokenizer,
    questions: Sequence[Question],
    style: Template | None = None,
) -> list[SequenceBuilder]:
    """The kinds of sequences that steps take in turn: one, or with `data.short_segment` short and long questions.

    Nothing is padded to questions that are never asked: `questions` are those that the data can answer. `style` is the
    checkpoint's own template, where `data.template` says so.

    Raises:
      UserError: no question fits `data.short_segment`, or all do.
    """
    data = config.data
    per_face = min(data.questions_per_face or len(questions), len(questions))

    def make(questions: Sequence[Question], closed: int, free: int, length: int) -> SequenceBuilder:
        return SequenceBuilder(
            tokenizer,
            style or template(data.template),
            vocabulary,
            questions,
            slots_of(config.model, vocabulary),
            num_segments=closed + free,
            segment_length=length,
            lm_length=(length + 2) if free else 0,
        )

    if not data.short_segment:
        return [make(questions, per_face, data.open_per_face, data.segment_length)]
    measure = make(questions, per_face, 0, 0)
    short = [q for q in questions if len(measure.question_ids(q.text)) <= data.short_segment]
    long = [q for q in questions if q not in short]
    if not short or not long:
        which = "no question fits" if not short else "every question fits"
        raise UserError(f"{which} data.short_segment {data.short_segment}; set it to 0, for segments of one length")
    few = min(max(1, per_face * data.short_segment // data.segment_length - data.open_per_face), len(long))
    return [
        make(short, min(per_face, len(short)), 0, data.short_segment),
        make(long, few, data.open_per_face, data.segment_length),
    ]
