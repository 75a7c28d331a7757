"""Logits of closed answers by the LLM: a prefix is run once, then each branch's opening, then the rest of each question.

Equals one sequence a question, to rounding. Ours.
"""

from collections.abc import Sequence

import flax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fi_jax.models.face_insight import Alignment, FaceInsight, Faces


class AskedBranch(flax.struct.PyTreeNode):
    """The questions of a branch (`prompting.branches`): the opening they share, and the rest of each, padded on its right.

    The answer is due at the last token of each; its options are tokens, -1 where a question has fewer.
    """

    opening: Int[Array | np.ndarray, "o"]
    tokens: Int[Array | np.ndarray, "q s"]
    lengths: Int[Array | np.ndarray, "q"]
    options: Int[Array | np.ndarray, "q k"]


def ask_branch(
    segments: Sequence[Sequence[int]], opened: int, options: Sequence[Sequence[int]], multiple_of: int = 1
) -> AskedBranch:
    """The arrays of questions whose first `opened` tokens are the same; the rest is padded to a multiple of so many tokens."""
    rests = [list(segment[opened:]) for segment in segments]
    longest = -(-max(map(len, rests)) // multiple_of) * multiple_of
    return AskedBranch(
        opening=np.array(segments[0][:opened], np.int32),
        tokens=_padded(rests, longest, 0),
        lengths=np.array([len(rest) for rest in rests], np.int32),
        options=_padded(options, max(map(len, options)), -1),
    )


def _padded(rows: Sequence[Sequence[int]], length: int, filler: int) -> Int[np.ndarray, "q s"]:
    return np.array([[*row, *[filler] * (length - len(row))] for row in rows], np.int32)


def option_logits(
    model: FaceInsight,
    faces: Faces,
    alignment: Alignment,
    prefix: Int[Array, "p"],
    asked: Sequence[AskedBranch],
) -> list[Float[Array, "b q k"]]:
    """Logits of each branch's options about every face; `model` is bound, `prefix` are tokens and slots."""
    llm, b = model.llm, len(faces.image_pooled)

    def run(tokens, lengths, begin, cache):
        q, s = tokens.shape
        at = jnp.arange(s)
        x = jnp.broadcast_to(llm.embed(tokens), (b, q, s, model.config.llm.hidden_size))
        valid = jnp.broadcast_to(at < lengths[:, None], (b, q, s))
        return llm.extend(x, jnp.broadcast_to(begin + at, (b, q, s)), valid, cache)

    opened = [number for number, one in enumerate(asked) if len(one.opening)]
    lengths = np.array([len(asked[number].opening) for number in opened], np.int32)
    x = model.embed_prefix(jnp.broadcast_to(prefix, (b, len(prefix))), faces, alignment)
    _, cache = llm.prefill(x, max(lengths, default=0), max(len(opened), 1))
    if opened:
        tokens = jnp.stack(
            [jnp.pad(asked[i].opening, (0, max(lengths) - n)) for i, n in zip(opened, lengths, strict=True)]
        )
        _, cache = run(tokens, lengths, len(prefix), cache)
    found = []
    for number, one in enumerate(asked):
        tail = opened.index(number) if number in opened else 0
        own = llm.branch(cache, tail, len(one.opening), *one.tokens.shape[::-1])
        hidden, _ = run(one.tokens, one.lengths, len(prefix) + len(one.opening), own)
        due = jnp.take_along_axis(hidden, jnp.asarray(one.lengths - 1)[None, :, None, None], axis=2)[:, :, 0]
        logits = jnp.take_along_axis(llm.logits(due), jnp.maximum(one.options, 0)[None], axis=-1)
        found.append(jnp.where(one.options >= 0, logits, -1e9))
    return found
