"""Products of few rows with kernels of 8 bits, by one GPU kernel (Pallas on Triton): what a step of decoding needs.

Such a product is bound by reading the kernel. XLA's own of int8 weights is slower than that of bfloat16: it writes them
out in bfloat16 first. Here each program reads some rows of a kernel once, in pieces, and widens them in registers.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# More rows are a matrix product, bound by arithmetic.
MOST_ROWS = 64
# Rows of a kernel that one program reads, and how many of their values it holds at once; how many programs share such
# rows, whose sums are added afterwards (a small kernel alone would leave processors idle). Fastest or nearly so of 24
# choices for the shapes of 7B on an H100 (benchmarks/README.md).
OUTPUTS, PIECE, SPLITS = 64, 256, 4


def has_our_kernels() -> bool:
    """Whether programs traced here may hold Triton kernels: on a GPU, and on one alone.

    The partitioner does not know how to cut such a kernel; it would gather the arrays of all devices on each.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return jax.default_backend() == "gpu" and (mesh.empty or mesh.size == 1)


def has_few_rows(x: Float[Array, "*b i"]) -> bool:
    """Whether products of `x` are bound by reading the kernels, on a machine that has this one."""
    return x.size // x.shape[-1] <= MOST_ROWS and has_our_kernels()


def few_rows_products(
    x: Float[Array, "*b i"],
    kernels: Sequence[Array],
    scales: Sequence[Float[Array, "o"]],
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "*b o"], ...]:
    """`x Wᵀ * scale` for each kernel `[o, i]` of int8 or e4m3; sums are float32, results have the type of `x`.

    `interpret` computes the same without a GPU, slowly (tests).
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    flat = x.reshape(-1, x.shape[-1])
    (rows, inner), widths = flat.shape, [kernel.shape[0] for kernel in kernels]
    padded = max(pl.next_power_of_2(rows), 16)
    made = pl.pallas_call(
        functools.partial(_kernel, rows=rows, widths=widths, steps=pl.cdiv(inner, PIECE * SPLITS)),
        grid=(len(kernels), pl.cdiv(max(widths), OUTPUTS), SPLITS),
        in_specs=[
            pl.BlockSpec((padded, inner), lambda k, n, s: (0, 0)),
            *[pl.BlockSpec((OUTPUTS, inner), lambda k, n, s: (n, 0))] * len(kernels),
            *[pl.BlockSpec((OUTPUTS,), lambda k, n, s: (n,))] * len(kernels),
        ],
        out_specs=[pl.BlockSpec((None, padded, OUTPUTS), lambda k, n, s: (s, 0, n))] * len(kernels),
        out_shape=[jax.ShapeDtypeStruct((SPLITS, rows, width), jnp.float32) for width in widths],
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
        name="few_rows_products",
    )(flat, *kernels, *scales)
    return tuple(y.sum(axis=0).astype(x.dtype).reshape(*x.shape[:-1], y.shape[-1]) for y in made)


def _kernel(x_ref, *refs, rows, widths, steps):
    from jax.experimental import pallas as pl

    count = len(widths)
    place, share = pl.program_id(1), pl.program_id(2)
    for number, (kernel_ref, scale_ref, out_ref) in enumerate(
        zip(refs[:count], refs[count : 2 * count], refs[2 * count :], strict=True)
    ):
        sizes = {"rows": rows, "width": widths[number], "steps": steps, "place": place, "share": share}
        product = functools.partial(_product, x_ref, kernel_ref, scale_ref, out_ref, **sizes)
        if count == 1:
            product()
        else:
            pl.when((pl.program_id(0) == number) & (place * OUTPUTS < widths[number]))(product)


def _product(x_ref, kernel_ref, scale_ref, out_ref, *, rows, width, steps, place, share):
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    padded, inner = x_ref.shape
    own = jnp.arange(padded) < rows
    present = place * OUTPUTS + jnp.arange(OUTPUTS) < width
    start = share * steps * PIECE
    # Triton has no zero of e4m3 to fill masked values with, so a whole number of pieces is read without a mask.
    whole = inner % PIECE == 0 and width % OUTPUTS == 0

    def step(number, total):
        at = start + number * PIECE
        inside = at + jnp.arange(PIECE) < inner
        x = triton.load(x_ref.at[:, pl.ds(at, PIECE)], mask=own[:, None] & inside[None], other=0)
        if whole:
            # Behind the end the last piece is read again, for activations of zero.
            kernel = triton.load(kernel_ref.at[:, pl.ds(jnp.minimum(at, inner - PIECE), PIECE)]).astype(x.dtype)
        else:
            inside = present[:, None] & inside[None]
            kernel = triton.load(kernel_ref.at[:, pl.ds(at, PIECE)], mask=inside).astype(x.dtype)
            kernel = jnp.where(inside, kernel, 0)
        return total + triton.dot(x, kernel, trans_b=True)

    total = jax.lax.fori_loop(0, steps, step, jnp.zeros((padded, OUTPUTS), jnp.float32))
    scale = triton.load(scale_ref, mask=present, other=0)
    triton.store(out_ref, total * scale[None], mask=own[:, None] & present[None])
