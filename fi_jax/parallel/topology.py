"""TPUs that are not here: abstract devices of a named topology, for which a step can be compiled on any CPU machine.

The compiler is libtpu (`pip install --target DIR --no-deps libtpu`). It is kept out of the environment, where every JAX
program of a machine without a TPU would look for one. Ours.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from fi_jax.errors import UserError
from fi_jax.parallel.collectives import collectives

VARIABLE = "FI_JAX_LIBTPU"


class Chip(NamedTuple):
    """What one chip can do at most."""

    # bfloat16 operations, bytes of memory and bytes of ICI (all links, one way) a second.
    flops: float
    hbm: float
    ici: float
    memory_gib: float


# https://cloud.google.com/tpu/docs/v5e, /v5p and /v6e ("key chip specifications"; ICI in Gbit/s there).
CHIPS = {
    "v5e": Chip(197e12, 819e9, 1600e9 / 8, 16),
    "v5p": Chip(459e12, 2765e9, 4800e9 / 8, 95),
    "v6e": Chip(918e12, 1600e9, 3200e9 / 8, 32),
}


def find_libtpu(given: str, env: Mapping[str, str] = os.environ) -> Path:
    """Returns libtpu.so in the folder `given` (or `FI_JAX_LIBTPU`), or that file itself. Raises `UserError`."""
    named = given or env.get(VARIABLE, "")
    for path in (Path(named, "libtpu", "libtpu.so"), Path(named, "libtpu.so"), Path(named)):
        if named and path.is_file():
            return path
    where = f"'{named}' has no libtpu.so" if named else f"neither --libtpu nor {VARIABLE} says where libtpu is"
    raise UserError(f"{where}; 'pip install --target DIR --no-deps libtpu' brings it, then give --libtpu DIR")


def topology_devices(topology: str, libtpu: Path) -> list[Any]:
    """Returns the devices of a topology, as in `v5e:4x4`, or of several slices of it, `v5e:4x4*2`. Raises `UserError`."""
    os.environ |= {
        "TPU_LIBRARY_PATH": str(libtpu),
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        # No chip is taken, so two plans may be made at once.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    from jax.experimental import topologies

    name, _, slices = topology.partition("*")
    try:
        several = {"num_slices": int(slices)} if slices else {}
        return list(topologies.get_topology_desc(name, platform="tpu", **several).devices)
    except (jax.errors.JaxRuntimeError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"libtpu knows no topology '{topology}' ({reason}); write it as v5e:4x4 or v5e:4x4*2"
        ) from error


def count_flops(jaxpr: Any) -> float:
    """Operations of all matrix products of a traced function, loops counted as often as they run."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2.0 * inner * math.prod(equation.outvars[0].aval.shape)
        repeat = equation.params["length"] if equation.primitive.name == "scan" else 1
        for inside in jax.core.jaxprs_in_params(equation.params):
            total += repeat * count_flops(inside)
    return total


def tpu_facts(topology: str, jaxpr: Any, compiled: Any, mesh: Mapping[str, int]) -> dict[str, Any]:
    """What the compiler says of one step on each chip: `memory` in bytes, `flops` of its matrix products, `roofline`.

    The roofline is the seconds that a step takes at least, by what limits it: every operation at the peak, arguments
    and results through memory once, collectives at the speed of all links. None of them can be had in practice.
    """
    stats = compiled.memory_analysis()
    memory = {
        "arguments": stats.argument_size_in_bytes,
        "results": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "temporary": stats.temp_size_in_bytes,
        "program": stats.generated_code_size_in_bytes,
    }
    memory["all"] = sum(memory.values())
    flops = count_flops(jaxpr) / math.prod(mesh.values())
    sent = sum(one.bytes for one in collectives(compiled.as_text()))
    chip = CHIPS.get(topology.partition(":")[0])
    limits = {}
    if chip is not None:
        moved = stats.argument_size_in_bytes + stats.output_size_in_bytes
        limits = {"compute_s": flops / chip.flops, "memory_s": moved / chip.hbm, "links_s": sent / chip.ici}
    return {"topology": topology, "memory": memory, "flops": flops, "roofline": limits}
