"""One new token's attention on a TPU: our plain products against JAX's paged kernel, by what their compiled programs read.

    FI_JAX_LIBTPU=~/libtpu python benchmarks/tpu_decode.py

One layer of 7B in bfloat16 on a v5e, compiled without one (docs/tpu.md). Prints a JSON line a case: the compiler's "bytes
accessed", its temporary memory, and the bytes of keys and values that must be read once. Of a kernel the compiler counts
arguments and results alone; `read` is then what its grid copies from memory: all pages of every sequence, a shared prefix
as often as there are questions.
"""

import argparse
import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.paged_attention import paged_attention
from jax.sharding import SingleDeviceSharding

from fi_jax.models.attention import cached_attention
from fi_jax.parallel.topology import find_libtpu, topology_devices

HEADS, SIZE, PREFIX, TAIL, PAGE = 32, 128, 1280, 64, 64
CASES = {"one question": (1, 1), "32 faces": (32, 1), "32 questions about one face": (1, 32)}


def main() -> int:
    """Compiles every case both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--libtpu", default="", help="where libtpu is (default: FI_JAX_LIBTPU, or installed)")
    args = parser.parse_args()
    device = topology_devices("v5e:1x1", find_libtpu(args.libtpu), most=1)[0]
    for name, (faces, questions) in CASES.items():
        kept = 2 * faces * (PREFIX + questions * TAIL) * HEADS * SIZE * 2
        for way, (run, shapes) in {"plain": plain(faces, questions), "paged": paged(faces, questions)}.items():
            compiled = jax.jit(run).lower(*(_on(shape, device) for shape in shapes)).compile()
            made = {"case": name, "way": way, "keys and values MiB": kept / 2**20}
            made["bytes accessed MiB"] = compiled.cost_analysis()["bytes accessed"] / 2**20
            made["temporary MiB"] = compiled.memory_analysis().temp_size_in_bytes / 2**20
            if way == "paged":
                made["read MiB"] = 2 * faces * questions * (PREFIX + TAIL) * HEADS * SIZE * 2 / 2**20
            print(
                json.dumps({key: round(value, 1) if isinstance(value, float) else value for key, value in made.items()})
            )
    return 0


def plain(b: int, n: int) -> tuple[Any, list[Any]]:
    """`cached_attention` and its arguments."""
    prefix, tail = (b, HEADS, PREFIX, SIZE), (b, n, HEADS, TAIL, SIZE)
    shapes = [_half(b, n, 1, HEADS, SIZE), _half(*prefix), _half(*prefix), _half(*tail), _half(*tail)]
    return cached_attention, [*shapes, jax.ShapeDtypeStruct((b, n, 1, TAIL), jnp.bool_)]


def paged(b: int, n: int) -> tuple[Any, list[Any]]:
    """The paged kernel over the same keys: pages of a face's prefix, which its questions share, and of each one's tail."""
    pages = b * (PREFIX + n * TAIL) // PAGE
    store = _half(HEADS, pages, PAGE, SIZE)
    lengths = jax.ShapeDtypeStruct((b * n,), jnp.int32)
    places = jax.ShapeDtypeStruct((b * n, (PREFIX + TAIL) // PAGE), jnp.int32)
    run = partial(paged_attention, pages_per_compute_block=7)
    return run, [_half(b * n, HEADS, SIZE), store, store, lengths, places]


def _half(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16)


def _on(shape: Any, device: Any) -> Any:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=SingleDeviceSharding(device))


if __name__ == "__main__":
    raise SystemExit(main())
