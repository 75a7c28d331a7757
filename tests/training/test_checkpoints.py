"""Checkpoints: bit for bit, on another mesh, after a cut-off save, and never under another config."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fi_jax.config import Experiment, MeshConfig, TrainConfig
from fi_jax.config_tree import to_dict
from fi_jax.errors import UserError
from fi_jax.parallel.mesh import make_mesh
from fi_jax.parallel.rules import place, state_shardings
from fi_jax.training.checkpoints import Checkpoints, check_same_config
from fi_jax.training.optimizer import make_optimizer
from fi_jax.training.state import TrainState, init_state

CONFIG = Experiment(train=TrainConfig(ema=0.9, keep_checkpoints=2))
PATHS = {"head/out/kernel": (8, 4), "llm/layers/attn/q_proj/lora_a": (2, 8, 2), "head/log_scale": ()}
INFO = {"labels": ["Male"], "base": {"llm": {"name": "x", "hash": "abc"}}}


def state_at(step: int, seed: int = 0) -> TrainState:
    rng = np.random.default_rng(seed + step)
    trained = {path: jnp.asarray(rng.normal(size=shape), jnp.float32) for path, shape in PATHS.items()}
    state = init_state(trained, make_optimizer(CONFIG.train), CONFIG.train)
    noisy = jax.tree.map(lambda x: x + 0.5 if jnp.issubdtype(x.dtype, jnp.floating) else x + step, state.opt_state)
    return state._replace(step=jnp.asarray(step, jnp.int32), opt_state=noisy)


CARRIED = {"image_encoder/class_embedding": jnp.arange(4, dtype=jnp.bfloat16)}


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.fixture
def opened(tmp_path):
    made = []

    def open_(config=CONFIG):
        made.append(Checkpoints(tmp_path / "run", config))
        return made[-1]

    yield open_
    for checkpoints in made:
        checkpoints.close()


def test_everything_comes_back_bit_for_bit(opened):
    first = opened()
    assert first.latest_step() is None
    for step in (10, 20, 30):
        first.save(state_at(step), CARRIED, INFO)
    first.wait()
    again = opened()
    assert again.latest_step() == 30
    assert_same(again.restore(state_at(0), CARRIED), state_at(30))


def test_no_more_than_asked_are_kept(opened, tmp_path):
    checkpoints = opened()
    for step in (1, 2, 3, 4):
        checkpoints.save(state_at(step), CARRIED, INFO)
    checkpoints.wait()
    assert sorted(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()) == [3, 4]


def test_the_next_step_may_overwrite_what_is_being_saved(opened):
    """Saving is asynchronous and the step is given its input's memory: the file must hold the old values."""
    state = state_at(5)
    expected = jax.device_get(state)
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 7, s), donate_argnums=0)
    checkpoints = opened()
    checkpoints.save(state, CARRIED, INFO)
    for _ in range(3):
        state = overwrite(state)
    checkpoints.wait()
    assert_same(opened().restore(state_at(0), CARRIED), expected)


def test_another_mesh(opened):
    one, two = (make_mesh(MeshConfig(*sizes), jax.devices()[:8]) for sizes in ((1, 4, 2), (4, 2, 1)))
    state = place(state_at(3), state_shardings(state_at(3), one))
    checkpoints = opened()
    checkpoints.save(state, CARRIED, INFO)
    checkpoints.wait()
    like = place(state_at(0), state_shardings(state_at(0), two))
    back = opened().restore(like, CARRIED)
    assert_same(jax.device_get(back), jax.device_get(state_at(3)))
    kernel = back.trained["head/out/kernel"]
    assert kernel.sharding == like.trained["head/out/kernel"].sharding
    assert kernel.addressable_shards[0].data.shape == (4, 4)


def test_a_save_that_was_cut_off_is_passed_over(opened, tmp_path):
    checkpoints = opened()
    checkpoints.save(state_at(2), CARRIED, INFO)
    checkpoints.wait()
    folder = tmp_path / "run" / "checkpoints"
    # What a kill in the middle of step 4's save leaves behind.
    (folder / "4.orbax-checkpoint-tmp-123" / "tree").mkdir(parents=True)
    again = opened()
    assert again.latest_step() == 2
    assert_same(again.restore(state_at(0), CARRIED), state_at(2))


def test_another_config_is_refused_by_name(opened):
    checkpoints = opened()
    checkpoints.save(state_at(2), CARRIED, INFO)
    checkpoints.wait()
    other = replace(CONFIG, train=replace(CONFIG.train, learning_rate=0.5, seed=3))
    with pytest.raises(UserError) as error:
        opened(other).restore(state_at(0), CARRIED)
    told = str(error.value)
    assert "train.learning_rate (0.0001 then, 0.5 now)" in told and "train.seed (0 then, 3 now)" in told
    assert "\n" not in told


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"mesh": MeshConfig(2, 1, 1)},
        {"train": replace(CONFIG.train, log_every=1, checkpoint_every=3, keep_checkpoints=7)},
        {"data": replace(CONFIG.data, workers=4, cache_in_memory=True, mask_cache="elsewhere")},
    ],
)
def test_where_and_how_long_may_change(change):
    check_same_config(to_dict(CONFIG), to_dict(replace(CONFIG, **change)))


def test_fields_that_one_side_lacks_are_named():
    saved = to_dict(CONFIG)
    del saved["train"]["ema"]
    with pytest.raises(UserError, match=r"train.ema \(None then, 0.9 now\)"):
        check_same_config(saved, to_dict(CONFIG))
