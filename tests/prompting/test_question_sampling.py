"""Which questions a batch asks: only answerable ones, the same on any number of hosts, answers that the labels state."""

import numpy as np

from fi_jax.labels.question_bank import questions_for
from fi_jax.labels.registry import vocabulary as find_vocabulary
from fi_jax.labels.tasks import age_labels
from fi_jax.prompting.question_sampling import companion_questions, draw_questions, stated_ages, training_sequences
from fi_jax.prompting.sequences import SequenceBuilder, Slots
from fi_jax.prompting.templates import template
from fi_jax.weights.tokenizers import byte_tokenizer

VOCABULARY = find_vocabulary("faces")
QUESTIONS = questions_for(VOCABULARY)
BUILDER = SequenceBuilder(
    byte_tokenizer(),
    template("plain"),
    VOCABULARY,
    QUESTIONS,
    Slots(2, 0, 2),
    num_segments=4,
    segment_length=160,
    lm_length=160,
)


def faces(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    n = len(VOCABULARY)
    batch = {"labels": (rng.random((count, n)) < 0.5).astype(np.float32), "known": rng.random((count, n)) < 0.6}
    return batch | {"row": np.arange(count)}


def test_draws_are_answerable_distinct_and_no_more_than_asked():
    answerable = np.random.default_rng(0).random(40) < 0.4
    rng = np.random.default_rng(1)
    seen = set()
    for _ in range(200):
        drawn = draw_questions(answerable, rng, 5)
        assert len(drawn) == len(set(drawn)) == 5 and answerable[drawn].all()
        seen |= set(drawn)
    # Every answerable question has its turn.
    assert seen == set(np.flatnonzero(answerable))
    assert draw_questions(np.zeros(40, bool), rng, 5) == []


def test_only_what_is_known_is_asked():
    batch = training_sequences(faces(6), BUILDER, VOCABULARY, (0, 1))
    _, answerable = BUILDER.targets(batch["labels"], batch["known"])
    for row in range(6):
        asked = [i for i in batch["question_index"][row] if i >= 0]
        assert len(asked) == 3 and answerable[row, asked].all()
    asked = batch["question_index"] >= 0
    np.testing.assert_allclose(batch["option_targets"].sum(-1)[asked], 1, atol=1e-6)


def test_companions_are_unknown_and_tied_by_a_rule_to_what_is_known():
    """CelebA knows no ages: one question a face is about what rules tie to its attributes, and has no target."""
    batch = faces(12)
    batch["known"] = np.tile(np.array([":" not in name for name in VOCABULARY.names]), (12, 1))
    told = training_sequences(batch, BUILDER, VOCABULARY, (0, 1), companions=1)
    _, answerable = BUILDER.targets(batch["labels"], batch["known"])
    seen = set()
    for row in range(12):
        asked = [i for i in told["question_index"][row] if i >= 0]
        assert len(asked) == 3 and answerable[row, asked[:2]].all() and not answerable[row, asked[2]]
        assert (told["option_targets"][row, 2] == 0).all() and (told["option_labels"][row, 2] >= 0).any()
        seen.add(QUESTIONS[asked[2]].name)
    assert seen <= {"gender", "age_group", "race:utkface", "expression"} and "age_group" in seen
    # Years are tied to age groups alone, which CelebA does not know either.
    beside = companion_questions(QUESTIONS, VOCABULARY, batch["known"][0])
    assert not beside[[q.name for q in QUESTIONS].index("age_years")]


def test_a_face_is_asked_the_same_on_any_number_of_hosts():
    whole = training_sequences(faces(8), BUILDER, VOCABULARY, (3, 5))
    for rows in (slice(0, 4), slice(4, 8), slice(2, 3)):
        share = {key: value[rows] for key, value in faces(8).items()}
        part = training_sequences(share, BUILDER, VOCABULARY, (3, 5))
        for key, value in part.items():
            np.testing.assert_array_equal(value, whole[key][rows], err_msg=key)


def test_every_step_asks_anew():
    first, second = (training_sequences(faces(8), BUILDER, VOCABULARY, (0, step)) for step in (1, 2))
    assert (first["question_index"] != second["question_index"]).any()


def test_of_a_face_of_which_nothing_is_known_nothing_is_claimed():
    batch = faces(2)
    batch["known"][:] = False
    told = training_sequences(batch, BUILDER, VOCABULARY, (0, 0))
    assert (told["question_index"] == -1).all() and (told["option_targets"] == 0).all()
    # What stands in unknown labels cannot change what is said of the face.
    batch["labels"] = 1 - batch["labels"]
    again = training_sequences(batch, BUILDER, VOCABULARY, (0, 0))
    np.testing.assert_array_equal(told["segment_tokens"], again["segment_tokens"])


def test_ages_are_read_back_from_their_two_hot_bins():
    labels, known = np.zeros((3, len(VOCABULARY)), np.float32), np.zeros((3, len(VOCABULARY)), bool)
    for row, age in ((0, 31.0), (2, 80.0)):
        for name, value in age_labels(age).items():
            labels[row, VOCABULARY.index(name)], known[row, VOCABULARY.index(name)] = value, True
    ages = stated_ages(labels, known, VOCABULARY)
    assert ages[1] is None
    np.testing.assert_allclose([ages[0], ages[2]], [31.0, 80.0], atol=1e-4)
    assert stated_ages(labels[:, :40], known[:, :40], find_vocabulary("celeba")) == [None] * 3
