"""The prompt GCN: the paper's equation by hand, the residual, and the path without a graph."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fi_jax.config import KnowledgeConfig
from fi_jax.knowledge.gcn import PromptGcn

N, D0, H, E = 7, 12, 10, 8


def make(config, dtype=jnp.float32):
    prompts = jax.random.normal(jax.random.key(0), (N, D0))
    graph = jax.random.uniform(jax.random.key(1), (N, N))
    graph /= graph.sum(1, keepdims=True)
    module = PromptGcn(config, dtype=dtype)
    return module, module.init(jax.random.key(2), prompts, graph), prompts, graph


def config(**changes):
    return KnowledgeConfig(**{"hidden_size": H, "align_size": E, "prompt_size": D0} | changes)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("residual", [True, False])
def test_equation(depth, residual):
    module, variables, prompts, graph = make(config(depth=depth, residual=residual))
    params = variables["params"]
    x = np.asarray(prompts, np.float64)
    for i in range(depth):
        z = np.asarray(graph, np.float64) @ x @ np.asarray(params[f"layer_{i}"]["kernel"], np.float64)
        x = np.where(z > 0, z, 0.2 * z)
    if residual:
        x = x + np.asarray(prompts, np.float64) @ np.asarray(params["residual"]["kernel"], np.float64)
    np.testing.assert_allclose(module.apply(variables, prompts, graph), x, atol=1e-5)
    assert set(params) == {f"layer_{i}" for i in range(depth)} | ({"residual"} if residual else set())


def test_equal_widths_need_no_residual_kernel():
    _, variables, _, _ = make(config(align_size=D0))
    assert set(variables["params"]) == {"layer_0", "layer_1"}


def test_without_ccm_the_graph_has_no_effect_and_the_shape_is_the_same():
    module, variables, prompts, graph = make(config(enabled=False))
    out = module.apply(variables, prompts, graph)
    assert out.shape == (N, E) and set(variables["params"]) == {"residual"}
    np.testing.assert_array_equal(out, module.apply(variables, prompts, jnp.zeros_like(graph)))
    np.testing.assert_allclose(out, prompts @ variables["params"]["residual"]["kernel"], atol=1e-6)
    same_width, empty, _, _ = make(config(enabled=False, align_size=D0))
    np.testing.assert_array_equal(same_width.apply(empty, prompts, graph), prompts)


def test_information_flows_along_rows():
    """Label 0 listens to label 1 (ĉ_01 > 0), never the other way round."""
    module, variables, prompts, _ = make(config(depth=1))
    graph = jnp.eye(N).at[0, 0].set(0.8).at[0, 1].set(0.2)
    moved = prompts.at[1].add(1.0)
    difference = module.apply(variables, moved, graph) - module.apply(variables, prompts, graph)
    assert jnp.abs(difference[:2]).min(1).max() > 0 and jnp.abs(difference[0]).max() > 0
    np.testing.assert_array_equal(difference[2:], 0)
    moved = prompts.at[0].add(1.0)
    difference = module.apply(variables, moved, graph) - module.apply(variables, prompts, graph)
    np.testing.assert_array_equal(difference[1:], 0)


def test_bfloat16_output_and_float32_parameters():
    module, variables, prompts, graph = make(config(), jnp.bfloat16)
    assert module.apply(variables, prompts, graph).dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
