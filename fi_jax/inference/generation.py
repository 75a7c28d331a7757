"""Free-form answers: the shared prefix of a face, a question in words, and the text the LLM goes on with."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from fi_jax.inference import decode
from fi_jax.inference.answerer import Answerer
from fi_jax.models.llama import Llama


def _inputs(answerer: Answerer, image: np.ndarray, mask: np.ndarray, question: str):
    builder = answerer.builder(())
    faces, alignment = answerer.faces(image[None], mask[None])
    tokens = jnp.asarray(builder.prefix[None])
    embed = jax.jit(lambda params, *rest: answerer.model.apply({"params": params}, *rest, method="embed_prefix"))
    prefix = embed(answerer.params, tokens, faces, alignment)
    asked = np.array(builder.question_ids(question), np.int32)
    # Padded to a multiple of 16, so that other questions reuse the compiled program.
    padded = np.zeros(-(-len(asked) // 16) * 16, np.int32)
    padded[: len(asked)] = asked
    valid = np.arange(len(padded)) < len(asked)
    config = answerer.config.model
    llm = Llama(config.llm, dtype=jnp.dtype(config.dtype), remat="none", attention=config.attention)
    ends = tuple({builder.ids(builder.template.end)[0]})
    arguments = (
        llm,
        answerer.params["llm"],
        prefix,
        jnp.ones(tokens.shape, bool),
        padded[None, None],
        valid[None, None],
    )
    return arguments, ends


def generate(
    answerer: Answerer,
    image: UInt8[np.ndarray, "y x 3"],
    mask: UInt8[np.ndarray, "y x"],
    question: str,
    max_new_tokens: int,
) -> str:
    """Answers an open question about one face, greedily."""
    arguments, ends = _inputs(answerer, image, mask, question)
    made = decode.generate(*arguments, max_new_tokens=max_new_tokens, eos_ids=ends)
    ids = made.tokens[0, 0][: int(made.lengths[0, 0])]
    return _text(answerer, [int(i) for i in ids if int(i) not in ends])


def stream(
    answerer: Answerer,
    image: UInt8[np.ndarray, "y x 3"],
    mask: UInt8[np.ndarray, "y x"],
    question: str,
    max_new_tokens: int,
) -> Iterator[str]:
    """Yields the answer as it grows, whole so far each time."""
    arguments, ends = _inputs(answerer, image, mask, question)
    ids: list[int] = []
    for token in decode.stream(*arguments, max_new_tokens=max_new_tokens, eos_ids=ends):
        if int(token[0, 0]) in ends:
            return
        ids.append(int(token[0, 0]))
        yield _text(answerer, ids)


def _text(answerer: Answerer, ids: list[int]) -> str:
    return answerer.tokenizer.decode(ids, skip_special_tokens=True).strip()
