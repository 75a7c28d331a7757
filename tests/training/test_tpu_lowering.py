"""The step of `7b` is lowered for TPUs on every machine, without their compiler: what it computes, not how well."""

import re
from dataclasses import replace

import jax
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from fi_jax.cli.configs import load_config
from fi_jax.config import MeshConfig
from fi_jax.parallel.mesh import AXES, make_mesh
from fi_jax.training.abstract import abstract_step
from fi_jax.training.step import make_step

CHIP = AbstractMesh(
    (1, 1, 1), AXES, (AxisType.Auto,) * 3, abstract_device=AbstractDevice("TPU v5 lite", num_cores=1, platform="tpu")
)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "int8", "fp8"])
def test_7b_is_lowered_for_tpus(precision):
    """The LLM's and the encoders' attention are kernels, forward and back; nothing is as large as all pairs of tokens."""
    # Of a number of tokens that is no width of the model.
    config = load_config("7b", ["--data.batch-size", "1", "--train.accumulate", "1", "--data.questions-per-face", "38"])
    config = replace(config, model=replace(config.model, scan_layers=True, frozen_precision=precision))
    step = abstract_step(config, make_mesh(MeshConfig(), jax.devices()[:1]))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), step)
    with jax.sharding.use_abstract_mesh(CHIP):
        text = jax.export.export(jax.jit(make_step(config)), platforms=["tpu"])(*shapes).mlir_module()
    for part in ("fwd", "dq", "dkv"):
        assert f"splash_mha_{part}_no_residuals" in text
    prefix, patches = shapes.batch["prefix_tokens"].shape[1], config.model.image_encoder.grid**2 + 1
    tokens = prefix + shapes.batch["segment_tokens"].shape[1] * config.data.segment_length
    lengths = {str(n) for n in (tokens, -(-tokens // 640) * 640, prefix, patches)}
    pairs = [dims.split("x") for dims in re.findall(r"tensor<([\dx]+)x\w+>", text)]
    assert ["1", str(tokens), "4096"] in pairs and not lengths & {"1024", "4096", "11008"}
    assert not [dims for dims in pairs if len(dims) > 2 and set(dims[-2:]) <= lengths]
