"""Closed questions in branches behind one prefix say what each says in a sequence of its own."""

from dataclasses import replace

import numpy as np
import pytest
from small_model import small_answerer, small_config

from fi_jax.inference.answerer import Answerer
from fi_jax.labels.question_bank import questions_for
from fi_jax.prompting.branches import Branch, branches
from fi_jax.prompting.probabilities import option_probabilities


def test_questions_that_open_alike_share_a_branch():
    segments = [[1, 2, 3, 4], [9, 1, 1], [1, 2, 3, 5, 6], [1, 2, 3, 7], [1, 2, 3, 4, *range(20, 30)], [9, 5, *range(9)]]
    assert branches(segments) == [
        Branch((1, 2, 3), (0, 3, 2)),
        Branch((1, 2, 3), (4,)),
        Branch((), (1,)),
        Branch((), (5,)),
    ]


def test_an_opening_leaves_something_of_the_shortest_question():
    assert branches([[1, 2], [1, 2, 3], [1, 2, 3], [1, 2, 3]]) == [Branch((1,), (0, 1, 2, 3))]
    assert branches([]) == [] and branches([[5]]) == [Branch((), (0,))]


@pytest.fixture(scope="module", params=[True, False], ids=["scanned", "unrolled"])
def answerer(request) -> Answerer:
    """A small model over all built-in labels, adapters and knowledge tokens in it."""
    config = small_config()
    config = replace(
        config,
        model=replace(config.model, scan_layers=request.param),
        data=replace(config.data, vocabulary="faces"),
    )
    return small_answerer(config)


def test_branches_say_what_one_sequence_says(answerer):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    mask = rng.integers(0, 19, (2, 16, 16), dtype=np.uint8)
    bank = {question.name: question for question in questions_for(answerer.vocabulary)}
    questions = [bank[name] for name in ("Bald", "Goatee", "gender", "Bangs", "Pale_Skin", "Double_Chin")]
    groups, asked = answerer._branched(tuple(questions))
    assert [branch.which for branch in groups] == [(0, 3, 1, 4), (5, 2)]
    assert sum(one.tokens.size for one in asked) < 0.8 * len(questions) * answerer.builder(questions).segment_length
    found = answerer.answer(image, mask, questions).llm
    rows = answerer.builder(questions).build([range(len(questions))] * 2)
    logits = answerer._score(answerer.params, *answerer.faces(image, mask), rows)
    np.testing.assert_allclose(found, option_probabilities(logits), atol=2e-6)
    assert found.std(0).max() > 1e-3
