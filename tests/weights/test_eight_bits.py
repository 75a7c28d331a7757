"""A language model is rounded to 8 bits while its checkpoint is read: the same values, and never the wide ones in memory."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fi_jax.config import LlmConfig, LoraConfig, MeshConfig
from fi_jax.models.precision import KERNELS, Quantised, quantise_frozen, quantise_leaf
from fi_jax.parallel.mesh import make_mesh
from fi_jax.parallel.rules import place_parameter
from fi_jax.weights.assemble import assemble
from fi_jax.weights.hf_write import export_llm
from fi_jax.weights.leaf_table import llm_leaves


@pytest.fixture(scope="module")
def on_a_base(small, tmp_path_factory):
    """The small config over a Hugging Face folder of its LLM's shape, in the types of a large model."""
    folder = tmp_path_factory.mktemp("base")
    leaves = {path.removeprefix("llm/"): leaf for path, leaf in small.leaves.items() if path.startswith("llm/")}
    bare = replace(small.config.model.llm, lora=LoraConfig())
    export_llm({path: leaf for path, leaf in leaves.items() if "lora" not in path}, bare, folder)
    weights = replace(small.config.weights, llm=str(folder))
    return replace(small.config, weights=weights, train=replace(small.config.train, frozen_dtype="bfloat16"))


def storing(precision):
    return lambda path, _, layer: quantise_leaf(path, layer, precision)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_rounded_while_read_is_rounded_afterwards(on_a_base, precision):
    """Bit for bit, each array in its place on the mesh, and of the same kernels; a kernel that is trained stays wide."""
    mesh = make_mesh(MeshConfig(2, 2, 2), jax.devices()[:8])
    trainable = (*on_a_base.train.trainable, ".*/down_proj/kernel")
    config = replace(on_a_base, train=replace(on_a_base.train, trainable=trainable))
    made, _ = assemble(config, mesh=mesh, store=storing(precision))
    wide, _ = assemble(config, mesh=mesh)
    assert list(made) == list(wide)
    wanted = quantise_frozen({path: leaf for path, leaf in wide.items() if "down_proj" not in path}, precision)
    rounded = [path for path, leaf in wanted.items() if isinstance(leaf, Quantised)]
    assert rounded == [path for path, leaf in made.items() if isinstance(leaf, Quantised)]
    assert len(rounded) == len([path for path in made if KERNELS.fullmatch(path)]) - 1
    for path in rounded:
        assert made[path].shape == wide[path].shape
        for name in ("forward", "backward", "scale"):
            got, want = getattr(made[path], name), getattr(wanted[path], name)
            if want is None:
                assert got is None
                continue
            np.testing.assert_array_equal(got.astype(jnp.float32), want.astype(jnp.float32), err_msg=path)
            assert got.dtype == want.dtype
            assert got.sharding.spec == place_parameter(f"{path}/{name}", got.shape, mesh).spec


LARGE = LlmConfig(
    vocab_size=256, hidden_size=768, intermediate_size=3072, num_layers=16, num_heads=6, num_kv_heads=6, head_dim=128,
    lora=LoraConfig(),
)  # fmt: skip

PEAK = """
import json, sys
from pathlib import Path
import jax
from fi_jax.models.precision import quantise_leaf
from fi_jax.weights.huggingface import load_llm

def peak():
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

def load(folder):
    return load_llm(folder, store=lambda path, _, layer: quantise_leaf("llm/" + path, layer, "int8"))[1]

load(sys.argv[1])  # Compiles.
before = peak()
params = load(sys.argv[2])
print(json.dumps([sum(leaf.nbytes for leaf in jax.tree.leaves(params)), peak() - before]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux")
def test_memory_while_loading_is_that_of_8_bits(tmp_path):
    """Of a CPU, whose devices' memory is the host's: what is held in the end and a few layers, not 300 MB of bfloat16."""
    for name, config in ("one", replace(LARGE, num_layers=1)), ("all", LARGE):
        shapes = {leaf.path: leaf.shape for leaf in llm_leaves(config)}
        values = {path: np.broadcast_to(jnp.bfloat16(0.5), shape) for path, shape in shapes.items()}
        export_llm(values, config, tmp_path / name)
    wide = 2 * sum(map(math.prod, shapes.values()))
    command = [sys.executable, "-c", PEAK, str(tmp_path / "one"), str(tmp_path / "all")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    held, peak = json.loads(done.stdout)
    assert held < 0.52 * wide
    assert peak < 0.8 * wide
