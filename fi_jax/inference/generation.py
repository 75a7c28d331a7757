"""Free-form answers: the shared prefix of a face, a question in words, and the text that the LLM generates."""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from fi_jax.inference import decode
from fi_jax.inference.answerer import Answerer
from fi_jax.knowledge.logic import Facts
from fi_jax.models.face_insight import FaceInsight
from fi_jax.models.llm import make_llm


def _inputs(
    answerer: Answerer, image: np.ndarray, mask: np.ndarray, questions: Sequence[str], facts: Facts | None = None
):
    """Arguments of `decode` for all `questions` about each of `b` faces, and the ids that end an answer."""
    builder = answerer.builder(())
    faces, alignment = answerer.faces(image, mask, facts)
    ids = [builder.question_ids(question) for question in questions]
    first = builder.prefix
    if answerer.asks_in_prefix:
        (asked,) = ids
        first, ids = np.append(first, np.array(asked, np.int32)), [[]]
    tokens = jnp.broadcast_to(jnp.asarray(first), (len(image), len(first)))
    prefix = _embed(answerer.model)(answerer.params, tokens, faces, alignment)
    # Padded to a multiple of 16, so that other questions reuse the compiled program.
    padded = np.zeros((len(ids), -(-max(map(len, ids)) // 16) * 16), np.int32)
    valid = np.zeros(padded.shape, bool)
    for row, question in enumerate(ids):
        padded[row, : len(question)] = question
        valid[row, : len(question)] = True
    config = answerer.config.model
    ends = (builder.end_id,)
    arguments = (
        make_llm(config),
        answerer.params["llm"],
        prefix,
        np.broadcast_to(padded, (len(image), *padded.shape)),
        np.broadcast_to(valid, (len(image), *valid.shape)),
    )
    return arguments, ends


@lru_cache(maxsize=4)
def _embed(model: FaceInsight):
    """The compiled prefix of a model; a new `jit` a question would compile again each time."""
    return jax.jit(lambda params, *rest: model.apply({"params": params}, *rest, method="embed_prefix"))


def generate(
    answerer: Answerer,
    image: UInt8[np.ndarray, "y x 3"],
    mask: UInt8[np.ndarray, "y x"],
    question: str,
    max_new_tokens: int,
    facts: Facts | None = None,
) -> str:
    """Answers an open question about one face, greedily."""
    return generate_many(answerer, image[None], mask[None], [question], max_new_tokens, facts)[0][0]


def generate_many(
    answerer: Answerer,
    image: UInt8[np.ndarray, "b y x 3"],
    mask: UInt8[np.ndarray, "b y x"],
    questions: Sequence[str],
    max_new_tokens: int,
    facts: Facts | None = None,
) -> list[list[str]]:
    """Answers `q` questions about each of `b` faces, greedily: `b` lists of `q` texts. A face's prefix is run once, unless
    it holds the question (`Answerer.asks_in_prefix`).
    """
    if answerer.asks_in_prefix and len(questions) > 1:
        each = [generate_many(answerer, image, mask, [question], max_new_tokens, facts) for question in questions]
        return [[texts[face][0] for texts in each] for face in range(len(image))]
    arguments, ends = _inputs(answerer, image, mask, questions, facts)
    tokens = decode.generate(*arguments, max_new_tokens=max_new_tokens, eos_ids=ends).tokens
    lengths = (np.isin(tokens, ends).cumsum(-1) == 0).sum(-1)
    return [[_text(answerer, tokens[b, q, : lengths[b, q]]) for q in range(len(questions))] for b in range(len(image))]


def stream(
    answerer: Answerer,
    image: UInt8[np.ndarray, "y x 3"],
    mask: UInt8[np.ndarray, "y x"],
    question: str,
    max_new_tokens: int,
    facts: Facts | None = None,
) -> Iterator[str]:
    """Yields the answer as it grows, whole so far each time."""
    arguments, ends = _inputs(answerer, image[None], mask[None], [question], facts)
    ids: list[int] = []
    for token in decode.stream(*arguments, max_new_tokens=max_new_tokens, eos_ids=ends):
        if int(token[0, 0]) in ends:
            return
        ids.append(int(token[0, 0]))
        yield _text(answerer, ids)


def _text(answerer: Answerer, ids: Iterable[int]) -> str:
    return answerer.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True).strip()
