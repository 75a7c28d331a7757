"""Accelerators that are not here: TPUs, for which a step can be compiled on any CPU machine, and GPU hosts. Ours.

The TPUs' compiler is libtpu (the extra `tpu-plan`, or `pip install --target DIR --no-deps libtpu`). Installed where there
is no TPU, it makes every JAX program look for one; our command line hides it (`cli.main`).
"""

import math
import os
import re
from collections.abc import Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, NamedTuple

from jax.extend.core import jaxprs_in_params

from fi_jax.errors import UserError
from fi_jax.parallel.collectives import BETWEEN_SLICES, Collective

VARIABLE = "FI_JAX_LIBTPU"
INSTALL = "pip install 'fi_jax[tpu-plan]', or into a folder: pip install --target DIR --no-deps 'libtpu==0.0.42.*'"


class Chip(NamedTuple):
    """What one chip can do at most."""

    # bfloat16 operations, bytes of memory and bytes of its links (all of them, one way) a second.
    flops: float
    hbm: float
    links: float
    memory_gib: float
    # Bytes a second to other slices, one way: its part of its host's network cards.
    network: float = math.inf


# https://docs.cloud.google.com/tpu/docs/v5e, /v5p and /v6e ("key specifications"; links and networks in Gbit/s). The
# network is 2 x 100 and 4 x 200 Gbit/s for the eight chips of a host of v5e and v6e, 50 Gbit/s a chip of v5p.
TPUS = {
    "v5e": Chip(197e12, 819e9, 1600e9 / 8, 16, 25e9 / 8),
    "v5p": Chip(459e12, 2765e9, 4800e9 / 8, 95, 50e9 / 8),
    "v6e": Chip(918e12, 1600e9, 3200e9 / 8, 32, 100e9 / 8),
}
# NVIDIA's data sheets of the SXM forms (dense operations; NVLink, half of both ways).
GPUS = {
    "a100": Chip(312e12, 2039e9, 300e9, 80),
    "h100": Chip(989e12, 3350e9, 450e9, 80),
    "h200": Chip(989e12, 4800e9, 450e9, 141),
}
CHIPS = TPUS | GPUS


def gpu_hosts(topology: str) -> tuple[int, int] | None:
    """Reads `h100:4` (hosts of 8 GPUs) or `h100:4x2` (hosts x GPUs of each); None where it names no GPU.

    Raises `UserError` where it is not of this form.
    """
    name, _, sizes = topology.partition(":")
    if name not in GPUS:
        return None
    if not (match := re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", sizes)):
        raise UserError(f"--topology '{topology}': write GPU hosts as {name}:4, or {name}:4x2 for hosts of 2 GPUs")
    return int(match[1]), int(match[2] or 8)


def find_libtpu(given: str, env: Mapping[str, str] = os.environ) -> Path:
    """Returns libtpu.so in the folder `given` (or `FI_JAX_LIBTPU`, or where it is installed), or that file itself.

    Raises `UserError`.
    """
    # Not `find_spec`, which does not see a package that the command line hides from JAX.
    installed = PathFinder.find_spec("libtpu")
    named = (
        given or env.get(VARIABLE, "") or (str(Path(installed.origin).parent) if installed and installed.origin else "")
    )
    for path in (Path(named, "libtpu", "libtpu.so"), Path(named, "libtpu.so"), Path(named)):
        if named and path.is_file():
            return path
    where = f"'{named}' has no libtpu.so" if named else f"neither --libtpu nor {VARIABLE} says where libtpu is"
    raise UserError(f"{where}; {INSTALL}")


def topology_devices(topology: str, libtpu: Path, most: int) -> list[Any]:
    """Returns the devices of a topology, as in `v5e:4x4`, or of several slices of it, `v5e:4x4*2`.

    Raises `UserError` where libtpu knows none of this name, or it has more than `most` chips (of millions, libtpu thinks
    for hours).
    """
    form = "write it as v5e:4x4, slices as v5e:4x4*2, GPU hosts as h100:4"
    if not (match := re.fullmatch(r"((\w+):(\d+(?:x\d+)*)\w*)(?:\*([1-9]\d*))?", topology)):
        raise UserError(f"'{topology}' is no topology; {form}")
    name, kind, sizes, slices = match.groups()
    in_slice = math.prod(map(int, sizes.split("x")))
    if (chips := in_slice * int(slices or 1)) > most:
        raise UserError(f"the mesh multiplies to {most} but {topology} has {chips} chips")
    options: dict[str, Any] = {"num_slices": int(slices)} if slices else {}
    if in_slice == 1:
        # A host has four chips, unless it is said.
        options["chips_per_host_bounds"] = (1, 1, 1)
    if kind == "v4":
        # Two cores are one device, as JAX has it on v4 and, without being told, here on v5p.
        options["chip_config_name"] = "megacore"
    os.environ |= {
        "TPU_LIBRARY_PATH": str(libtpu),
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        # No chip is taken, so two plans may be made at once.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(name, platform="tpu", **options).devices)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        if "INVALID_ARGUMENT" in reason:
            raise UserError(f"libtpu knows no topology '{topology}' ({reason}); {form}") from error
        raise UserError(f"{libtpu} cannot be used ({reason}); install it anew: {INSTALL}") from error


def count_flops(jaxpr: Any) -> float:
    """Operations of all matrix products of a traced function, loops and kernels counted as often as they run."""
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2.0 * inner * math.prod(equation.outvars[0].aval.shape)
        repeat = 1
        if name == "scan":
            repeat = params["length"]
        elif name == "pallas_call":
            repeat = math.prod(params["grid_mapping"].grid)
        elif name == "shard_map":
            # What it holds is one device's.
            repeat = params["mesh"].size
        for inside in jaxprs_in_params(params):
            total += repeat * count_flops(inside)
    return total


def tpu_facts(topology: str, flops: float, stats: Any, sent: list[Collective]) -> dict[str, Any]:
    """What the compiler says of one program on each chip: `memory` in bytes, `flops` of its matrix products, `roofline`.

    `flops` are those of a chip, `stats` the program's `memory_analysis`. The roofline is the seconds that a step takes at
    least, by what limits it: every operation at the peak, arguments and results through memory once, collectives at the
    speed of all links, those between slices at that of the network. None of them can be had in practice.
    """
    memory = {
        "arguments": stats.argument_size_in_bytes,
        "results": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "temporary": stats.temp_size_in_bytes,
        "program": stats.generated_code_size_in_bytes,
    }
    memory["all"] = sum(memory.values())
    chip = CHIPS.get(topology.partition(":")[0])
    limits = {}
    if chip is not None:
        moved = stats.argument_size_in_bytes + stats.output_size_in_bytes
        inside, between = (
            sum(one.bytes for one in sent if one.kind.endswith(BETWEEN_SLICES) is away) for away in (False, True)
        )
        limits = {"compute_s": flops / chip.flops, "memory_s": moved / chip.hbm, "links_s": inside / chip.links}
        if between:
            limits["network_s"] = between / chip.network
    return {"topology": topology, "memory": memory, "flops": flops, "roofline": limits}


def too_large(topology: str, error: Exception) -> dict[str, Any]:
    """What libtpu says of a program that it cannot place in a chip's memory, as `tpu_facts`. Other errors are raised."""
    needed = re.search(r"HLO temporaries \(([\d.]+)([KMG])\)|Used ([\d.]+)([KMG]) of", text := str(error))
    if "RESOURCE_EXHAUSTED" not in text or needed is None:
        raise error
    size, unit = (group for group in needed.groups() if group)
    held = float(size) * 1024 ** ("KMG".index(unit) + 1)
    return {"topology": topology, "memory": {"temporary": held, "all": held}, "flops": 0.0, "roofline": {}}


def gpu_facts(topology: str, flops: float, sent: list[Collective], mesh: Mapping[str, int]) -> dict[str, Any]:
    """The operations of one program on each GPU, and the seconds that they and what is sent take at least.

    Links are those within a host; `between_hosts` names the mesh axes that leave it, whose network is not known here.
    """
    chip, (_, inside) = CHIPS[topology.partition(":")[0]], gpu_hosts(topology) or (1, 1)
    # Devices are numbered host by host, the last axis fastest.
    strides = {axis: math.prod(list(mesh.values())[i + 1 :]) for i, axis in enumerate(mesh)}
    leaving = [axis for axis, size in mesh.items() if size > 1 and strides[axis] * size > inside]
    limits = {"compute_s": flops / chip.flops, "links_s": sum(one.bytes for one in sent) / chip.links}
    return {"topology": topology, "flops": flops, "roofline": limits, "between_hosts": leaving}
