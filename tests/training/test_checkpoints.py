"""Checkpoints: bit for bit, on another mesh, after a cut-off save, and never under another config."""

import shutil
from contextlib import closing
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fi_jax.config import Experiment, MeshConfig, SourceConfig, TrainConfig
from fi_jax.config_tree import to_dict
from fi_jax.errors import UserError
from fi_jax.parallel.mesh import make_mesh
from fi_jax.parallel.rules import place, state_shardings
from fi_jax.training.checkpoints import Checkpoints, check_same_config, restore_last
from fi_jax.training.optimizer import make_optimizer
from fi_jax.training.state import TrainState, checksum, init_state

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
    assert first.steps() == []
    for step in (10, 20, 30):
        first.save(state_at(step), CARRIED, INFO)
    first.wait()
    again = opened()
    assert again.steps()[-1] == 30
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
    assert again.steps() == [2]
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


def test_a_field_that_came_later_was_its_default():
    saved = to_dict(CONFIG)
    del saved["train"]["accumulate"], saved["model"]["attention"]
    check_same_config(saved, to_dict(CONFIG))


def test_fields_that_one_side_lacks_are_named():
    saved = to_dict(CONFIG)
    del saved["train"]["ema"]
    with pytest.raises(UserError, match=r"train.ema \(None then, 0.9 now\)"):
        check_same_config(saved, to_dict(CONFIG))


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def flip(path, rng):
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)


DAMAGES = {
    "flipped": flip,
    "cut": lambda path, rng: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path, rng: path.write_bytes(b""),
    "gone": lambda path, rng: path.unlink(),
    "noise": lambda path, rng: path.write_bytes(rng.bytes(path.stat().st_size)),
}


@pytest.mark.slow
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path):
    """Every file of the last checkpoint in turn, in five ways: its own numbers come back, or those of the one before."""
    whole = tmp_path / "whole"
    with closing(Checkpoints(whole, CONFIG)) as checkpoints:
        for step in (10, 20):
            checkpoints.save(state_at(step), CARRIED, INFO)
        checkpoints.wait()
    last, rng, fell_back = whole / "checkpoints" / "20", np.random.default_rng(0), 0
    for file in files_of(last):
        for name, damage in DAMAGES.items():
            run = tmp_path / "run"
            shutil.copytree(whole, run)
            damage(run / file.relative_to(whole), rng)
            with closing(Checkpoints(run, CONFIG)) as checkpoints:
                (state,) = restore_last([checkpoints], [state_at(0)], CARRIED)
                assert_same(state, state_at(int(state.step)))
                fell_back += int(state.step) == 10
                if int(state.step) == 10:
                    assert checkpoints.steps() == [10] and len(list((run / "damaged").iterdir())) == 1, (file, name)
                    # What is trained anew is saved under the same number.
                    checkpoints.save(state_at(20, seed=1), CARRIED, INFO)
                    checkpoints.wait()
                    assert checkpoints.steps() == [10, 20]
            shutil.rmtree(run)
    assert fell_back >= len(files_of(last)), "too little of the damage was noticed"


def test_an_empty_step_folder_is_passed_over(opened, tmp_path):
    checkpoints = opened()
    checkpoints.save(state_at(10), CARRIED, INFO)
    checkpoints.wait()
    (tmp_path / "run" / "checkpoints" / "20").mkdir()
    (state,) = restore_last([opened()], [state_at(0)], CARRIED)
    assert_same(state, state_at(10))


def test_a_checkpoint_under_another_number_is_passed_over(opened, tmp_path):
    checkpoints = opened()
    checkpoints.save(state_at(10), CARRIED, INFO)
    checkpoints.wait()
    shutil.copytree(tmp_path / "run/checkpoints/10", tmp_path / "run/checkpoints/20")
    (state,) = restore_last([opened()], [state_at(0)], CARRIED)
    assert_same(state, state_at(10))
    assert [path.name.split("-")[0] for path in (tmp_path / "run/damaged").iterdir()] == ["20"]


def test_when_all_are_damaged_nothing_is_moved(opened, tmp_path):
    checkpoints = opened()
    checkpoints.save(state_at(10), CARRIED, INFO)
    checkpoints.wait()
    for file in files_of(tmp_path / "run" / "checkpoints" / "10"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match="no checkpoint of .* can be read; move 'checkpoints' away"):
        restore_last([opened()], [state_at(0)], CARRIED)
    assert (tmp_path / "run" / "checkpoints" / "10").is_dir()


def test_numbers_that_are_not_finite_are_no_start(opened):
    checkpoints = opened()
    checkpoints.save(state_at(10), CARRIED, INFO)
    bad = state_at(20)
    checkpoints.save(bad._replace(average={**bad.average, "head/log_scale": jnp.asarray(jnp.nan)}), CARRIED, INFO)
    checkpoints.wait()
    (state,) = restore_last([opened()], [state_at(0)], CARRIED)
    assert int(state.step) == 10


def test_no_single_flipped_bit_keeps_the_checksum():
    state = state_at(3)
    whole = int(checksum(state))
    rng = np.random.default_rng(0)
    leaves, structure = jax.tree.flatten(state)
    for _ in range(200):
        at = rng.integers(len(leaves))
        words = np.array(leaves[at]).view(np.uint32).reshape(-1)
        words[rng.integers(words.size)] ^= np.uint32(1) << np.uint32(rng.integers(32))
        flipped = words.view(leaves[at].dtype).reshape(leaves[at].shape)
        assert int(checksum(structure.unflatten([*leaves[:at], flipped, *leaves[at + 1 :]]))) != whole
    mesh = make_mesh(MeshConfig(1, 4, 2), jax.devices()[:8])
    assert int(checksum(place(state, state_shardings(state, mesh)))) == whole


THEN = {"utkface": {"faces": 2, "names": "a", "labels": "b", "pictures": "c"}}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"faces": 1}, "utkface had 2 faces and has 1"),
        ({"names": "x"}, "other faces, or in another order"),
        ({"labels": "x"}, "other labels or boxes"),
        ({"pictures": "x"}, "other pictures or maps"),
    ],
)
def test_changed_data_need_a_flag(opened, change, says):
    checkpoints = opened()
    checkpoints.save(state_at(10), CARRIED, {**INFO, "data": THEN})
    checkpoints.wait()
    now = {"utkface": {**THEN["utkface"], **change}}
    with pytest.raises(UserError, match=f"{says}.*--accept-changed-data"):
        restore_last([opened()], [state_at(0)], CARRIED, now)
    (state,) = restore_last([opened()], [state_at(0)], CARRIED, None)
    assert int(state.step) == 10
    # The same faces in another folder.
    moved = replace(CONFIG, data=replace(CONFIG.data, sources=(SourceConfig("utkface", "/elsewhere"),)))
    with pytest.raises(UserError, match="data.sources"):
        restore_last([opened(moved)], [state_at(0)], CARRIED, THEN)


def test_the_same_data_elsewhere_resume(opened):
    here, there = (
        replace(CONFIG, data=replace(CONFIG.data, sources=(SourceConfig("utkface", root),))) for root in ("a", "b")
    )
    checkpoints = opened(here)
    checkpoints.save(state_at(10), CARRIED, {**INFO, "data": THEN})
    checkpoints.wait()
    (state,) = restore_last([opened(there)], [state_at(0)], CARRIED, THEN)
    assert int(state.step) == 10
