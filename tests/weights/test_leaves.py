"""Leaves through one safetensors file: exact at full precision, bounded at reduced, whole or not at all."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fi_jax.errors import UserError
from fi_jax.weights.leaves import load_leaves, quantise, save_leaves

RNG = np.random.default_rng(0)
LEAVES = {
    "llm/layers/attn/q_proj/kernel": RNG.normal(size=(2, 64, 48)).astype(np.float32),
    "llm/layers/attn/q_proj/lora_a": RNG.normal(size=(2, 64, 4)).astype(np.float32),
    "head/log_scale": np.float32(2.3),
    "head/out/bias": RNG.normal(size=5).astype(np.float32),
    "counts": np.arange(4, dtype=np.int32),
}


def test_full_precision_is_exact_scalars_included(tmp_path):
    save_leaves(tmp_path / "a" / "w.safetensors", LEAVES)
    back = load_leaves(tmp_path / "a" / "w.safetensors")
    assert back.keys() == LEAVES.keys()
    for name, leaf in LEAVES.items():
        assert back[name].shape == np.shape(leaf) and back[name].dtype == leaf.dtype
        np.testing.assert_array_equal(back[name], leaf)
    # Nothing but the file is left.
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["w.safetensors"]


def test_bfloat16_and_transposed_leaves_keep_their_values(tmp_path):
    leaf = RNG.normal(size=(3, 4)).astype(ml_dtypes.bfloat16)
    save_leaves(tmp_path / "w", {"half": leaf, "turned": LEAVES["llm/layers/attn/q_proj/kernel"].T})
    back = load_leaves(tmp_path / "w")
    np.testing.assert_array_equal(back["half"], leaf.astype(np.float32))
    np.testing.assert_array_equal(back["turned"], LEAVES["llm/layers/attn/q_proj/kernel"].T)


@settings(max_examples=50)
@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=3), elements=st.floats(-1e3, 1e3, width=32)))
def test_int8_is_off_by_half_a_step_at_most(leaf):
    values, scale = quantise(leaf)
    assert values.dtype == np.int8 and scale.dtype == np.float16 and scale.shape[-2] == 1
    error = np.abs(values * scale.astype(np.float32) - leaf)
    # The scale is rounded to float16 (up to 2^-11 of 127 steps), small ones to its subnormals.
    step = scale.astype(np.float32)
    assert (error <= step * (0.5 + 127 * 2**-11) + 127 * 2.0**-24).all()


def test_reduced_precision(tmp_path):
    for precision, tolerance in (("float16", 2e-3), ("int8", 0.02)):
        save_leaves(tmp_path / precision, LEAVES, precision)
        back = load_leaves(tmp_path / precision)
        assert back.keys() == LEAVES.keys()
        for name, leaf in LEAVES.items():
            assert back[name].shape == np.shape(leaf)
            np.testing.assert_allclose(back[name], leaf, atol=tolerance)
    sizes = [(tmp_path / name).stat().st_size for name in ("int8", "float16")]
    assert sizes[0] < 0.75 * sizes[1]


def test_damage_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no weights at"):
        load_leaves(tmp_path / "none")
    save_leaves(tmp_path / "w", LEAVES)
    whole = (tmp_path / "w").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not safetensors at all"):
        (tmp_path / "w").write_bytes(content)
        with pytest.raises(UserError, match="not a readable safetensors file") as error:
            load_leaves(tmp_path / "w")
        assert "\n" not in str(error.value)
