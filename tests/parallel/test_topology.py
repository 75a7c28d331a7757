"""Plans for TPUs that are not here: operations counted, collectives named by axis, and what libtpu says where it is."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from fi_jax.cli.configs import load_config
from fi_jax.cli.main import main
from fi_jax.config import MeshConfig
from fi_jax.errors import UserError
from fi_jax.parallel.collectives import BETWEEN_SLICES, RING, Collective, collectives
from fi_jax.parallel.mesh import make_mesh
from fi_jax.parallel.report import Facts, Request, render, report
from fi_jax.parallel.topology import (
    VARIABLE,
    count_flops,
    find_libtpu,
    gpu_facts,
    gpu_hosts,
    too_large,
    topology_devices,
    tpu_facts,
)
from fi_jax.training.abstract import split_shapes, trace_answers, trace_step

ROOT = Path(__file__).parents[2]
MESH = {"data": 2, "fsdp": 4, "tensor": 1}


def test_operations_are_counted_with_their_loops():
    def f(x, w):
        # 3 products of 4x8 by 8x8, their two gradients, and one alone.
        y = jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=3)[0]
        return (jnp.einsum("ij,kj->ik", y, x)).sum()

    shapes = jnp.zeros((4, 8)), jnp.zeros((8, 8))
    product, last = 2 * 4 * 8 * 8, 2 * 4 * 4 * 8
    assert count_flops(jax.make_jaxpr(f)(*shapes).jaxpr) == 3 * product + last
    both = jax.make_jaxpr(jax.checkpoint(jax.grad(f, (0, 1))))(*shapes)
    assert count_flops(both.jaxpr) == 9 * product + 3 * last


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", "data"),
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", "fsdp"),
        ("replica_groups=[1,8]<=[8]", "data+fsdp"),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", "data"),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", "fsdp"),
        ("replica_groups=mesh['axis_0'=8] {'axis_0'}", "data+fsdp"),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}", "fsdp"),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_1'}", "data"),
        ("no groups", ""),
    ],
)
def test_axes_that_a_collective_crosses(groups, axes):
    text = f"ENTRY %main (p: f32[8]) -> f32[8] {{\n  %r = f32[8]{{0}} all-reduce(%p), channel_id=1, {groups}, to_apply=%add\n}}\n"
    assert collectives(text, MESH) == [Collective("all-reduce", 1, 32, axes)]


def test_rings_and_asynchronous_forms():
    text = """ENTRY %main (p: f32[8]) -> f32[8] {
  %s = (bf16[1,8]{1,0:T(8,128)S(1)}, bf16[1,8]{1,0:T(8,128)S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%p), source_target_pairs={{0,1},{1,2}}, metadata={op_name="jit(step)/attn/dot_general"}
  %d = bf16[1,8]{1,0} collective-permute-done(%s)
  %o = bf16[4]{0} collective-permute(%p), source_target_pairs={{0,4},{4,0}}, metadata={op_name="jit(step)/concatenate"}
  %g = (f32[2]{0}, f32[8]{0}) all-gather-start(%p), replica_groups=[2,4]<=[8], dimensions={0}
}
"""
    assert collectives(text, MESH) == [
        Collective("all-gather", 1, 32, "fsdp"),
        Collective("collective-permute", 1, 8, "data"),
        Collective(RING, 1, 16, "fsdp"),
    ]


def test_loops_and_gathers_that_a_tpu_compiler_cuts_up():
    """Its loops say in condition and body how often they run; a gather is one, however many products it goes on beside."""
    text = """%piece (p: f32[2], q: f32[8]) -> f32[8] {
  ROOT %gather.1 = f32[8]{0} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
}

%ring_condition (p: (f32[8], u32[])) -> pred[] {
  %end.1 = u32[]{:T(128)} constant(8)
  %at.1 = u32[]{:T(128)} get-tuple-element(%p), index=1
  ROOT %below.1 = pred[]{:T(512)} compare(%at.1, %end.1), direction=LT
}

%ring_body (p: (f32[8], u32[])) -> (f32[8], u32[]) {
  %two.1 = u32[]{:T(128)} constant(2)
  %at.2 = u32[]{:T(128)} get-tuple-element(%p), index=1
  %continued = f32[8]{0} fusion(%x, %y), kind=kOutput, calls=%piece
  %sent = f32[2]{0} collective-permute(%x), channel_id=1, source_target_pairs={{0,1}}, metadata={op_name="a/dot_general"}
  %next.1 = u32[]{:T(128)} add(%at.2, %two.1)
  ROOT %tuple.1 = (f32[8]{0}, u32[]{:T(128)}) tuple(%continued, %next.1)
}

%layers_condition (p: (s32[], f32[8])) -> pred[] {
  %end.2 = s32[]{:T(128)} constant(32)
  %at.3 = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %below.2 = pred[]{:T(512)} compare(%at.3, %end.2), direction=LT
}

%layers_body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %one.1 = s32[]{:T(128)} constant(1)
  %at.4 = s32[]{:T(128)} get-tuple-element(%p), index=0
  %started = f32[8]{0} fusion(%x, %y), kind=kOutput, calls=%piece
  %ring = (f32[8]{0}, u32[]{:T(128)}) while(%t), condition=%ring_condition, body=%ring_body
  %next.2 = s32[]{:T(128)} add(%at.4, %one.1)
  ROOT %tuple.2 = (s32[]{:T(128)}, f32[8]{0}) tuple(%next.2, %started)
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %layers = (s32[]{:T(128)}, f32[8]{0}) while(%t), condition=%layers_condition, body=%layers_body
}
"""
    # 32 layers with one gather each, and with four steps of a ring.
    assert collectives(text, MESH) == [
        Collective("all-gather", 32, 32 * 32, "fsdp"),
        Collective(RING, 4 * 32, 4 * 32 * 8, "fsdp"),
    ]


def test_what_crosses_between_slices():
    """Two slices of four chips: sums over `data` leave through the hosts, one of them in a loop of three turns."""
    text = """%condition (p: (s32[])) -> pred[] {
  %end = s32[]{:T(128)} constant(3)
  %at = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %below = pred[]{:T(512)} compare(%at, %end), direction=LT
}

%body (p: (s32[])) -> (s32[]) {
  %one = s32[]{:T(128)} constant(1)
  %at.1 = s32[]{:T(128)} get-tuple-element(%p), index=0
  SEND
  %next = s32[]{:T(128)} add(%at.1, %one)
  ROOT %tuple = (s32[]{:T(128)}) tuple(%next)
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %inside = f32[8]{0} all-reduce(%p), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  SEND
  %recv-done = (f32[1,1,128]{2,1,0:T(1,128)}, token[]) recv-done(%recv), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  %loop = (s32[]{:T(128)}) while(%t), condition=%condition, body=%body
}
"""
    attributes = (
        'is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",'
        '_xla_host_transfer_rendezvous="all-reduce.341_0",_xla_megascale_reduce_operation="SUM",'
        '_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}'
    )
    shape = "(f32[1,1,128]{2,1,0:T(1,128)}, u32[], token[])"
    pair = (
        f"%send = {shape} send(%x, %after), channel_id=3, {attributes}\n"
        f"  %recv = {shape} recv(%after), channel_id=2, {attributes}"
    )
    sent = collectives(text.replace("SEND", pair, 1).replace("SEND", pair.replace("=3,", "=5,")), MESH)
    assert sent == [
        Collective("all-reduce", 1, 32, "fsdp"),
        Collective("all-reduce between slices", 4, 4 * 512, "data"),
    ]
    stats = SimpleNamespace(
        argument_size_in_bytes=1,
        output_size_in_bytes=1,
        alias_size_in_bytes=1,
        temp_size_in_bytes=1,
        generated_code_size_in_bytes=1,
    )
    limits = tpu_facts("v5e:2x2*2", 0.0, stats, sent)["roofline"]
    assert limits["links_s"] == 32 / 200e9 and limits["network_s"] == 2048 / 3.125e9
    assert "network_s" not in tpu_facts("v5e:2x4", 0.0, stats, sent[:1])["roofline"]


def test_libtpu_is_found_or_asked_for(tmp_path, capsys):
    with pytest.raises(UserError, match=f"neither --libtpu nor {VARIABLE}"):
        find_libtpu("", {})
    with pytest.raises(UserError, match="has no libtpu.so"):
        find_libtpu(str(tmp_path), {})
    (tmp_path / "libtpu").mkdir()
    file = tmp_path / "libtpu" / "libtpu.so"
    file.touch()
    for given in (tmp_path, file.parent, file):
        assert find_libtpu(str(given), {}) == find_libtpu("", {VARIABLE: str(given)}) == file
    for wrong, says in [
        ("v5e", "is no topology"),
        ("v5e:4x4*0", "is no topology; write it as"),
        ("v5e:4x4*x", "is no topology"),
        ("v5e:4x4*", "is no topology"),
        ("v5e:16x16*100000", "multiplies to 8 but v5e:16x16[*]100000 has 25600000 chips"),
    ]:
        with pytest.raises(UserError, match=says):
            topology_devices(wrong, file, 8)
    assert main(["plan", "tiny", "--mesh", "tensor=1000000"]) == 2
    assert "8192 devices at most" in capsys.readouterr().err
    assert main(["plan", "tiny", "--topology", "v5e:2x2", "--no-compile"]) == 2
    assert "leave --no-compile out" in capsys.readouterr().err


def test_commands_that_need_no_tpu_do_not_look_for_one(tmp_path):
    """libtpu is installed, no TPU is here: JAX never imports it, and `plan` finds it all the same."""
    package = tmp_path / "libtpu"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('libtpu was imported')")
    (package / "libtpu.so").write_text("no library")
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    env.pop(VARIABLE, None)
    plan = [sys.executable, "-m", "fi_jax", "plan", "tiny", "--mesh", "data=2"]
    done = subprocess.run([*plan, "--no-compile"], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    where = "from fi_jax.parallel.topology import find_libtpu; print(find_libtpu(''))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules['libtpu'] = None; {where}"],
        capture_output=True,
        text=True,
        env=env,
    )
    assert done.stdout.strip() == str(package / "libtpu.so"), done.stderr


def test_a_program_that_the_compiler_cannot_place_does_not_fit():
    said = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (99.21G) exceeds available HBM (15.75G)."
    chip = too_large("v5e:1x1", RuntimeError(said))
    config = load_config("nano")
    facts = Facts(*split_shapes(config), 57, 45, None, chip, 80.0)
    made = report(Request(config, {"data": 1, "fsdp": 1, "tensor": 1}, 16.0), facts)
    assert made["fits"] is False and made["chip"]["memory"]["all"] == 99.21 * 2**30
    text = render(made)
    assert "does not fit into 16 GiB" in text and "99.21 GiB" in text
    with pytest.raises(RuntimeError, match="INTERNAL"):
        too_large("v5e:1x1", RuntimeError("INTERNAL: no"))


@pytest.mark.parametrize(
    ("topology", "hosts"), [("h100:4", (4, 8)), ("a100:2x4", (2, 4)), ("v5e:4x4", None), ("", None)]
)
def test_gpu_hosts(topology, hosts):
    assert gpu_hosts(topology) == hosts


def test_gpu_hosts_and_their_mesh(capsys):
    with pytest.raises(UserError, match="write GPU hosts as h100:4"):
        gpu_hosts("h100:x")
    assert main(["plan", "7b", "--topology", "h100:4", "--mesh", "fsdp=8"]) == 2
    assert "multiplies to 8 but h100:4 has 32 GPUs" in capsys.readouterr().err
    mesh = {"data": 4, "fsdp": 8, "tensor": 1}
    made = gpu_facts("h100:4", 989e9, [Collective("all-reduce", 2, 450_000_000)], mesh)
    assert made["between_hosts"] == ["data"] and made["roofline"] == pytest.approx({"compute_s": 1e-3, "links_s": 1e-3})
    assert gpu_facts("h100:8x4", 0.0, [], mesh)["between_hosts"] == ["data", "fsdp"]


def test_answers_are_traced_without_gradients():
    """Scoring is the forward pass: with every parameter frozen, it has the answers' shapes and no backward products."""
    config = load_config("tiny", ["--data.vocabulary", "expw", "--data.segment-length", "8"])
    mesh = make_mesh(MeshConfig(fsdp=2), jax.devices()[:2])
    answers = trace_answers(config, mesh)
    made = answers.out_info
    assert made.scores.shape[0] == made.option_logits.shape[0] == config.data.batch_size
    assert 0 < count_flops(answers.jaxpr) < count_flops(trace_step(config, mesh).jaxpr) / 1.8


@pytest.mark.slow
@pytest.mark.skipif(VARIABLE not in os.environ, reason=f"needs libtpu: set {VARIABLE} (docs/tpu.md)")
@pytest.mark.parametrize(
    ("topology", "mesh"),
    [
        ("v5e:2x2", "fsdp=4"),
        ("v5e:2x4", "fsdp=8"),
        ("v5e:2x4", "data=2,fsdp=2,tensor=2"),
        ("v5e:2x4", "data=8"),
        ("v5e:2x2*2", "data=2,fsdp=4"),
    ],
)
def test_tiny_is_compiled_for_chips(topology, mesh):
    """No collective that nobody asked for: those that cut parameters need are gathers, sums and their rings."""
    command = [sys.executable, "-m", "fi_jax", "plan", "tiny", "--mesh", mesh, "--topology", topology, "--json"]
    command += ["--model.attention", "flash", "--data.vocabulary", "expw", "--data.segment-length", "8"]
    # In micro-batches, as large models are trained: faces stay on the chip that read them.
    command += ["--data.batch-size", "16", "--train.accumulate", "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    made = json.loads(done.stdout)
    assert done.returncode == 0 and made["fits"] is True, done.stderr
    assert made["chip"]["memory"]["all"] < 2**30 and made["chip"]["flops"] > 1e8
    between = [one for one in made["collectives"] if one["kind"].endswith(BETWEEN_SLICES)]
    assert {one["kind"] for one in made["collectives"] if one not in between} <= {
        "all-reduce",
        "all-gather",
        "reduce-scatter",
        RING,
    }
    crossed = {axis for one in made["collectives"] for axis in one["axes"].split("+")}
    assert crossed == {part.split("=")[0] for part in mesh.split(",")}
    if mesh == "data=8":
        assert {one["kind"] for one in made["collectives"]} == {"all-reduce"}
    if "*" in topology:
        # Sums of gradients over `data` alone leave a slice.
        assert {(one["kind"], one["axes"]) for one in between} == {("all-reduce between slices", "data")}
        assert between[0]["bytes"] >= made["parameters"]["trained"] and made["chip"]["roofline"]["network_s"] > 0
        assert all(one in between or one["axes"] == "fsdp" for one in made["collectives"])
    else:
        assert not between
