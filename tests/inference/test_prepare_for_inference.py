"""A model made ready for speed says what the trained one says."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fi_jax.cli.configs import load_config
from fi_jax.config import LoraConfig
from fi_jax.inference.prepare import prepare_for_inference, without_adapters
from fi_jax.models.face_insight import Constants, FaceInsight
from fi_jax.trees import unflatten
from fi_jax.weights.assemble import dummy_batch, param_shapes

# Compiling is what takes the time; the values do not depend on how well it runs.
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


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
    run = jax.jit(lambda params: FaceInsight(model).apply({"params": params}, batch, constants), compiler_options=FAST)
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
