"""A model made ready for speed says what the trained one says."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fi_jax.cli.configs import load_config
from fi_jax.config import LoraConfig
from fi_jax.inference.prepare import merged_while_read, prepare_for_inference, without_adapters
from fi_jax.models.face_insight import Constants, FaceInsight
from fi_jax.models.precision import KERNELS
from fi_jax.trees import unflatten
from fi_jax.weights.assemble import dummy_batch, param_shapes


@pytest.fixture(scope="module")
def trained():
    """A config with adapters in the LLM and in an encoder, random leaves, and what the model says with them."""
    model = load_config("tiny").model
    encoder = replace(model.segmentation_encoder, lora=LoraConfig(rank=2, targets=("fc1", "q_proj")))
    model = replace(model, segmentation_encoder=encoder)
    rng = np.random.default_rng(0)
    leaves = {
        path: jnp.asarray(0.1 * rng.normal(size=shape.shape), jnp.float32)
        for path, shape in param_shapes(model).items()
    }
    return model, leaves, says(model, leaves)


def says(model, leaves):
    rng = np.random.default_rng(1)
    batch = dummy_batch(model)
    batch |= {name: jnp.asarray(rng.normal(size=batch[name].shape)) for name in ("pixels", "map_pixels")}
    constants = Constants(jnp.asarray(rng.normal(size=(2, model.knowledge.prompt_size))), jnp.eye(2))
    run = jax.jit(lambda params: FaceInsight(model).apply({"params": params}, batch, constants))
    return run(unflatten(leaves))


@pytest.mark.parametrize("scan_layers", [True, False])
def test_merged_and_unrolled_it_says_the_same(trained, scan_layers):
    model, leaves, want = trained
    assert any(path.endswith("lora_a") for path in leaves if path.startswith("segmentation_encoder"))
    model = replace(model, scan_layers=scan_layers)
    given = dict(leaves)
    made = prepare_for_inference(given, model)
    assert not any("lora" in path for path in made)
    if scan_layers:
        assert set(made) == set(param_shapes(without_adapters(model)))
    else:
        # Each stack is let go as it is cut.
        assert not given
    got = says(without_adapters(model), made)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, want)


@pytest.mark.parametrize(("precision", "scan_layers"), [("int8", True), ("fp8", False)])
def test_merged_layer_by_layer_it_is_the_same(trained, precision, scan_layers):
    """Kernels that were merged and rounded while they were read, and all others: what merging the whole model gives."""
    model, leaves, _ = trained
    model = replace(model, scan_layers=scan_layers, frozen_precision=precision)
    store = merged_while_read(model, leaves)
    read = dict(leaves)
    for path in [path for path in leaves if KERNELS.fullmatch(path)]:
        layers = [store(path, i, layer) for i, layer in enumerate(leaves[path])]
        read[path] = jax.tree.map(lambda *each: jnp.stack(each), *layers)
    # An encoder's kernels have adapters too, and are not rounded.
    adapted = "segmentation_encoder/layers/attn/q_proj/kernel"
    assert store(adapted, 0, layer := leaves[adapted][0]) is layer
    got, want = prepare_for_inference(read, model), prepare_for_inference(dict(leaves), model)
    assert got.keys() == want.keys()
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), got, want)
