"""The real training step on 1, 8 x data, 8 x fsdp, 8 x tensor and 2 x 2 x 2: same losses, same gradients, one
program, and no collective that nobody asked for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROGRAM = Path(__file__).with_name("mesh_agreement.py")
ROOT = Path(__file__).parents[2]
MESHES = ["1,1,1", "8,1,1", "1,8,1", "1,1,8", "2,2,2"]


@pytest.fixture(scope="module")
def runs() -> dict[str, dict]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, PROGRAM, *MESHES]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_meshes_agree(runs):
    one = runs["1,1,1"]
    assert one["loss"][0] > 0.1 and one["loss"][0] != one["loss"][1]
    for mesh in MESHES[1:]:
        other = runs[mesh]
        np.testing.assert_allclose(other["loss"], one["loss"], rtol=1e-5, err_msg=mesh)
        assert other["grads"].keys() == one["grads"].keys()
        for path, values in one["grads"].items():
            scale = one["largest"][path]
            if path.endswith("k_proj/bias"):
                # A softmax does not see what is added to all its logits: this gradient is zero but for rounding.
                assert max(map(abs, other["grads"][path])) < 1e-6 * one["grad_norm"]
                continue
            assert scale > 0, f"{path} has no gradient: the comparison would say nothing"
            np.testing.assert_allclose(
                other["grads"][path], values, rtol=1e-5, atol=1e-5 * scale, err_msg=f"{mesh} {path}"
            )


@pytest.mark.slow
def test_every_leaf_is_cut_as_the_table_says(runs):
    """Leaves are where they should be, and stay there after a step; the optimiser's moments lie with them."""
    cut = runs["2,2,2"]["shardings"]
    assert cut["llm/layers/attn/q_proj/kernel"] == "P(None, 'fsdp', 'tensor')"
    assert cut["llm/layers/attn/o_proj/kernel"] == "P(None, 'tensor', 'fsdp')"
    assert cut["llm/layers/mlp/down_proj/kernel"] == "P(None, 'tensor', 'fsdp')"
    assert cut["llm/layers/attn/q_proj/lora_a"] == "P(None, 'fsdp')"
    assert cut["llm/layers/attn/q_proj/lora_b"] == "P(None, 'fsdp', 'tensor')"
    assert cut["llm/embed/embedding"] == "P('tensor', 'fsdp')"
    assert cut["image_encoder/layers/mlp/fc1/kernel"] == "P(None, 'fsdp', 'tensor')"
    assert cut["llm/layers/input_norm/scale"] == "P()"
    for mesh in MESHES:
        run = runs[mesh]
        assert {path: run["shardings"][path] for path in run["moments"]} == run["moments"], mesh
        assert run["batch"] == "P(('data', 'fsdp'),)"


@pytest.mark.slow
def test_no_collective_that_nobody_asked_for(runs):
    """Cut parameters are gathered, what each device has a part of is summed: nothing else is sent."""
    for mesh in MESHES:
        sent = runs[mesh]["collectives"]
        assert {one["kind"] for one in sent} <= {"all-gather", "reduce-scatter", "all-reduce"}, (mesh, sent)
    assert runs["1,1,1"]["collectives"] == []
    # Whole parameters are never gathered; their gradients are summed, and the counts of the loss.
    assert {one["kind"] for one in runs["8,1,1"]["collectives"]} == {"all-reduce"}
