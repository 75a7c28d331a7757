"""Training on one device, then on N with the batch cut over them (`data`), then with the parameters cut too (`fsdp`).

    python benchmarks/scaling.py                    # 7b, 8 faces a device, remat "dots", two GPUs
    XLA_FLAGS=--xla_force_host_platform_device_count=2 python benchmarks/scaling.py --small    # anywhere; not a speed

Every measurement is a `fi-jax bench` of its own. One device is chosen by the mesh, not by hiding the others: `bench`
without --mesh.* runs on the first visible one. Efficiency is tokens/s of N devices / (N · tokens/s of one), at the same
batch a device. JSON is printed last; the exit status is 1 when a measurement failed. --what score40 has no fsdp in
use: it cuts the batch alone. Virtual CPU devices share the cores, so --small shows only that it runs.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence

MESHES = ("data", "fsdp")


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="7b")
    parser.add_argument("--what", default="train", choices=("train", "train40", "score40"))
    parser.add_argument("--batch", type=int, default=8, help="faces a device (default 8)")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--meshes", default=",".join(MESHES), help="axes to cut over, in turn (default: data,fsdp)")
    parser.add_argument("--remat", default="dots")
    parser.add_argument("--attention", default="", help="flash or xla (default: as fi-jax bench)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="the same structure with tiny sizes")
    args = parser.parse_args(argv)
    lines = [bench(args, args.batch, "")]
    for axis in args.meshes.split(","):
        lines.append(bench(args, args.devices * args.batch, axis))
    return report(lines)


def bench(args: argparse.Namespace, batch: int, axis: str) -> dict:
    """One line of `fi-jax bench` with `batch` faces in all, on one device or with mesh axis `axis` over all."""
    command = [sys.executable, "-m", "fi_jax", "bench", args.config, "--what", args.what, "--batch", str(batch)]
    command += ["--remat", args.remat, "--repeats", str(args.repeats)] + ["--small"] * args.small
    command += ["--attention", args.attention] * bool(args.attention)
    command += [f"--mesh.{axis}", str(args.devices)] * bool(axis)
    print(" ".join(command[1:]), flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    printed = [line for line in done.stdout.splitlines() if line.startswith("{")]
    line = json.loads(printed[-1]) if printed else {"error": f"exit status {done.returncode}"}
    print(json.dumps(line), flush=True)
    return line


def report(lines: Sequence[dict]) -> int:
    """Prints a table and the JSON line; the first of `lines` is the one device that the others are compared with."""
    one = rate(lines[0])
    rows = []
    print(f"{'mesh':26}{'batch':>6}{'s':>10}{'rate':>12}{'efficiency':>12}{'peak GiB':>10}")
    for line in lines:
        if "error" in line:
            rows.append({"error": line["error"]})
            print(f"{line.get('mesh', 'failed'):26}{line['error'][:60]}")
            continue
        efficiency = rate(line) / (line["devices"] * one) if one else None
        row = {
            key: line.get(key) for key in ("mesh", "devices", "batch", "s", "peak_gib", "planned_gib", "collectives")
        }
        rows.append(row | {"rate": rate(line), "efficiency": efficiency and round(efficiency, 3)})
        shown = "-" if efficiency is None else f"{efficiency:.3f}"
        print(
            f"{line['mesh']:26}{line['batch']:6}{line['s']:10.4f}{rate(line):12.1f}{shown:>12}{line['peak_gib'] or 0:10}"
        )
    named = {key: lines[0].get(key) for key in ("what", "config", "small", "remat", "attention", "device", "jax")}
    print(json.dumps(named | {"rows": rows}), flush=True)
    return int(any("error" in line for line in lines))


def rate(line: dict) -> float:
    """Tokens a second of all devices together (pairs a second where scoring counts those); 0 for a failure."""
    return line.get("tokens_s") or line.get("pairs_s") or 0.0


if __name__ == "__main__":
    raise SystemExit(main())
