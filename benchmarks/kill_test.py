"""Kills a training run again and again, at random moments, with kill −9, and compares it with an undisturbed run.

    python benchmarks/kill_test.py --kills 20                     one process
    python benchmarks/kill_test.py --kills 20 --processes 2,1     two processes, then one, and so on in turn

Each start resumes by itself; a random one of its processes is killed at a random moment (also while starting and while
saving). With an unchanging number of processes the log and the weights must be the undisturbed run's bit for bit;
otherwise sums are taken in another order and the final metrics must agree to `--tolerance`. Exit 1 when they do not.
"""

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
# Seconds to wait for all processes at a start.
CONNECT = 30
# The alignment head over frozen encoders: seconds a run, and every part that saves and resumes is in it.
DEFAULT = ["tiny", "--train.stage", "align", "--train.trainable", "knowledge/.*", "head/.*"]


def start(command: list[str], processes: int, folder: Path, heartbeat: int) -> list[subprocess.Popen]:
    """Starts the processes of one run; their output goes to `folder`/log."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    if processes > 1:
        common["FI_JAX_COORDINATOR"] = f"127.0.0.1:{port}"
        common["FI_JAX_NUM_PROCESSES"] = str(processes)
        common["FI_JAX_HEARTBEAT_SECONDS"] = str(heartbeat)
        # Who is killed before it joined is waited for as long as this: launchers end the others sooner.
        common["FI_JAX_CONNECT_SECONDS"] = str(CONNECT)
    with (folder / "log").open("ab") as log:
        return [
            subprocess.Popen(command, env={**common, "FI_JAX_PROCESS_ID": str(i)}, stdout=log, stderr=log)
            for i in range(processes)
        ]


def last_step(run: Path) -> int:
    """The last step in the run's log; 0 when there is none."""
    try:
        return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    except (FileNotFoundError, IndexError, json.JSONDecodeError):
        return 0


def kill_once(running: list[subprocess.Popen], run: Path, stride: int, rng: random.Random) -> bool:
    """Kills one process after a random number of steps (or seconds, early on); False when the run ended before."""
    begin, begin_step = time.monotonic(), last_step(run)
    # One in five dies while it starts, before it has done anything.
    wanted = 0 if rng.random() < 0.2 else rng.randint(1, stride)
    patience = rng.uniform(0.1, 5.0) if wanted == 0 else 300.0
    while last_step(run) < begin_step + max(wanted, 1) and time.monotonic() - begin < patience:
        if any(process.poll() is not None for process in running):
            break
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.3))
    victim = rng.choice(running)
    if victim.poll() is not None:
        return False
    victim.kill()
    return True


def finish(running: list[subprocess.Popen], limit: float) -> list[int]:
    """Waits for all processes; one that outlives a dead one by `limit` seconds is an error of ours."""
    deadline = time.monotonic() + limit
    for process in running:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            for left in running:
                left.kill()
            raise SystemExit(f"a process outlived a dead one by {limit:g} s") from None
    return [process.returncode for process in running]


def whole_run(command: list[str], processes: int, folder: Path, heartbeat: int) -> None:
    """Runs to the end, undisturbed."""
    codes = finish(start(command, processes, folder, heartbeat), 3600)
    if any(codes):
        raise SystemExit(f"a run ended with {codes}:\n{(folder / 'log').read_text()[-3000:]}")


def compare(whole: Path, cut: Path, tolerance: float) -> list[str]:
    """What differs between two runs: their logs line by line and their weights; `tolerance` 0 is bit for bit."""
    from safetensors.numpy import load_file

    wrong = []
    ours, theirs = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (cut, whole)
    )
    if [line["step"] for line in ours] != [line["step"] for line in theirs]:
        wrong.append("the logs have other steps")
    else:
        lines = zip(ours, theirs) if tolerance == 0 else [(ours[-1], theirs[-1])]
        for a, b in lines:
            for name, value in b.items():
                if not np.isclose(a[name], value, rtol=tolerance, atol=tolerance):
                    wrong.append(f"step {b['step']}: {name} is {a[name]}, undisturbed {value}")
    left, right = (load_file(run / "model" / "weights.safetensors") for run in (cut, whole))
    for name, leaf in right.items():
        # Adam divides by what may be almost nothing: weights agree less closely than metrics.
        if not np.allclose(left[name], leaf, rtol=0, atol=100 * tolerance):
            wrong.append(f"weights '{name}' differ by {np.abs(left[name] - leaf).max():.2g}")
    return wrong


def main(argv: list[str] | None = None) -> int:
    """Runs the test; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", default="1", help="processes of each start, in turn, as in 2,1")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--every", type=int, default=7, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--heartbeat", type=int, default=10, help="seconds until a dead process is noticed")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="where the number of processes changes")
    parser.add_argument("--folder", type=Path, help="keep the runs here (default: a temporary folder)")
    parser.add_argument("config", nargs="*", help=f"config and flags after -- (default: {' '.join(DEFAULT)})")
    args = parser.parse_args(argv)
    counts = [int(count) for count in args.processes.split(",")]
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        flags = [
            "--train.steps",
            str(args.steps),
            "--train.checkpoint-every",
            str(args.every),
            "--train.log-every",
            "1",
        ]
        base = [sys.executable, "-m", "fi_jax", "train", *(args.config or DEFAULT), "--runs", str(folder), *flags]
        whole_run([*base, "--name", "whole"], counts[0], folder, args.heartbeat)
        kills = starts = 0
        cut, slowest = folder / "cut", 0.0
        while kills < args.kills:
            running = start([*base, "--name", "cut"], counts[starts % len(counts)], folder, args.heartbeat)
            starts += 1
            if not kill_once(running, cut, max(1, 2 * args.steps // args.kills), rng):
                print(f"the run ended after {kills} kills; give it more --steps", flush=True)
                finish(running, 600)
                break
            kills += 1
            begin = time.monotonic()
            codes = finish(running, max(args.heartbeat, CONNECT) + 30)
            slowest = max(slowest, time.monotonic() - begin)
            print(f"kill {kills}: at step {last_step(cut)}, all ended within {slowest:.1f} s ({codes})", flush=True)
        whole_run([*base, "--name", "cut"], counts[starts % len(counts)], folder, args.heartbeat)
        wrong = compare(folder / "whole", cut, 0.0 if len(set(counts)) == 1 else args.tolerance)
        for line in wrong[:10]:
            print(f"differs: {line}")
        print(
            f"{kills} kills in {starts + 1} starts: {'the same result' if not wrong else f'{len(wrong)} differences'}"
        )
        return int(bool(wrong) or kills < args.kills)


if __name__ == "__main__":
    raise SystemExit(main())
