"""Wall time of M members of instruction tuning in one program against M runs, each a `fi-jax` command of its own.

    python benchmarks/members_lora.py --members 8 --faces 8 --steps 40 --model.dtype bfloat16

Members train LoRA, connectors, knowledge and head on drawn faces; they differ in learning rate, alpha and, where the
LLM is loaded, seed. With encoders frozen (the default) one pass through them serves all members. Of the M separate
runs the first --measure are run and the others are taken to last as long as those after the first; --all runs every
one. Start, compilation and saving count; both sides start with the compile cache that one step of stage 1 leaves.
The steady figure is seconds a step between the first and the last logged step. The largest difference between a
member's log and its separate run's says whether they are the same runs. Other arguments override the config.
Several GPUs: the first that CUDA_VISIBLE_DEVICES names (default 0). JSON is printed last.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fi_jax.cli.configs import load_config
from fi_jax.config import Experiment, SourceConfig
from fi_jax.config_tree import to_dict
from fi_jax.experiments.points import apply, config_source, point_id

ENCODERS = r".*_encoder/.*"
TRAINED = (r"llm/.*/lora_[ab]", r".*connector/.*", r"knowledge/.*", r"head/.*")
_STEP = re.compile(r"step (\d+)/\d+ ")


@dataclass(frozen=True)
class Timed:
    """How long one command took, start to end, and a step of it between the first and the last logged one."""

    seconds: float
    step_seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="nano")
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--log-every", type=int, default=10, help="steps between logged ones; divides --steps")
    parser.add_argument("--faces", type=int, default=8, help="faces a step (default 8)")
    parser.add_argument("--questions", type=int, default=12, help="closed questions a face (default 12)")
    parser.add_argument("--count", type=int, default=400, help="faces drawn, of which 80 %% train (default 400)")
    parser.add_argument("--train-encoders", action="store_true", help="then every member runs its own encoders")
    parser.add_argument("--measure", type=int, default=2, help="separate runs that are really run (default 2)")
    parser.add_argument("--all", action="store_true", help="run every separate run")
    parser.add_argument("--folder", type=Path, help="where runs are left (default: a temporary folder)")
    args, overrides = parser.parse_known_args(argv)
    measured = args.members if args.all else min(args.measure, args.members)
    if args.steps % args.log_every or args.steps < 2 * args.log_every or measured < min(2, args.members):
        parser.error("--steps is a multiple of --log-every, twice it at least; --measure at least 2")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    if args.folder is None:
        with tempfile.TemporaryDirectory() as folder:
            return _measure(args, overrides, measured, Path(folder))
    args.folder.mkdir(parents=True)
    return _measure(args, overrides, measured, args.folder.absolute())


def _measure(args: argparse.Namespace, overrides: list[str], measured: int, folder: Path) -> int:
    config = _config(args, load_config(args.config, overrides), str(folder / "base" / "stage1"))
    stage1 = replace(
        config.train, stage="align", steps=1, trainable=(ENCODERS, "knowledge/.*", "head/.*"), init_from=""
    )
    stage1_file = _write(folder / "stage1.py", replace(config, name="stage1", train=stage1))
    _run(["train", stage1_file, "--runs", str(folder / "base")], folder, "stage1")
    for group in ("separate", "together"):
        # Hard links: the language model lies in the cache too.
        shutil.copytree(folder / "cache-stage1", folder / f"cache-{group}", copy_function=os.link)

    points = _points(config, args.members)
    configs = [apply(config, point) for point in points]
    names = [point_id(one) for one in configs]
    alone = []
    for name, one in list(zip(names, configs))[:measured]:
        file = _write(folder / f"{name}.py", replace(one, name=name))
        alone.append(_run(["train", file, "--runs", str(folder / "separate")], folder, "separate"))
    sweep = folder / "sweep.py"
    base = _write(folder / "config.py", config)
    sweep.write_text(
        '"""All members."""\n\nfrom fi_jax.experiments.expressions import Points, Sweep\n\n\ndef sweep():\n'
        f"    return Sweep(config={base!r}, points=Points({tuple(points)!r}), metric='loss')\n"
    )
    together = _run(["sweep", str(sweep), "--where", "members", "--out", str(folder / "together")], folder, "together")

    first, later = alone[0].seconds, [one.seconds for one in alone[1:]]
    separate = first + sum(later) + (args.members - measured) * sum(later) / max(len(later), 1)
    step_alone = sum(one.step_seconds for one in alone) / len(alone)
    print(f"{'':12}{'seconds':>10}{'s a step':>12}")
    for i, one in enumerate(alone):
        print(f"{f'run {i + 1} alone':12}{one.seconds:10.1f}{one.step_seconds:12.4f}")
    print(f"{'together':12}{together.seconds:10.1f}{together.step_seconds:12.4f}")
    differences = [
        difference(_log(folder / "together" / "runs" / name), _log(folder / "separate" / name))
        for name in names[:measured]
    ]
    largest = max(differences, key=lambda one: one["all"])
    kept = ("config", "members", "steps", "faces", "questions", "train_encoders")
    line = {key: getattr(args, key) for key in kept}
    line |= {"dtype": config.model.dtype, "measured": measured, "estimated": measured < args.members}
    line |= {"separate_s": round(separate, 1), "together_s": round(together.seconds, 1)}
    line |= {"ratio": round(together.seconds / separate, 3)}
    line |= {"step_alone_s": round(step_alone, 5), "step_together_s": round(together.step_seconds, 5)}
    line |= {"step_ratio": round(together.step_seconds / (args.members * step_alone), 3)}
    line |= {"difference": {key: float(f"{largest[key]:.3g}") for key in ("first", "all")}, "at": largest["at"]}
    print(json.dumps(line | _machine()), flush=True)
    return 0


def _config(args: argparse.Namespace, config: Experiment, init_from: str) -> Experiment:
    """The instruct stage of `config` on drawn faces, from a stage 1 at `init_from`."""
    model = config.model
    if not args.train_encoders:
        # Stochastic depth in a frozen encoder would make every member run its own.
        towers = ("image_encoder", "segmentation_encoder")
        model = replace(model, **{name: replace(getattr(model, name), drop_path=0.0) for name in towers})
    data = replace(
        config.data,
        sources=(SourceConfig("synthetic_faces", root=f"count={args.count}"),),
        batch_size=args.faces,
        questions_per_face=args.questions,
    )
    train = replace(
        config.train,
        stage="instruct",
        steps=args.steps,
        warmup_steps=max(1, args.steps // 10),
        trainable=TRAINED + ((ENCODERS,) if args.train_encoders else ()),
        accumulate=1,
        checkpoint_every=args.steps,
        log_every=args.log_every,
        init_from=init_from,
    )
    return replace(config, name="members_lora", model=model, data=data, train=train)


def _points(config: Experiment, count: int) -> list[dict]:
    """What the members differ in: learning rates over a factor of four, three alphas, seeds where they may differ."""
    rate, alpha = config.train.learning_rate, config.model.llm.lora.alpha
    loaded = config.weights.llm != "random" or bool(config.weights.llava)
    return [
        {
            "train.learning_rate": float(f"{rate * 0.5 * 4 ** (i / max(count - 1, 1)):.4g}"),
            "model.llm.lora.alpha": alpha * (1.0, 2.0, 0.5)[i % 3],
            # A random language model is drawn from the seed, and members share it.
            "train.seed": i if loaded else config.train.seed,
        }
        for i in range(count)
    ]


def _write(path: Path, config: Experiment) -> str:
    path.write_text(config_source(to_dict(config), f"{config.name}, written by members_lora.py."))
    return str(path)


def _run(arguments: list[str], folder: Path, group: str) -> Timed:
    """Runs one `fi-jax` command with the group's cache; ends the measurement when it fails."""
    env = {
        **os.environ,
        "FI_JAX_CACHE": str(folder / f"cache-{group}"),
        "FI_JAX_CLUSTER": "none",
        "PYTHONUNBUFFERED": "1",
    }
    print("fi-jax " + " ".join(arguments), flush=True)
    begin = time.perf_counter()
    command = [sys.executable, "-m", "fi_jax", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env) as child:
        assert child.stdout is not None
        lines = [(time.perf_counter() - begin, line.rstrip()) for line in child.stdout]
    seconds = time.perf_counter() - begin
    (folder / "log.txt").open("a").writelines(f"{at:9.2f} {line}\n" for at, line in lines)
    if child.returncode:
        raise SystemExit("\n".join(line for _, line in lines[-8:]))
    return Timed(seconds, steady(lines))


def steady(lines: Sequence[tuple[float, str]]) -> float:
    """Seconds a step between the first and the last logged step of `(second, line)`s; 0 where one is logged or none."""
    seen = [(at, int(found[1])) for at, line in lines if (found := _STEP.match(line))]
    if len(seen) < 2:
        return 0.0
    (began, first), (ended, last) = seen[0], seen[-1]
    return (ended - began) / (last - first)


def difference(ours: Sequence[dict], theirs: Sequence[dict]) -> dict:
    """The largest |a - b| / max(1, |b|) of two logs, at the first logged step and at all, and where that is.

    Raises `SystemExit` when the logs have other steps or names.
    """
    if [line.keys() for line in ours] != [line.keys() for line in theirs] or not ours:
        raise SystemExit("a member's log and its separate run's have other lines or metrics")
    gaps = [
        (abs(a[name] - b[name]) / max(1.0, abs(b[name])), f"{name} at step {b['step']}", b["step"])
        for a, b in zip(ours, theirs)
        for name in b
    ]
    all_, where, _ = max(gaps)
    return {"first": max(gap for gap, _, step in gaps if step == theirs[0]["step"]), "all": all_, "at": where}


def _log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _machine() -> dict[str, str]:
    """In a process of its own: this one must not take the device's memory."""
    program = "from fi_jax.benchmarks.measure import machine; import json; print(json.dumps(machine()))"
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    raise SystemExit(main())
