"""Training on one device, then on several: the batch cut over them (`data`), the parameters too (`fsdp`), the heads (`tensor`).

    python benchmarks/scaling.py                                             # 7b, 8 faces a device, all devices there are
    python benchmarks/scaling.py --devices 2,4,8 --precisions bf16,fp8 --meshes data,fsdp,data+fsdp
    XLA_FLAGS=--xla_force_host_platform_device_count=8 python benchmarks/scaling.py --devices 8 --small    # not a speed

Every measurement is a `fi-jax bench` of its own. One device is chosen by the mesh, not by hiding the others: `bench`
without --mesh.* runs on the first visible one. `data+fsdp` puts two along `data` and the others along `fsdp`. Efficiency is the rate
of N devices / (N · the rate of one in the same precision), at the same batch a device; with `tensor` alone the batch is
one device's. A Markdown table and one line of JSON are printed last; the exit status is 1 when a measurement failed.
Virtual CPU devices share the cores, so --small shows only that it runs.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence

MESHES = ("data", "fsdp", "tensor", "data+fsdp", "data+tensor")
COLUMNS = ("precision", "devices", "mesh", "batch", "s", "rate", "efficiency", "peak GiB", "sent MiB a device")


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="7b")
    parser.add_argument("--what", default="train", choices=("train", "train40", "score40"))
    parser.add_argument("--batch", type=int, default=8, help="faces a device (default 8)")
    parser.add_argument("--devices", default="2", help="how many, comma-separated (default 2)")
    parser.add_argument("--meshes", default="data,fsdp", help=f"of {', '.join(MESHES)} (default: data,fsdp)")
    parser.add_argument("--precisions", default="bf16", help="of bf16, fp8, int8 (default: bf16)")
    parser.add_argument("--remat", default="dots")
    parser.add_argument("--attention", default="", help="flash or xla (default: as fi-jax bench)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="the same structure with tiny sizes")
    args = parser.parse_args(argv)
    meshes = args.meshes.split(",")
    if unknown := set(meshes) - set(MESHES):
        parser.error(f"--meshes: {', '.join(sorted(unknown))} is none of {', '.join(MESHES)}")
    rows = []
    for precision in args.precisions.split(","):
        one = bench(args, precision, {})
        rows.append(row(precision, one, one))
        for devices in map(int, args.devices.split(",")):
            for mesh in meshes:
                rows.append(row(precision, bench(args, precision, axis_sizes(mesh, devices)), one))
    return report(rows)


def axis_sizes(mesh: str, devices: int) -> dict[str, int]:
    """Devices along each axis: all along one axis, or two along the first and the others along the second."""
    axes = mesh.split("+")
    return {axes[0]: devices} if len(axes) == 1 else {axes[0]: 2, axes[1]: devices // 2}


def bench(args: argparse.Namespace, precision: str, sizes: dict[str, int]) -> dict:
    """One line of `fi-jax bench` on these axes: `args.batch` faces for each device that has faces of its own."""
    batch = args.batch * sizes.get("data", 1) * sizes.get("fsdp", 1)
    command = [sys.executable, "-m", "fi_jax", "bench", args.config, "--what", args.what, "--batch", str(batch)]
    command += ["--remat", args.remat, "--repeats", str(args.repeats)] + ["--small"] * args.small
    command += ["--attention", args.attention] * bool(args.attention)
    command += ["--model.frozen-precision", precision]
    for axis, size in sizes.items():
        command += [f"--mesh.{axis}", str(size)]
    print(" ".join(command[1:]), flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    printed = [line for line in done.stdout.splitlines() if line.startswith("{")]
    line = json.loads(printed[-1]) if printed else {"error": f"exit status {done.returncode}"}
    print(json.dumps(line), flush=True)
    return line | {"asked": "+".join(f"{axis}={size}" for axis, size in sizes.items()) or "one device"}


def row(precision: str, line: dict, one: dict) -> dict:
    """A row of the table; `one` is the line of one device that the others are compared with."""
    if "error" in line:
        return {"precision": precision, "mesh": line["asked"], "error": line["error"][:80]}
    sent = sum(kind["mib"] for kind in line.get("collectives", {}).values())
    efficiency = rate(line) / (line["devices"] * rate(one)) if rate(one) else None
    figures = (precision, line["devices"], line["asked"], line["batch"], line["s"], rate(line))
    rounded = (efficiency and round(efficiency, 3), line["peak_gib"], round(sent))
    return dict(zip(COLUMNS, (*figures, *rounded), strict=True)) | {"device": line["device"]}


def rate(line: dict) -> float:
    """Tokens a second of all devices together (pairs a second where scoring counts those); 0 for a failure."""
    return line.get("tokens_s") or line.get("pairs_s") or 0.0


def report(rows: Sequence[dict]) -> int:
    """Prints the Markdown table and the JSON line; returns the exit status."""
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    for one in rows:
        cells = [one["precision"], one["mesh"], one["error"]] if "error" in one else [one[name] for name in COLUMNS]
        print(f"| {' | '.join('-' if cell is None else str(cell) for cell in cells)} |")
    print(json.dumps({"rows": rows}), flush=True)
    return int(any("error" in one for one in rows))


if __name__ == "__main__":
    raise SystemExit(main())
