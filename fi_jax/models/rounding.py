"""Rounding to 8 bits with one scale a row, by one pass over memory.

XLA reads what it rounds twice, once for the largest value of each row: a GPU kernel (Pallas on Triton) holds the row.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fi_jax.models.few_rows import has_our_kernels

E4M3 = jnp.float8_e4m3fn


def round_rows(
    arrays: Sequence[Float[Array, "*b i"]],
    columns: Sequence[Float[Array, "i"]] | None = None,
    *,
    interpret: bool = False,
) -> tuple[list[Float[Array, "*b i"]], Float[Array, "*b 1"]]:
    """Rounds rows of several arrays to e4m3 with one scale for the row in all of them; returns values and that scale.

    With `columns` each array's columns are multiplied by these first. The row's largest value becomes the type's.
    """
    if not (has_our_kernels() or interpret):
        return _plain(arrays, columns)
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    lead, widths = arrays[0].shape[:-1], [a.shape[-1] for a in arrays]
    flat = [a.reshape(-1, a.shape[-1]) for a in arrays]
    factors = [] if columns is None else [column[None].astype(jnp.float32) for column in columns]
    rows = flat[0].shape[0]
    # 64 values a thread stay in registers; the number of warps is a power of two.
    warps = min(max(pl.next_power_of_2(sum(map(pl.next_power_of_2, widths))) // (64 * 32), 4), 16)
    *values, scale = pl.pallas_call(
        functools.partial(_kernel, widths=widths),
        grid=(rows,),
        in_specs=[
            *[pl.BlockSpec((None, width), lambda n: (n, 0)) for width in widths],
            *[pl.BlockSpec((None, factor.shape[-1]), lambda n: (0, 0)) for factor in factors],
        ],
        out_specs=[
            *[pl.BlockSpec((None, width), lambda n: (n, 0)) for width in widths],
            pl.BlockSpec((None, 1), lambda n: (n, 0)),
        ],
        out_shape=[
            *[jax.ShapeDtypeStruct((rows, width), E4M3) for width in widths],
            jax.ShapeDtypeStruct((rows, 1), jnp.float32),
        ],
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=1),
        interpret=interpret,
        name="round_rows",
    )(*flat, *factors)
    return [v.reshape(*lead, v.shape[-1]) for v in values], scale.reshape(*lead, 1)


def _plain(arrays, columns):
    wide = [a.astype(jnp.float32) for a in arrays]
    if columns is not None:
        wide = [a * column for a, column in zip(wide, columns, strict=True)]
    most = functools.reduce(jnp.maximum, [jnp.max(jnp.abs(a), axis=-1, keepdims=True) for a in wide])
    scale = jnp.maximum(most, 1e-12) / float(jnp.finfo(E4M3).max)
    return [(a / scale).astype(E4M3) for a in wide], scale


def _kernel(*refs, widths):
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    count = len(widths)
    has_columns = len(refs) == 3 * count + 1
    inputs, columns = refs[:count], refs[count : 2 * count] if has_columns else ()
    outputs, scale_ref = refs[-count - 1 : -1], refs[-1]

    def row(number):
        places = jnp.arange(pl.next_power_of_2(widths[number]))
        inside = places < widths[number]
        at = pl.ds(0, len(places))
        x = triton.load(inputs[number].at[at], mask=inside, other=0).astype(jnp.float32)
        if has_columns:
            x = x * triton.load(columns[number].at[at], mask=inside, other=0)
        return x, at, inside

    rows = [row(number) for number in range(count)]
    most = functools.reduce(jnp.maximum, [jnp.max(jnp.abs(x)) for x, _, _ in rows])
    scale = jnp.maximum(most, 1e-12) / float(jnp.finfo(E4M3).max)
    for (x, at, inside), output in zip(rows, outputs, strict=True):
        triton.store(output.at[at], (x / scale).astype(E4M3), mask=inside)
    triton.store(scale_ref.at[pl.ds(0, 1)], jnp.full((1,), scale))
