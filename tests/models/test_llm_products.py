"""Which products a compiled training step of the LLM computes: forward, backward, and again."""

import re

import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util

from fi_jax.config import LlmConfig, LoraConfig
from fi_jax.models.attention import PrefixLayout
from fi_jax.models.llm import Llm

CONFIG = LlmConfig(97, 24, 56, 4, 4, 2, 10, lora=LoraConfig(rank=3))
LENGTH = 16
ATTENTION = 2


def _run(model, x):
    return model(x, PrefixLayout(LENGTH))


def compiled_step(model: Llm):
    """The compiled gradient of adapters and input; a layer is in it once forward and once backward where it loops."""
    x = jnp.zeros((2, LENGTH, model.config.hidden_size), model.dtype)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, method=_run))["params"]
    leaves = traverse_util.flatten_dict(shapes, sep="/")
    trained = {path: leaf for path, leaf in leaves.items() if "lora" in path}
    frozen = {path: leaf for path, leaf in leaves.items() if path not in trained}

    def loss(trained, frozen, x):
        params = traverse_util.unflatten_dict({**trained, **frozen}, sep="/")
        return (model.apply({"params": params}, x, method=_run) ** 2).sum()

    return jax.jit(jax.grad(loss, argnums=(0, 2))).lower(trained, frozen, x).compile()


def count(operation: str, program) -> int:
    """How often an HLO operation stands in a compiled program."""
    return len(re.findall(rf" {operation}\(", program.as_text()))


def test_dots_policy_computes_no_product_twice_but_those_of_attention():
    # Of each layer x W and low B, and backward the gradients of x through W, of low and of B; of each input (four in
    # all) x A, and backward the gradients of x through A and of A.
    linear = 7 * (2 + 3) + 4 * (1 + 2)
    assert count("dot", compiled_step(Llm(CONFIG))) == linear + ATTENTION + 2 * ATTENTION
    assert count("dot", compiled_step(Llm(CONFIG, remat="dots"))) == linear + 2 * ATTENTION + 2 * ATTENTION


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_unrolled_layers_leave_no_loop_and_no_copy_into_a_stack(remat):
    looping = compiled_step(Llm(CONFIG, remat=remat))
    straight = compiled_step(Llm(CONFIG, remat=remat, scan_layers=False))
    assert count("while", looping) == 2 and count("dynamic-update-slice", looping) > 0
    assert count("while", straight) == count("dynamic-update-slice", straight) == 0
    # What is computed again is not merged with its first time (all of it: that is up to the backend).
    once = count("dot", compiled_step(Llm(CONFIG))) * CONFIG.num_layers
    assert (count("dot", straight) > once) == (remat == "dots")
