"""The sharding table: every parameter of every config has a row, and cuts fall back where they do not divide."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fi_jax.cli.configs import load_config
from fi_jax.config import LlmConfig, ModelConfig, VitConfig
from fi_jax.experiments.configs import config_names
from fi_jax.parallel.rules import (
    LOGICAL_AXES,
    PARAMETER_AXES,
    activation_rules,
    bytes_per_device,
    logical_axes,
    place_parameter,
    placements,
)
from fi_jax.weights.assemble import param_shapes

SIZES = {"data": 2, "fsdp": 4, "tensor": 2}


@pytest.mark.parametrize("name", config_names())
def test_every_parameter_of_every_config_has_a_row(name):
    shapes = param_shapes(load_config(name).model)
    for placed in placements(shapes, SIZES):
        assert len(placed.logical) == len(placed.shape), placed
        # What is large enough to matter is cut over fsdp.
        if np.prod(placed.shape) > 2**22 and not placed.replicated:
            assert "fsdp" in str(placed.spec), placed


def test_every_row_names_known_axes_and_is_used():
    known = {axis.name for axis in LOGICAL_AXES}
    for _, axes in PARAMETER_AXES:
        assert {axis for axis in axes if axis is not None} <= known
    biased = ModelConfig(llm=LlmConfig(num_layers=1, attention_bias=True, mlp_bias=True))
    configs = (load_config("tiny").model, load_config("nano_pretrain").model, biased)
    paths = [path for config in configs for path in param_shapes(config)]
    rows = {next(i for i, (pattern, _) in enumerate(PARAMETER_AXES) if _matches(pattern, path)) for path in paths}
    unused = {PARAMETER_AXES[i][0] for i in range(len(PARAMETER_AXES)) if i not in rows}
    assert unused <= {r"knowledge/\w+/bias"}, unused


def _matches(pattern: str, path: str) -> bool:
    import re

    return re.fullmatch(pattern, path) is not None


def test_unknown_parameter_is_an_error():
    with pytest.raises(KeyError, match="add one"):
        logical_axes("llm/layers/attn/gizmo/kernel", 3)


@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 2, 3, 4]), st.sampled_from([1, 2, 3, 4]))
def test_a_cut_always_divides(rows, columns, fsdp, tensor):
    sizes = {"data": 1, "fsdp": fsdp, "tensor": tensor}
    placed = place_parameter("llm/layers/attn/q_proj/kernel", (5, rows, columns), sizes)
    for size, axis in zip((5, rows, columns), placed.spec):
        assert axis is None or size % sizes[axis] == 0
    # What could not be cut is said, once a dimension.
    assert len(placed.replicated) == (rows % fsdp > 0) + (columns % tensor > 0)


def test_stacked_members_stand_in_front():
    one = place_parameter("head/image/kernel", (64, 32), SIZES)
    many = place_parameter("head/image/kernel", (8, 64, 32), SIZES)
    assert tuple(many.spec)[1:] == tuple(one.spec)


def test_bytes_per_device():
    tree = {"llm/layers/attn/q_proj/kernel": jax.ShapeDtypeStruct((3, 64, 64), np.float32)}
    assert bytes_per_device(tree, SIZES) == 3 * 64 * 64 * 4 // 8
    assert bytes_per_device(tree, {"data": 8, "fsdp": 1, "tensor": 1}) == 3 * 64 * 64 * 4


def test_heads_stay_whole_where_they_do_not_divide():
    small = ModelConfig(
        image_encoder=VitConfig(num_heads=16),
        llm=LlmConfig(hidden_size=576, num_heads=9, num_kv_heads=3, head_dim=64),
    )
    assert dict(activation_rules(SIZES, small))["heads"] is None
    assert dict(activation_rules(SIZES, ModelConfig()))["heads"] == "tensor"
    # Grouped keys and values share the name of the queries.
    grouped = ModelConfig(llm=LlmConfig(num_kv_heads=8))
    assert dict(activation_rules({**SIZES, "tensor": 16}, grouped))["heads"] is None
    assert dict(activation_rules(SIZES))["batch"] == ("data", "fsdp")
