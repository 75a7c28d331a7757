"""Say what a training run needs on each device of a mesh, before anyone pays for it.

Memory is an analytic model; collectives are read from the step compiled for as many virtual CPU devices, from shapes
alone. With --topology the TPU's own compiler (libtpu) compiles the step for that topology, and says what a chip holds;
of GPU hosts it says which axes of the mesh leave a host.
No weights, data or accelerators are needed.

  fi-jax plan 7b --mesh fsdp=4 --memory-gib 80
  fi-jax plan 7b --mesh fsdp=16 --topology v5e:4x4 --train.accumulate 1 --libtpu DIR
  fi-jax plan 7b --mesh data=4,fsdp=8 --topology h100:4 --data.batch-size 128
"""

import argparse
import math
import os
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fi_jax.config import Experiment

TAKES_OVERRIDES = True
# As many chips as the largest TPU job has; more virtual CPU devices take minutes to make.
MOST_DEVICES = 8192


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments; dotted overrides are left to the config."""
    parser.add_argument("config", help="a file, or a name under configs/")
    parser.add_argument(
        "--mesh", default="", help="devices along each axis, as in data=8,fsdp=4,tensor=2 (default: 1 each)"
    )
    parser.add_argument(
        "--memory-gib", type=float, default=0.0, help="memory of one device; with it, exit 1 when it does not fit"
    )
    parser.add_argument("--faces", type=int, default=1, help="faces at once in inference, for the KV cache (default 1)")
    parser.add_argument(
        "--topology",
        type=str.lower,
        default="",
        help="TPUs to compile for, as in v5e:4x4, or v5e:4x4*2 for two slices; or GPU hosts (of 8), as in h100:4",
    )
    parser.add_argument("--work", choices=("train", "score"), default="train", help="what to compile (default: train)")
    parser.add_argument(
        "--libtpu", default="", metavar="DIR", help="where libtpu is (default: FI_JAX_LIBTPU, or installed)"
    )
    parser.add_argument("--no-compile", action="store_true", help="leave the collectives out")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the plan; exit 1 when it does not fit."""
    from fi_jax.cli.configs import load_config
    from fi_jax.errors import UserError

    config = load_config(args.config, args.overrides)
    if any(flag.startswith("--mesh.") for flag in args.overrides):
        raise UserError("plan takes the mesh as --mesh data=2,fsdp=1,tensor=1")
    mesh = read_mesh(args.mesh)
    devices = math.prod(mesh.values())
    # XLA warns of every reshard; the plan counts them.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import jax

    from fi_jax.labels.question_bank import questions_for
    from fi_jax.labels.schema import find_vocabulary
    from fi_jax.parallel.mesh import check_batch
    from fi_jax.parallel.report import Facts, Request, render, report
    from fi_jax.parallel.topology import CHIPS, gpu_hosts
    from fi_jax.training.abstract import split_shapes

    hosts = gpu_hosts(args.topology)
    if hosts and math.prod(hosts) != devices:
        raise UserError(f"the mesh multiplies to {devices} but {args.topology} has {math.prod(hosts)} GPUs")
    if args.topology and not hosts and args.no_compile:
        raise UserError("--topology compiles the step for TPUs; leave --no-compile out")
    if devices > MOST_DEVICES and not args.no_compile:
        raise UserError(
            f"the mesh multiplies to {devices}; programs are compiled for {MOST_DEVICES} devices at most, "
            "--no-compile plans memory alone"
        )
    # Before the first use of JAX: no accelerator is touched.
    jax.config.update("jax_platforms", "cpu")
    accumulate = config.train.accumulate if args.work == "train" else 1
    check_batch(config.data.batch_size, accumulate, mesh)
    sent, chip, spent = (None, None, None) if args.no_compile else _compile(args, config, mesh)
    labels = find_vocabulary(config.data.vocabulary, config.data.schemas)
    known = CHIPS.get(args.topology.partition(":")[0])
    memory = args.memory_gib or (known.memory_gib if known else 0.0)
    facts = Facts(*split_shapes(config), len(labels), len(questions_for(labels)), sent, chip, spent)
    made = report(Request(config, mesh, memory, args.faces, args.work), facts)
    print(render(made, as_json=args.json))
    return int(made["fits"] is False)


def _compile(args: argparse.Namespace, config: "Experiment", mesh: dict[str, int]) -> tuple[Any, Any, float]:
    """Compiles the work for the topology, or for virtual CPU devices: what it sends, what a chip holds, processor seconds.

    What a chip holds is None where no topology is asked for, what is sent where the program has no place on the chip.
    """
    import jax

    from fi_jax.config import MeshConfig
    from fi_jax.parallel.collectives import collectives
    from fi_jax.parallel.mesh import make_mesh
    from fi_jax.parallel.topology import (
        count_flops,
        find_libtpu,
        gpu_facts,
        gpu_hosts,
        too_large,
        topology_devices,
        tpu_facts,
    )
    from fi_jax.training.abstract import trace_answers, trace_step

    count, tpu = math.prod(mesh.values()), args.topology and not gpu_hosts(args.topology)
    devices = None
    if tpu:
        devices = topology_devices(args.topology, find_libtpu(args.libtpu), count)
    else:
        jax.config.update("jax_num_cpu_devices", count)
    placed = make_mesh(MeshConfig(**mesh), devices)
    print(f"compiling {args.work} of {config.name} for {count} devices, which takes minutes", file=sys.stderr)
    start = time.process_time()
    traced = {"train": trace_step, "score": trace_answers}[args.work](config, placed)
    sent = chip = None
    try:
        compiled = traced.lower().compile()
        sent = collectives(compiled.as_text(), mesh)
        flops = count_flops(traced.jaxpr) / count
        if tpu:
            chip = tpu_facts(args.topology, flops, compiled.memory_analysis(), sent)
        elif args.topology:
            chip = gpu_facts(args.topology, flops, sent, mesh)
    except jax.errors.JaxRuntimeError as error:
        chip = too_large(args.topology, error)
    return sent, chip, time.process_time() - start


def read_mesh(text: str) -> dict[str, int]:
    """Reads `data=8,fsdp=4`; axes that are not named have size 1. Raises `UserError`."""
    from fi_jax.errors import UserError, require_choice
    from fi_jax.parallel.mesh import AXES

    mesh: dict[str, int] = {}
    for part in filter(None, text.split(",")):
        axis, equals, size = (word.strip() for word in part.partition("="))
        require_choice("mesh axis", axis, AXES)
        if axis in mesh:
            raise UserError(f"--mesh '{text}' names {axis} twice")
        if not equals or not size.isdecimal() or int(size) < 1:
            raise UserError(f"--mesh '{part}': write axis=size with a positive whole number, as in data=8,fsdp=4")
        mesh[axis] = int(size)
    return {axis: mesh.get(axis, 1) for axis in AXES}
