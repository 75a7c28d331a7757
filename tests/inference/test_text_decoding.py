import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fi_jax.config import LlmConfig
from fi_jax.errors import UserError
from fi_jax.inference import decode
from fi_jax.models.attention import PrefixLayout
from fi_jax.models.llm import Llm

MODEL = Llm(LlmConfig(31, 16, 24, 2, 4, 2, 6))
STEPS = 6


def _next_token_logits(model, prefix, tokens):
    """Logits after `1 p d` embeddings and `1 s` tokens, without any cache."""
    x = jnp.concatenate([prefix, model.embed(tokens)], axis=1)
    return _last_logits(model, x, x.shape[1])


def _last_logits(model, x, length):
    return model.logits(model(x, PrefixLayout(x.shape[1])))[0, length - 1]


@jax.jit
def _next_token(params, prefix, tokens, length):
    """The likeliest token after the prefix's embeddings and `length` tokens; everything recomputed."""

    def run(model):
        x = jnp.concatenate([prefix[None], model.embed(tokens[None])], axis=1)
        return _last_logits(model, x, prefix.shape[0] + length)

    return MODEL.apply({"params": params}, method=run).argmax()


@pytest.fixture(scope="module")
def params():
    params = MODEL.init(jax.random.key(0), jnp.zeros((1, 2, 16)), jnp.ones((1, 1), int), method=_next_token_logits)
    return jax.tree.map(lambda leaf: leaf + 0.5 * jax.random.normal(jax.random.key(1), leaf.shape), params)["params"]


@pytest.fixture(scope="module")
def case():
    """Two prefixes of 5 embeddings; three questions each of unequal length."""
    rng = np.random.default_rng(0)
    prefix = rng.normal(size=(2, 5, 16)).astype(np.float32)
    lengths = np.array([[1, 4, 2], [3, 3, 4]])
    return prefix, rng.integers(0, 31, (2, 3, 4)), np.arange(4) < lengths[..., None]


def _naive(params, prefix, tokens):
    written = list(tokens)
    for _ in range(STEPS):
        padded = np.zeros(4 + STEPS, int)
        padded[: len(written)] = written
        written.append(int(_next_token(params, prefix, padded, len(written))))
    return written[len(tokens) :]


@pytest.fixture(scope="module")
def expected(params, case):
    prefix, tokens, valid = case
    return [[_naive(params, prefix[i], tokens[i, j, valid[i, j]]) for j in range(3)] for i in range(2)]


def test_shared_prefix_greedy_equals_recomputing_everything(params, case, expected):
    got = decode.generate(MODEL, params, *case, max_new_tokens=STEPS, eos_ids=())
    np.testing.assert_array_equal(got.tokens, expected)
    assert (got.lengths == STEPS).all()


def test_stops_at_the_end_token_and_pads(params, case, expected):
    eos = expected[0][0][2]
    got = decode.generate(MODEL, params, *case, max_new_tokens=STEPS, eos_ids=(eos, 999))
    for i in range(2):
        for j in range(3):
            want = expected[i][j]
            want = want[: want.index(eos) + 1] if eos in want else want
            assert got.lengths[i, j] == len(want)
            assert got.tokens[i, j].tolist() == want + [0] * (STEPS - len(want))


def test_stream_yields_what_generate_writes(params, case, expected):
    eos = (expected[0][0][2],)
    got = decode.generate(MODEL, params, *case, max_new_tokens=STEPS, eos_ids=eos)
    pieces = np.stack(list(decode.stream(MODEL, params, *case, max_new_tokens=STEPS, eos_ids=eos)), axis=-1)
    np.testing.assert_array_equal(pieces, got.tokens[..., : pieces.shape[-1]])
    one = [case[0][:1], case[1][:1, :1], case[2][:1, :1]]
    assert len(list(decode.stream(MODEL, params, *one, max_new_tokens=STEPS, eos_ids=eos))) == 3


def test_loop_stops_when_every_answer_has_ended(params, case):
    everything = tuple(range(31))
    state, tails = decode._split(decode._prefill(MODEL, STEPS, everything, params, *case))
    tokens, lengths, tails = decode._loop(MODEL, STEPS, everything, params, state, tails)
    assert (lengths == 1).all() and (tokens[..., 1:] == 0).all()
    # Slots after the questions' four were never written.
    for keys_or_values in tails:
        written = np.abs(keys_or_values).max((0, 1, 2, 3, 5))
        assert written[:4].all() and not written[4:].any()


def test_tails_are_updated_in_place(params, case):
    state = decode._prefill(MODEL, STEPS, (), params, *case)
    rest, tails = decode._split(state)
    compiled = decode._loop.lower(MODEL, STEPS, (), params, rest, tails).compile()
    assert compiled.memory_analysis().alias_size_in_bytes >= sum(tail.nbytes for tail in tails)


def test_no_tokens_is_a_user_error(params, case):
    with pytest.raises(UserError, match="max_new_tokens is 0"):
        decode.generate(MODEL, params, *case, max_new_tokens=0, eos_ids=())
