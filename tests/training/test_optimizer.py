"""Which leaves are trained, and the optimiser: schedule, decay, scales, against optax's own AdamW."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fi_jax.config import TrainConfig
from fi_jax.errors import UserError
from fi_jax.training.optimizer import cast, learning_rate, make_optimizer, merge_params, split_params
from fi_jax.trees import flatten, unflatten

TREE = {
    "head": {"out": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "log_scale": jnp.ones(())},
    "llm": {"layers": {"attn": {"q_proj": {"kernel": jnp.ones((2, 4, 4)), "lora_a": jnp.ones((2, 4, 1))}}}},
}
CONFIG = TrainConfig(steps=100, warmup_steps=10, learning_rate=1e-2)


def test_trained_and_frozen_part_and_join():
    trained, frozen = split_params(TREE, (r".*/lora_[ab]", r"head/.*"))
    assert set(trained) == {"head/out/kernel", "head/out/bias", "head/log_scale", "llm/layers/attn/q_proj/lora_a"}
    assert set(frozen) == {"llm/layers/attn/q_proj/kernel"}
    joined = merge_params(trained, frozen)
    assert jax.tree.structure(joined) == jax.tree.structure(TREE)
    assert unflatten(flatten(TREE)).keys() == TREE.keys()


def test_a_pattern_must_match_a_whole_path_and_something():
    with pytest.raises(UserError, match="'lora_a' matches no parameter"):
        split_params(TREE, ("lora_a",))


def test_warm_up_then_cosine():
    rate = learning_rate(CONFIG, 1e-2)
    np.testing.assert_allclose([rate(0), rate(5), rate(10), rate(55), rate(100)], [0, 5e-3, 1e-2, 5e-3, 0], atol=1e-8)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_without_warm_up_the_first_step_counts(schedule):
    rate = learning_rate(replace(CONFIG, schedule=schedule, warmup_steps=0), 1e-2)
    assert float(rate(0)) == pytest.approx(1e-2)


def test_constant_stays():
    rate = learning_rate(replace(CONFIG, schedule="constant"), 1e-2)
    np.testing.assert_allclose([rate(5), rate(10), rate(99)], [5e-3, 1e-2, 1e-2], rtol=1e-6)


def test_equals_optax_adamw():
    trained = flatten(TREE)
    grads = {
        path: jnp.cos(jnp.arange(leaf.size, dtype=jnp.float32)).reshape(leaf.shape) for path, leaf in trained.items()
    }
    decayed = {path: path.endswith(("kernel", "lora_a")) for path in trained}
    ours = make_optimizer(CONFIG)
    theirs = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(learning_rate(CONFIG, 1e-2), b2=0.999, weight_decay=CONFIG.weight_decay, mask=decayed),
    )
    params = [trained, trained]
    states = [ours.init(trained), theirs.init(trained)]
    for _ in range(4):
        for i, optimizer in enumerate((ours, theirs)):
            updates, states[i] = optimizer.update(grads, states[i], params[i])
            params[i] = optax.apply_updates(params[i], updates)
    for path in trained:
        np.testing.assert_allclose(params[0][path], params[1][path], rtol=1e-6, err_msg=path)
        assert (np.asarray(params[0][path]) != trained[path]).any()


def test_scales_multiply_their_leaves_alone():
    trained = flatten(TREE)
    grads = jax.tree.map(jnp.ones_like, trained)
    config = replace(CONFIG, warmup_steps=0)

    def step(config):
        optimizer = make_optimizer(config)
        return optimizer.update(grads, optimizer.init(trained), trained)[0]

    plain, scaled = step(config), step(replace(config, learning_rate_scales=((r"head/.*", 0.1), (r".*", 2.0))))
    for path in trained:
        np.testing.assert_allclose(scaled[path], plain[path] * (0.1 if path.startswith("head") else 2.0), rtol=1e-6)


def test_a_scale_that_matches_nothing_is_one_line():
    with pytest.raises(UserError, match="train.learning_rate_scales pattern 'haed/.*' matches no trained parameter"):
        make_optimizer(replace(CONFIG, learning_rate_scales=(("haed/.*", 0.1),))).init(flatten(TREE))


def test_cast_leaves_whole_numbers_alone():
    done = cast({"a": jnp.ones(2), "b": jnp.arange(2)}, "bfloat16")
    assert done["a"].dtype == jnp.bfloat16 and done["b"].dtype == jnp.int32
