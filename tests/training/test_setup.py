"""Which kinds of sequences the steps of instruction tuning take in turn."""

from dataclasses import replace

import numpy as np
import pytest

from fi_jax.cli.configs import load_config
from fi_jax.config import DataConfig, SourceConfig
from fi_jax.errors import UserError
from fi_jax.labels.question_bank import questions_for
from fi_jax.labels.registry import vocabulary
from fi_jax.prompting.builders import training_builders
from fi_jax.training.setup import answerable_questions, make_transform
from fi_jax.weights.tokenizers import byte_tokenizer

VOCABULARY = vocabulary("faces")
QUESTIONS = questions_for(VOCABULARY)


def config_with(**changes):
    config = load_config("tiny")
    return replace(config, data=replace(config.data, **changes))


def test_short_and_long_questions_part_and_none_is_lost():
    config = config_with(short_segment=48, questions_per_face=12)
    short, long = training_builders(config, VOCABULARY, byte_tokenizer(), QUESTIONS)
    (every,) = training_builders(config_with(), VOCABULARY, byte_tokenizer(), QUESTIONS)
    assert {q.name for q in short.questions} | {q.name for q in long.questions} == {q.name for q in every.questions}
    assert not {q.name for q in short.questions} & {q.name for q in long.questions}
    assert short.segment_length == 48 and not short.lm_length
    assert long.num_segments * long.segment_length <= max(12 * 48, 2 * long.segment_length)


def test_steps_take_turns():
    kinds, transform = make_transform(
        config_with(short_segment=48, questions_per_face=12), VOCABULARY, byte_tokenizer()
    )
    assert kinds == ("short", "long")
    n = len(VOCABULARY)
    batch = {
        "labels": np.zeros((2, n), np.float32),
        "known": np.ones((2, n), bool),
        "row": np.arange(2),
    }
    even, odd = transform(batch, 4), transform(batch, 5)
    assert even["segment_tokens"].shape == (2, 12, 48) and even["lm_positions"].shape[1] == 0
    assert odd["segment_tokens"].shape[2] == config_with().data.segment_length and odd["lm_weights"].sum() > 0


@pytest.mark.parametrize(("length", "said"), [(5, "no question fits"), (190, "every question fits")])
def test_a_length_that_parts_nothing_is_refused(length, said):
    with pytest.raises(UserError, match=said):
        training_builders(config_with(short_segment=length), VOCABULARY, byte_tokenizer(), QUESTIONS)


def test_only_what_the_data_annotate_is_asked():
    expressions = config_with(sources=(SourceConfig("expw"),), questions_per_face=12)
    assert [question.name for question in answerable_questions(expressions, VOCABULARY)] == ["expression"]
    n = len(VOCABULARY)
    batch = {"labels": np.zeros((2, n), np.float32), "known": np.ones((2, n), bool), "row": np.arange(2)}
    _, transform = make_transform(expressions, VOCABULARY, byte_tokenizer())
    assert transform(batch, 0)["segment_tokens"].shape[1] == 1 + expressions.data.open_per_face
    with pytest.raises(UserError, match="no data set answers a question"):
        make_transform(config_with(sources=(SourceConfig("expw"),)), vocabulary("celeba"), byte_tokenizer())


def test_negative_is_refused():
    with pytest.raises(UserError, match="short_segment"):
        DataConfig(short_segment=-1)
