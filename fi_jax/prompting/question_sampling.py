"""Which questions a training step asks about each face: a draw of those with a known answer, and their companions."""

from collections.abc import Sequence
from functools import cache
from itertools import islice

import numpy as np
from jaxtyping import Bool

from fi_jax.labels.questions import Question
from fi_jax.labels.rule_tables import rules_for
from fi_jax.labels.tasks import YEAR_CENTRES, YEAR_LABELS
from fi_jax.labels.vocabulary import Vocabulary
from fi_jax.models.batch import Batch
from fi_jax.prompting.descriptions import open_examples
from fi_jax.prompting.sequences import SequenceBuilder


def draw_questions(answerable: np.ndarray, rng: np.random.Generator, limit: int) -> list[int]:
    """Draws up to `limit` of one face's answerable questions (`questions` bool), in random order."""
    return list(rng.permutation(np.flatnonzero(answerable))[:limit])


@cache
def _own_and_tied(
    questions: tuple[Question, ...], vocabulary: Vocabulary
) -> tuple[Bool[np.ndarray, "questions n"], Bool[np.ndarray, "questions n"]]:
    """The labels that each question is about, and those that some rule ties to them."""
    own = np.zeros((len(questions), len(vocabulary)), bool)
    for row, question in enumerate(questions):
        own[row, [vocabulary.index(label) for label in question.labels if label and label in vocabulary]] = True
    tied = np.zeros_like(own)
    for rule in rules_for(vocabulary):
        named = np.array([vocabulary.index(name) for name in (*rule.labels, rule.premise) if name], int)
        tied[np.ix_(own[:, named].any(1), named)] = True
    return own, tied & ~own


def companion_questions(
    questions: Sequence[Question], vocabulary: Vocabulary, known: Bool[np.ndarray, "*b n"]
) -> Bool[np.ndarray, "*b questions"]:
    """Which questions are about labels that nobody annotated of a face, but that rules tie to some that are.

    Data sets annotate few kinds of labels each, so without them no rule between sets is ever in scope.
    """
    own, tied = _own_and_tied(tuple(questions), vocabulary)
    known = known[..., None, :]
    return own.any(1) & ~(own & known).any(-1) & (tied & known).any(-1)


def training_sequences(
    batch: Batch,
    builder: SequenceBuilder,
    vocabulary: Vocabulary,
    seed: tuple[int, ...],
    *,
    open_per_face: int = 1,
    companions: int = 0,
    closed_in_lm: int = 2,
    texts: Sequence[Sequence[tuple[str, str]]] = (),
) -> Batch:
    """Adds token arrays to a batch with `labels` and `known`: closed questions drawn, open ones at the end.

    Up to `companions` of the closed ones have no known answer (`companion_questions`); they stand behind the others.

    The draw of a face depends on `seed` and its `row` in the global batch alone, so it is the same on any number of
    hosts. Open answers are made of a face's known labels, so data sets with few labels yield short ones; `texts` are open
    questions of one's own with their answers, a face's by the batch's `index`, and come first.
    """
    targets, answerable = builder.targets(batch["labels"], batch["known"])
    ages = stated_ages(batch["labels"], batch["known"], vocabulary)
    beside = np.zeros_like(answerable)
    if companions:
        beside = companion_questions(builder.questions, vocabulary, batch["known"])
    chosen, open_questions = [], []
    for at, row in enumerate(batch["row"]):
        rng = np.random.default_rng((*seed, int(row)))
        limit = builder.num_segments - open_per_face
        # Whatever room there is, an answer comes first.
        few = min(companions, int(beside[at].sum()), max(limit - 1, 0))
        drawn_here = draw_questions(answerable[at], rng, limit - few)
        chosen.append(drawn_here + (draw_questions(beside[at], rng, few) if few else []))
        known = np.flatnonzero(batch["known"][at])
        labels = {vocabulary.names[i]: bool(batch["labels"][at, i] >= 0.5) for i in known}
        pairs = open_examples(labels, ages[at], rng) if open_per_face else []
        own = texts[int(batch["index"][at])] if texts and open_per_face else ()
        drawn = (builder.open_tokens(*some[i]) for some in (own, pairs) for i in rng.permutation(len(some)))
        open_questions.append(list(islice((tokens for tokens in drawn if tokens is not None), open_per_face)))
    return batch | builder.build(chosen, targets, open_questions, closed_in_lm)


def stated_ages(labels: np.ndarray, known: np.ndarray, vocabulary: Vocabulary) -> list[float | None]:
    """Ages in years where the five-year bins are known (they are two-hot, so their expectation is the age)."""
    if any(label.name not in vocabulary for label in YEAR_LABELS):
        return [None] * len(labels)
    bins = [vocabulary.index(label.name) for label in YEAR_LABELS]
    years = labels[:, bins] @ np.asarray(YEAR_CENTRES)
    return [
        float(age) if is_known else None for age, is_known in zip(years, np.all(known[:, bins], axis=1), strict=True)
    ]
