"""The plan: memory that adds up and moves the right way, advice that works, collectives as compiled."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fi_jax.cli.configs import load_config
from fi_jax.parallel.collectives import Collective, collectives
from fi_jax.parallel.memory import GIB, Shapes, advise, frozen_bytes, kv_cache_bytes, plan_memory, shapes_of
from fi_jax.training.abstract import split_shapes

ROOT = Path(__file__).parents[2]
ONE = {"data": 1, "fsdp": 1, "tensor": 1}
COUNTS = (57, 45)


@pytest.fixture(scope="module")
def nano():
    config = load_config("nano")
    return config, *split_shapes(config)


def plan(nano, mesh=ONE, **model):
    config, trained, frozen = nano
    config = replace(config, model=replace(config.model, **model))
    return plan_memory(config, mesh, trained, frozen, shapes_of(config, mesh, *COUNTS))


def test_parameters_and_state_are_exact(nano):
    _, trained, frozen = nano
    made = plan(nano)
    count = sum(leaf.size for leaf in trained.values())
    assert made.trained == made.gradients == made.average == 4 * count and made.optimiser == 8 * count
    assert made.frozen == 2 * sum(leaf.size for leaf in frozen.values())
    assert made.gathered == 0


def test_cuts_and_remat_move_memory_the_right_way(nano):
    whole, cut = plan(nano), plan(nano, {"data": 1, "fsdp": 8, "tensor": 1})
    # Every matrix of this model divides by 8.
    assert cut.frozen == pytest.approx(whole.frozen / 8, rel=0.01) and cut.gathered > 0
    assert cut.llm == pytest.approx(whole.llm / 8)
    copied = plan(nano, {"data": 8, "fsdp": 1, "tensor": 1})
    assert copied.frozen == whole.frozen and copied.llm == cut.llm
    by_policy = [plan(nano, remat=remat).training for remat in ("none", "dots", "full")]
    assert by_policy == sorted(by_policy, reverse=True) and len(set(by_policy)) == 3
    assert plan(nano, attention="flash").llm < whole.llm


def test_the_plan_is_near_what_a_tpu_compiler_says(nano):
    """nano without remat on one v5e, 64 faces in four micro-batches (docs/tpu.md): 12.3 GiB."""
    config, trained, frozen = nano
    config = replace(config, train=replace(config.train, accumulate=4))
    made = plan((config, trained, frozen), attention="flash", dtype="bfloat16")
    assert made.training / GIB == pytest.approx(12.3, rel=0.05)


def test_advice_makes_it_fit(nano):
    config, trained, frozen = nano

    def total(config, mesh):
        return plan_memory(config, mesh, trained, frozen, shapes_of(config, mesh, *COUNTS)).training

    def fits_in(limit):
        return lambda config, mesh: total(config, mesh) <= limit

    mesh = {"data": 4, "fsdp": 1, "tensor": 1}
    alone = advise(config, mesh, fits_in(total(config, mesh) * 0.8))
    assert "--model.remat full" in alone
    together = advise(config, mesh, fits_in(1.2 * GIB))
    assert len(together) == 1 and "--model.remat full" in together[0] and "--train.accumulate" in together[0]
    assert advise(config, mesh, fits_in(1000)) == []


def test_collectives_of_a_text():
    text = """HloModule m, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  ROOT %s = f32[] add(%a, %b)
}

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p = (s32[], f32[8,4]{1,0}) parameter(0)
  %ag = bf16[8,4]{1,0} all-gather(%x), channel_id=1, dimensions={0}
  %ar = f32[8,4]{1,0} all-reduce(%y), to_apply=%add
}

ENTRY %main (p0: f32[8]) -> f32[8] {
  %p0 = f32[8]{0} parameter(0)
  %w = (s32[], f32[8,4]{1,0}) while(%t), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %both = (f32[2]{0}, f32[6]{0}) all-reduce(%p0, %p0), to_apply=%add
}
"""
    assert collectives(text) == [Collective("all-reduce", 4, 3 * 128 + 32), Collective("all-gather", 3, 3 * 64)]


PROGRAM = """
import jax
jax.config.update("jax_platforms", "cpu"); jax.config.update("jax_num_cpu_devices", 4)
import jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from fi_jax.parallel.collectives import collectives
mesh = Mesh(np.array(jax.devices()), ("x",))
put = lambda shape, *spec: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*spec)))
def f(x, w):
    # Contracting a cut axis needs one all-reduce of 16 x 16 floats a turn, five turns.
    return jax.lax.scan(lambda c, _: (jnp.tanh(x @ c), None), w, None, length=5)[0]
text = jax.jit(f, out_shardings=NamedSharding(mesh, P())).lower(put((16, 16), None, "x"), put((16, 16), None, None)).compile().as_text()
print(collectives(text))
"""


def test_collectives_of_a_compiled_program():
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=env)
    assert "Collective(kind='all-reduce', count=5, bytes=5120" in done.stdout, (done.stdout, done.stderr)


@pytest.mark.parametrize(
    "faces, questions, lm, measured",
    [(8, 1, 8, 51.84), (12, 1, 8, 67.95), (13, 1, 8, 72.11), (6, 40, 0, 59.80)],
    ids=str,
)
def test_the_plan_is_near_what_an_h100_needed(faces, questions, lm, measured):
    """Peaks (GiB) of `fi-jax bench 7b --what train,train40` with remat "dots" and flash attention."""
    config = load_config("7b", ["--train.accumulate", "1"])
    shapes = Shapes(faces, prefix=1152 + 40 + 40, segments=questions, segment_length=24, labels=40, lm_positions=lm)
    planned = plan_memory(config, ONE, *split_shapes(config), shapes).training / GIB
    assert measured <= planned < 1.1 * measured


def test_8_bits_are_known_to_the_plan():
    """Of 6.5 G frozen kernels' elements: training in fp8 keeps both layouts, inference one; a cache in 8 bits has scales."""
    sizes = {}
    for precision in ("bf16", "int8", "fp8"):
        config = load_config("7b", ["--model.frozen-precision", precision])
        frozen = split_shapes(config)[1]
        sizes[precision] = [frozen_bytes(config, ONE, frozen, differentiated=both) for both in (True, False)]
    kernels = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert sizes["bf16"][0] == sizes["bf16"][1] == sizes["fp8"][0]
    assert sizes["int8"][0] == sizes["int8"][1] == sizes["fp8"][1] == sizes["bf16"][0] - kernels
    shapes = Shapes(1, prefix=1000, segments=1, segment_length=100, labels=40, lm_positions=0)
    wide, narrow = (
        kv_cache_bytes(load_config("7b", ["--model.kv-precision", kv]), shapes, 2, 1) for kv in ("bf16", "int8")
    )
    assert wide == 2 * 2 * 32 * 4096 * 1100 * 2
    assert narrow == 2 * 2 * 32 * (1000 * (4096 + 32 * 4) + 100 * 4096 * 2)
