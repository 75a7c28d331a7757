"""Checks flash attention against XLA on a GPU (values and gradients, bfloat16) and times both; one JSON line a layout.

Run from the repository root: `python -m benchmarks.gpu_attention_check`. Exit status 1 when any check fails.
Errors are measured against a float32 XLA reference, relative to the reference's norm: flash passes when it is no
worse than twice XLA's own bfloat16 rounding (or 1 %). The gradient trap of a merge by `return_residual` shows as
8 to 21 % in dq and dk, which fails.
"""

import json
import statistics
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from fi_jax.models.attention import Layout, split_attention

# (name, batch, layout, heads, kv heads, head size)
CASES = [
    ("plain causal, 7b", 8, Layout(1216), 32, 32, 128),
    ("40 questions, 7b", 4, Layout(1192, 40, 24), 32, 32, 128),
    ("40 questions, 1 face, 7b", 1, Layout(1192, 40, 24), 32, 32, 128),
    ("long segments, grouped heads", 4, Layout(600, 4, 256), 32, 8, 128),
    ("one long segment", 8, Layout(1152, 1, 128), 32, 32, 128),
    ("smollm2", 16, Layout(120, 40, 32), 9, 3, 64),
    ("odd sizes", 3, Layout(77, 5, 13), 6, 2, 64),
]


def make_inputs(batch, layout, heads, kv_heads, size):
    """Returns q, k, v, a cotangent (float32) and `valid` with padding on the right of every part."""
    rng = np.random.default_rng(0)
    shapes = [(batch, layout.total, n, size) for n in (heads, kv_heads, kv_heads, heads)]
    arrays = [
        jnp.asarray(rng.normal(size=shape), jnp.float32).astype(jnp.bfloat16).astype(jnp.float32) for shape in shapes
    ]
    valid = np.zeros((batch, layout.total), bool)
    for row in valid:
        row[: rng.integers(layout.prefix // 2, layout.prefix + 1)] = True
        for j in range(layout.segments):
            start = layout.prefix + j * layout.length
            row[start : start + rng.integers(1, layout.length + 1)] = True
    return arrays, jnp.asarray(valid)


@partial(jax.jit, static_argnums=(0, 1, 2))
def run(implementation, layout, dtype, q, k, v, cotangent, valid):
    """Returns the output and the gradients of q, k and v, float32."""
    q, k, v = (a.astype(dtype) for a in (q, k, v))
    out, pullback = jax.vjp(lambda *qkv: split_attention(*qkv, layout, valid, implementation), q, k, v)
    return [a.astype(jnp.float32) for a in (out, *pullback(cotangent.astype(dtype)))]


@partial(jax.jit, static_argnums=(0, 1))
def forward(implementation, layout, q, k, v, valid):
    """Returns the output alone."""
    return split_attention(q, k, v, layout, valid, implementation)


def seconds(call, repeats=20):
    """Median time of a call, after two that warm up."""
    times = []
    for i in range(repeats + 2):
        start = time.perf_counter()
        jax.block_until_ready(call())
        if i >= 2:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def relative_errors(got, want):
    """Norm of the difference over the norm, of each array."""
    return [float(jnp.linalg.norm(g - w) / jnp.linalg.norm(w)) for g, w in zip(got, want, strict=True)]


def check(name, batch, layout, heads, kv_heads, size) -> bool:
    """Prints the case's line; returns whether flash is right."""
    (q, k, v, cotangent), valid = make_inputs(batch, layout, heads, kv_heads, size)
    with jax.default_matmul_precision("highest"):
        want = run("xla", layout, jnp.float32, q, k, v, cotangent, valid)
    line = {"case": name, "batch": batch, "layout": [layout.prefix, layout.segments, layout.length]}
    errors = {}
    for implementation in ("xla", "flash"):
        got = run(implementation, layout, jnp.bfloat16, q, k, v, cotangent, valid)
        errors[implementation] = relative_errors(got, want)
        line[f"{implementation}_errors_out_dq_dk_dv"] = [round(e, 5) for e in errors[implementation]]
        half = [a.astype(jnp.bfloat16) for a in (q, k, v)]
        line[f"{implementation}_forward_ms"] = round(
            1e3 * seconds(partial(forward, implementation, layout, *half, valid)), 3
        )
        both = partial(run, implementation, layout, jnp.bfloat16, q, k, v, cotangent, valid)
        line[f"{implementation}_forward_backward_ms"] = round(1e3 * seconds(both), 3)
    line["passed"] = all(f <= max(2 * x, 0.01) for x, f in zip(errors["xla"], errors["flash"], strict=True))
    print(json.dumps(line), flush=True)
    return line["passed"]


def main() -> int:
    """Runs every case; a case that raises counts as failed and does not stop the others."""
    print(json.dumps({"jax": jax.__version__, "device": jax.devices()[0].device_kind}))
    passed = []
    for case in CASES:
        try:
            passed.append(check(*case))
        except Exception as error:  # noqa: BLE001
            print(
                json.dumps({"case": case[0], "passed": False, "error": f"{type(error).__name__}: {error}"[:600]}),
                flush=True,
            )
            passed.append(False)
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
