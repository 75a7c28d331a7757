"""Generates text: one prefill, then one jitted loop that feeds every new token back; many questions share one prefix."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fi_jax.errors import UserError
from fi_jax.models.llm import KVCache, Llm

# Keys and values of the generated tokens: a stack, or one array a layer (`KVCache`).
_Tails = tuple[Any, Any]

# Fills answers after their last token.
PAD = 0


class Generated(NamedTuple):
    """Generated token ids (the end token included, then zeros) and how many of them count."""

    tokens: Int[np.ndarray, "b q m"]
    lengths: Int[np.ndarray, "b q"]


class _State(flax.struct.PyTreeNode):
    """One step of decoding: the cache, the newest token of each answer, its position, and who has ended."""

    cache: KVCache
    token: Int[Array, "b q"]
    position: Int[Array, "b q"]
    done: Bool[Array, "b q"]


def generate(
    model: Llm,
    params: Any,
    prefix: Float[Array, "b p d"],
    question_tokens: Int[Array, "b q s"],
    question_valid: Bool[Array, "b q s"] | None = None,
    *,
    max_new_tokens: int,
    eos_ids: tuple[int, ...],
) -> Generated:
    """Continues each question about each prefix greedily, until an id of `eos_ids` or `max_new_tokens`.

    Args:
      model: the language model, `params` its parameters.
      prefix: embeddings (text, image and knowledge tokens); their keys are stored and read once for all `q`.
      question_tokens: `q` questions a prefix, padding on the right as `question_valid` says (None: there is none); of no
        tokens (`s` = 0) where the prefix asks.
    """
    state = _prefill(model, max_new_tokens, eos_ids, params, prefix, question_tokens, question_valid)
    tokens, lengths, _ = _loop(model, max_new_tokens, eos_ids, params, *_split(state))
    return Generated(np.asarray(tokens), np.asarray(lengths))


def stream(
    model: Llm, params: Any, *inputs: Array, max_new_tokens: int, eos_ids: tuple[int, ...]
) -> Iterator[Int[np.ndarray, "b q"]]:
    """Yields what `generate` returns for the same arguments, one token of every answer at a time; zeros after its end."""
    state = _prefill(model, max_new_tokens, eos_ids, params, *inputs)
    ended = np.zeros(state.token.shape, bool)
    for i in range(max_new_tokens):
        yield np.where(ended, PAD, np.asarray(state.token))
        ended = np.asarray(state.done)
        if ended.all() or i + 1 == max_new_tokens:
            return
        # The prefix goes by hand: a program's result would be a copy of it.
        prefix = {"prefix_k": state.cache.prefix_k, "prefix_v": state.cache.prefix_v}
        state = _step(model, eos_ids, params, *_split(state))
        state = state.replace(cache=state.cache.replace(**prefix))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _prefill(model, max_new_tokens, eos_ids, params, prefix, tokens, valid=None) -> _State:
    """Runs prefix and questions; the first token is chosen here, so that the loop runs `max_new_tokens - 1` times."""
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    if valid is None:
        valid = jnp.ones(tokens.shape, bool)

    def run(model: Llm):
        (b, q, s), p = tokens.shape, prefix.shape[1]
        hidden, cache = model.prefill(prefix, s + max_new_tokens - 1, q)
        if not s:
            return jnp.repeat(model.logits(hidden[:, -1:]), q, axis=1), cache, jnp.full((b, q), p)
        own = jnp.broadcast_to(p + jnp.arange(s, dtype=jnp.int32), (b, q, s))
        hidden, cache = model.extend(model.embed(tokens.reshape(b, q * s)).reshape(b, q, s, -1), own, valid, cache)
        lengths = valid.sum(axis=2, dtype=jnp.int32)
        last = jnp.maximum(lengths - 1, 0)[:, :, None, None]
        return model.logits(jnp.take_along_axis(hidden, last, axis=2)[:, :, 0]), cache, p + lengths

    result: Any = model.apply({"params": params}, method=run)
    logits, cache, position = result
    token = logits.argmax(-1).astype(jnp.int32)
    return _State(cache, token, position, _is_end(token, eos_ids))


def _is_end(token, eos_ids: tuple[int, ...]):
    return jnp.isin(token, jnp.array(eos_ids, jnp.int32))


def _advance(model: Llm, eos_ids, params, state: _State) -> _State:
    def run(model: Llm):
        hidden, cache = model.extend(
            model.embed(state.token)[:, :, None],
            state.position[:, :, None],
            jnp.ones_like(state.done)[:, :, None],
            state.cache,
        )
        return model.logits(hidden[:, :, 0]), cache

    result: Any = model.apply({"params": params}, method=run)
    logits, cache = result
    token = logits.argmax(-1).astype(jnp.int32)
    return _State(cache, token, state.position + 1, state.done | _is_end(token, eos_ids))


def _split(state: _State) -> tuple[_State, _Tails]:
    """Takes the tails out of a state: they alone are donated, the prefix is not copied into the result."""
    return state.replace(cache=state.cache.replace(tail_k=None, tail_v=None)), (state.cache.tail_k, state.cache.tail_v)


def _join(state: _State, tails: _Tails) -> _State:
    return state.replace(cache=state.cache.replace(tail_k=tails[0], tail_v=tails[1]))


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=5)
def _loop(model, max_new_tokens, eos_ids, params, state: _State, tails):
    """Returns tokens `b q m`, lengths `b q`, and the new tails (so that the donated ones are reused)."""
    prefix = {"prefix_k": state.cache.prefix_k, "prefix_v": state.cache.prefix_v}
    nothing = dict.fromkeys(prefix)
    tokens = jnp.full((*state.token.shape, max_new_tokens), PAD, jnp.int32).at[:, :, 0].set(state.token)

    def body(carry):
        i, tokens, lengths, state = carry
        before = state.done
        # The prefix is read from outside the loop: what is carried is what changes.
        state = state.replace(cache=state.cache.replace(**prefix))
        state = _advance(model, eos_ids, params, state)
        state = state.replace(cache=state.cache.replace(**nothing))
        tokens = tokens.at[:, :, i].set(jnp.where(before, PAD, state.token))
        return i + 1, tokens, lengths + ~before, state

    state = _join(state, tails)
    state = state.replace(cache=state.cache.replace(**nothing))
    start = (jnp.int32(1), tokens, jnp.ones(state.token.shape, jnp.int32), state)
    _, tokens, lengths, state = jax.lax.while_loop(lambda c: (c[0] < max_new_tokens) & ~c[3].done.all(), body, start)
    return tokens, lengths, (state.cache.tail_k, state.cache.tail_v)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=4)
def _step(model, eos_ids, params, state: _State, tails):
    state = _advance(model, eos_ids, params, _join(state, tails))
    return state.replace(cache=state.cache.replace(prefix_k=None, prefix_v=None))
