"""Measure speed and memory of training, scoring and decoding on this machine, with random weights.

Prints one JSON line a measurement. Each runs in a process of its own, so that its peak memory is its own.
`fi-jax bench 7b --what train --batch 16 --remat dots`; `fi-jax bench 7b --small` takes seconds anywhere.

One device is measured, however many there are: an axis of the config's mesh that is -1 counts as 1. `--mesh.data 2` or
`--mesh.fsdp 2` runs training and scoring on the first two devices, --batch being the batch of all devices together.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

from fi_jax.errors import UserError, require_choice

TAKES_OVERRIDES = True

# Name → faces (or questions) at once when --batch does not say.
WHAT = {
    "train": 16,
    "train40": 4,
    "score40": 4,
    "decode1": 1,
    "decode32": 32,
    "decode_shared": 32,
    "compile": 16,
}

# What runs on a mesh; decoding runs on one device.
ON_MESH = ("train", "train40", "score40", "compile")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments; dotted overrides are left to the config."""
    parser.add_argument("config", nargs="?", default="7b", help="a file, or a name under configs/ (default: 7b)")
    parser.add_argument("--what", default=",".join(WHAT), help=f"comma-separated (default: {','.join(WHAT)})")
    parser.add_argument("--batch", default="", help="faces at once (questions, for decode_shared), comma-separated")
    parser.add_argument("--remat", default="", help="full, dots, none; comma-separated (default: the config's)")
    parser.add_argument("--attention", default="", help="flash or xla (default: flash on an NVIDIA GPU, else xla)")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of which the median is taken (default: 5)")
    parser.add_argument("--small", action="store_true", help="the same structure with tiny sizes")
    parser.add_argument(
        "--together", action="store_true", help="one process for all: quicker, peaks are the largest so far"
    )


def run(args: argparse.Namespace) -> int:
    """Measures; a measurement that fails is a line with `error`, and the exit status is then 1."""
    wanted = args.what.split(",")
    for what in wanted:
        require_choice("--what", what, WHAT)
    from fi_jax.cli.configs import load_config

    config = load_config(args.config, args.overrides)
    alone = [what for what in wanted if what not in ON_MESH]
    if alone and max(1, config.mesh.data) * config.mesh.fsdp * config.mesh.tensor > 1:
        raise UserError(f"{alone[0]} runs on one device; leave --mesh.* out, or measure --what {','.join(ON_MESH)}")
    if args.repeats < 1:
        raise UserError(f"--repeats is {args.repeats}; it must be at least 1")
    points = [
        (what, batch, remat)
        for what in wanted
        for batch in (_numbers(args.batch) or [WHAT[what]])
        for remat in (args.remat.split(",") if what in ("train", "train40", "compile") else [""])
    ]
    # Most of the device's memory is ours: the default share would refuse the largest batches.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    here = args.together or len(points) == 1
    failed = False
    for what, batch, remat in points:
        if what == "compile":
            ok = _compile(args, batch, remat)
        elif here:
            ok = _measure(args, what, batch, remat)
        else:
            ok = subprocess.run(_command(args, what, batch, remat), check=False).returncode == 0
        failed |= not ok
    return int(failed)


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(word) for word in text.split(",") if word]
    except ValueError as error:
        raise UserError(f"--batch '{text}' is not numbers; write it like 8,16") from error
    if any(number < 1 for number in numbers):
        raise UserError(f"--batch '{text}': every number must be at least 1")
    return numbers


def _command(args: argparse.Namespace, what: str, batch: int, remat: str, repeats: int = 0) -> list[str]:
    command = [sys.executable, "-m", "fi_jax", "bench", args.config, "--what", what, "--batch", str(batch)]
    command += ["--remat", remat] * bool(remat) + ["--attention", args.attention] * bool(args.attention)
    command += ["--small"] * args.small
    return [*command, "--repeats", str(repeats or args.repeats), *args.overrides]


def _compile(args: argparse.Namespace, batch: int, remat: str) -> bool:
    """Compiles the training step with an empty cache and again with what the first one left."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            done = subprocess.run(
                _command(args, "train", batch, remat, repeats=1),
                env=os.environ | {"FI_JAX_CACHE": folder},
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
            lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
            line = json.loads(lines[-1]) if lines else {"error": f"exit status {done.returncode}"}
            if "error" in line:
                return _say({"what": "compile", "batch": batch, "error": line["error"]})
            seconds.append(line["compile_s"])
    cold, cached = seconds
    kept = {key: line[key] for key in ("config", "batch", "remat", "attention", "devices", "mesh", "device", "jax")}
    return _say({"what": "compile", **kept, "cold_s": cold, "cached_s": cached})


def _measure(args: argparse.Namespace, what: str, batch: int, remat: str) -> bool:
    line = {"what": what, "config": args.config, "small": args.small, "batch": batch}
    try:
        return _say(line | _measured(args, what, batch, remat))
    except Exception as error:  # Out of memory or a missing kernel is a result: the next measurement still runs.
        text = str(error).strip().splitlines() or [""]
        return _say(line | {"remat": remat, "error": f"{type(error).__name__}: {text[0][:300]}"})


def _measured(args: argparse.Namespace, what: str, batch: int, remat: str) -> dict:
    from dataclasses import replace
    from typing import cast

    from fi_jax.cli.configs import load_config
    from fi_jax.cli.runtime import start

    config = load_config(args.config, args.overrides)
    start()
    import jax

    from fi_jax.benchmarks import inference, training
    from fi_jax.benchmarks.case import Case, mesh_of, small
    from fi_jax.benchmarks.measure import machine
    from fi_jax.models.attention import Implementation
    from fi_jax.models.llm import Remat

    attention: Implementation = args.attention or ("flash" if jax.default_backend() == "gpu" else "xla")
    # The config says so if it is no such policy.
    policy = cast(Remat, remat) if remat else config.model.remat
    config = replace(config, model=replace(config.model, attention=attention, remat=policy))
    config = small(config) if args.small else config
    if jax.default_backend() == "cpu":
        # XLA's CPU backend lacks some bfloat16 products and is slow at the others.
        config = replace(config, model=replace(config.model, dtype="float32"))
    case = Case(config, batch, args.repeats)
    if what in ("train", "train40"):
        measured = {"train": training.train, "train40": training.train40}[what](case)
    elif what == "score40":
        measured = inference.score40(case)
    else:
        decode = inference.decode_shared if what == "decode_shared" else inference.decode_faces
        measured = decode(case)
    mesh = mesh_of(config)
    shape = ",".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    return measured | {"dtype": config.model.dtype, "devices": mesh.size, "mesh": shape} | machine()


def _say(line: dict) -> bool:
    print(json.dumps({k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in line.items()}), flush=True)
    return "error" not in line
