"""Layers computed together equal each of them alone, in values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fi_jax.config import LoraConfig
from fi_jax.models.lora import Linear
from fi_jax.models.projections import project


class Three(nn.Module):
    """Three layers of one input; the targets of `lora` have adapters, the last has a bias."""

    lora: LoraConfig
    together: bool

    @nn.compact
    def __call__(self, x):
        layers = [
            Linear(features, lora=self.lora, use_bias=features == 6, name=name)
            for name, features in (("q_proj", 5), ("k_proj", 4), ("v_proj", 6))
        ]
        return project(x, layers) if self.together else tuple(layer(x) for layer in layers)


@pytest.mark.parametrize("targets", [("q_proj", "k_proj", "v_proj"), ("k_proj",), ("none",)])
def test_together_equals_apart(targets):
    lora = LoraConfig(rank=2, alpha=3.0, targets=targets)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 3, 7)), jnp.float32)
    params = Three(lora, False).init(jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: leaf + jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), params)
    probes = [jnp.asarray(rng.normal(size=(2, 3, n)), jnp.float32) for n in (5, 4, 6)]

    def run(together):
        def loss(params, x):
            made = Three(lora, together).apply({"params": params}, x)
            return sum((y * probe).sum() for y, probe in zip(made, probes, strict=True)), made

        return jax.grad(loss, (0, 1), has_aux=True)(params, x)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), run(True), run(False))
