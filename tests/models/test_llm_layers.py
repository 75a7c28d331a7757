import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from fi_jax.config import LlmConfig
from fi_jax.models.layer_stack import unstack_layers
from fi_jax.models.llm import Llm


def test_unrolled_layers_equal_scanned_ones():
    config = LlmConfig(31, 16, 24, 3, 4, 2, 6)
    scanned, written = Llm(config), Llm(config, scan_layers=False)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 5, 16)), jnp.float32)

    def run(model):
        hidden, cache = model.prefill(x, 4, 3)
        new = jnp.stack([x[:, :2]] * 3, axis=1)
        at = jnp.broadcast_to(5 + jnp.arange(2), (2, 3, 2))
        return hidden, model.extend(new, at, jnp.ones((2, 3, 2), bool), cache), model.logits(hidden)

    params = scanned.init(jax.random.key(0), method=run)["params"]
    expected = scanned.apply({"params": params}, method=run)
    cut = unflatten_dict(unstack_layers(flatten_dict(params, sep="/"), prefix=""), sep="/")
    hidden, (after, cache), logits = written.apply({"params": cut}, method=run)
    # Written-out layers keep one array a layer.
    stacks = {name: jnp.stack(getattr(cache, name)) for name in ("prefix_k", "prefix_v", "tail_k", "tail_v")}
    got = hidden, (after, cache.replace(**stacks)), logits
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
