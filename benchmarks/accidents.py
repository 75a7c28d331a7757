"""Accidents of a training run, again and again: each must end in one line, and what follows must be the undisturbed run.

    python benchmarks/accidents.py full-disk --times 5             the disk fills at random moments of a run
    python benchmarks/accidents.py changed-data                    files removed, added, replaced, relabelled, moved
    python benchmarks/accidents.py damaged-checkpoint --times 60   files of the last checkpoint flipped, cut, emptied, …

The run is `tiny`'s alignment head on 48 drawn faces, saved every 5 of 20 steps. Exit 1 when something was lost, hung,
or ended otherwise. `full-disk` mounts a small disk of its own, for which it needs to be root or `unshare -rm`.
"""

import argparse
import contextlib
import io
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from kill_test import compare

from fi_jax.cli.main import main as fi_jax
from fi_jax.data.datasets import open_source

STEPS, HALF = 20, 10


def draw_faces(root: Path, count: int = 48) -> None:
    """Writes drawn faces under the names that UTKFace gives its files: age, gender, race."""
    (root / "UTKFace").mkdir(parents=True)
    for i, record in enumerate(open_source("synthetic_faces", f"count={count}").records("all")):
        name = f"{round(record.age or 30)}_{i % 2}_{i % 5}_201701161745{i:05d}.jpg.chip.jpg"
        (root / "UTKFace" / name).write_bytes(record.image.read_bytes())


def command(data: Path, runs: Path) -> list[str]:
    """The arguments of the run."""
    return [
        *("train", "tiny", "--name", "run", "--runs", str(runs), "--train.stage", "align"),
        *("--data.vocabulary", "utkface", "--data.sources.0.name", "utkface", "--data.sources.0.root", str(data)),
        *("--model.no-use-segmentation", "--train.trainable", "knowledge/.*", "head/.*", "--train.steps", str(STEPS)),
        *("--train.checkpoint-every", "5", "--train.keep-checkpoints", "4"),
    ]


def here(arguments: list[str]) -> tuple[int, str]:
    """Runs a command in this process; returns its status and what it said on stderr."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = fi_jax(arguments)
    return status, said.getvalue()


def refused(status: int, said: str, words: str) -> str:
    """What is wrong with a refusal: it is status 2 and one line that has some words."""
    lines = said.strip().splitlines()
    good = status == 2 and words in said and "Traceback" not in said and lines[-1].startswith("fi-jax: ")
    return "" if good else f"status {status}: {said[-500:]}"


def resumed(data: Path, runs: Path, whole: Path) -> list[str]:
    """Goes on with a run; says what differs from the undisturbed one."""
    status, said = here(command(data, runs))
    return [said[-500:]] if status else compare(whole / "run", runs / "run", 0.0)


def changed_data(work: Path, whole: Path, half: Path, data: Path) -> list[str]:
    """Changes the faces under a run that was stopped, in six ways."""
    files = sorted((data / "UTKFace").iterdir())
    one, other = files[3], files[4]
    changes = {
        "removed": lambda root: (root / one.name).unlink(),
        "added": lambda root: shutil.copy(other, root / one.name.replace("_2017", "_2018")),
        "replaced": lambda root: shutil.copy(other, root / one.name),
        "one byte replaced": lambda root: (root / one.name).write_bytes(one.read_bytes()[:-1] + b"\0"),
        "relabelled": lambda root: (root / one.name).rename(root / f"9{one.name}"),
    }
    wrong, runs = [], work / "changed"
    for name, change in changes.items():
        shutil.copytree(half, runs / name)
        shutil.copytree(data, work / name)
        change(work / name / "UTKFace")
        problem = refused(*here(command(work / name, runs / name)), "--accept-changed-data")
        print(f"{name}: {problem or 'refused by name'}", flush=True)
        wrong += [problem] if problem else []
    shutil.copytree(half, runs / "moved")
    shutil.copytree(data, work / "moved")
    differs = resumed(work / "moved", runs / "moved", whole)
    print(f"the same faces in another folder: {differs or 'resumed, bit for bit'}", flush=True)
    return wrong + differs


def damaged_checkpoint(work: Path, whole: Path, half: Path, data: Path, times: int, rng: random.Random) -> list[str]:
    """Damages a file of the last checkpoint and goes on: the result must be the undisturbed one, bit for bit."""
    wrong, seen = [], Counter()
    last = half / "run" / "checkpoints" / str(HALF)
    files = sorted(path.relative_to(half) for path in last.rglob("*") if path.is_file() and path.stat().st_size)
    for i in range(times):
        runs = work / f"damaged{i}"
        shutil.copytree(half, runs)
        path = runs / files[i % len(files)]
        content, kind = bytearray(path.read_bytes()), rng.choice(("one bit", "cut", "emptied", "gone", "zeros"))
        if kind == "one bit":
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        elif kind == "zeros":
            content[len(content) // 3 :] = bytes(len(content) - len(content) // 3)
        path.write_bytes(content[: len(content) // 2] if kind == "cut" else b"" if kind == "emptied" else content)
        if kind == "gone":
            path.unlink()
        differs = resumed(data, runs, whole)
        seen["fell back" if (runs / "run" / "damaged").exists() else "its own numbers"] += 1
        wrong += [f"{kind} in {files[i % len(files)]}: {text}" for text in differs]
        shutil.rmtree(runs)
    print(f"{times} damages of {len(files)} files: {dict(seen)}; {len(wrong)} with another result", flush=True)
    return wrong


def full_disk(work: Path, whole: Path, half: Path, data: Path, times: int, rng: random.Random) -> list[str]:
    """Leaves so little room that the run fills it, then makes room and goes on."""
    wrong, disk, slowest = [], work / "disk", 0.0
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], check=True)
    try:
        for i in range(times):
            runs = disk / f"full{i}"
            shutil.copytree(half, runs)
            room = shutil.disk_usage(disk).free
            left = rng.randrange(1 << rng.randrange(12, 20))
            (disk / "ballast").write_bytes(bytes(max(room - left, 0)))
            start = time.monotonic()
            program = [sys.executable, "-m", "fi_jax", *command(data, runs)]
            done = subprocess.run(program, capture_output=True, text=True, timeout=600)
            taken = time.monotonic() - start
            slowest = max(slowest, taken)
            problem = refused(done.returncode, done.stderr, "cannot write") if done.returncode else ""
            print(f"{left} bytes left: status {done.returncode} after {taken:.1f} s {problem}", flush=True)
            (disk / "ballast").unlink()
            differs = resumed(data, runs, whole)
            wrong += [text for text in (problem, *differs) if text]
            shutil.rmtree(runs)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    print(f"{times} full disks: {len(wrong)} problems, the slowest run ended after {slowest:.1f} s", flush=True)
    return wrong


def main() -> int:
    """Runs one kind of accident; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("accident", choices=("full-disk", "changed-data", "damaged-checkpoint"))
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.accident == "full-disk" and "FI_JAX_OWN_MOUNTS" not in os.environ:
        # A disk that nobody else sees.
        environment = {**os.environ, "FI_JAX_OWN_MOUNTS": "1"}
        return subprocess.run(["unshare", "-rm", sys.executable, *sys.argv], env=environment, check=False).returncode
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        data, whole, half = work / "data", work / "whole", work / "half"
        draw_faces(data)
        status, said = here(command(data, whole))
        if status:
            raise SystemExit(said)
        # As if stopped half-way.
        shutil.copytree(whole, half, ignore=shutil.ignore_patterns("model", "15", "20"))
        rng = random.Random(args.seed)
        if args.accident == "changed-data":
            wrong = changed_data(work, whole, half, data)
        elif args.accident == "full-disk":
            wrong = full_disk(work, whole, half, data, args.times, rng)
        else:
            wrong = damaged_checkpoint(work, whole, half, data, args.times, rng)
    for text in wrong[:10]:
        print(f"wrong: {text}")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
