"""What 8 bits cost in quality: loss curves of training, and a trained model's answers, beside those in bf16.

    python benchmarks/precision.py curves --config 7b --batch 2 --seeds 0 1 2        # random weights; one GPU
    python benchmarks/precision.py answers --model nano --data data --faces 300      # closed answers about test faces
    python benchmarks/precision.py curves --small --steps 3                          # shows that it runs, anywhere

`curves`: `--batches` random batches in turn, whose answers the adapters learn by heart; seeds change weights and batches.
`answers`: accuracy of the LLM, choices that change, and how far probabilities move, in the mean and at most. On a GPU in
bfloat16; elsewhere in float32, with fp8 products emulated.
"""

import argparse
import json
from dataclasses import replace
from itertools import product

import jax
import numpy as np

from fi_jax.benchmarks import case as cases
from fi_jax.benchmarks.case import Case
from fi_jax.benchmarks.training import ready_step
from fi_jax.cli.configs import load_config
from fi_jax.data.datasets import find_dataset
from fi_jax.data.pipeline import open_dataset
from fi_jax.data.splits import limited
from fi_jax.evaluation.answering import predict
from fi_jax.evaluation.predictions import Prediction
from fi_jax.faces.map_cache import with_maps
from fi_jax.inference.answerer import load_answerer
from fi_jax.parallel.rules import place_batch
from fi_jax.weights.bundle import load_model

PRECISIONS = ("bf16", "fp8", "int8")
# Steps whose mean loss over the ten before is printed.
SHOWN = (10, 50, 100, 150, 200, 250, 300)
SETS = ("utkface", "celeba", "expw")


def main() -> int:
    """Prints one JSON line a curve, or one a set and precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("curves", "answers"))
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--config", default="7b")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--small", action="store_true", help="tiny sizes")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--data", default="data")
    parser.add_argument("--faces", type=int, default=300, help="test faces of each set")
    args = parser.parse_args()
    (curves if args.what == "curves" else answers)(args)
    return 0


def curves(args: argparse.Namespace) -> None:
    """Losses of `--steps` training steps, for each precision and seed."""
    on_gpu = jax.default_backend() == "gpu"
    for seed, precision in product(args.seeds, args.precisions):
        flags = ["--model.frozen-precision", precision, "--model.attention", "flash" if on_gpu else "xla"]
        flags += ["--train.steps", str(args.steps), "--train.warmup-steps", str(min(20, args.steps - 1))]
        config = load_config(args.config, [*flags, "--model.remat", "dots"])
        config = cases.small(config) if args.small else config
        ready = ready_step(Case(config, args.batch), questions=1, seed=1000 * seed)
        batches = [
            place_batch(cases.random_batch(ready.config, args.batch, 1, 100 * seed + number), ready.mesh)
            for number in range(args.batches)
        ]
        losses = []
        for step in range(args.steps):
            ready.state, metrics = ready.program(ready.state, ready.inputs, batches[step % args.batches])
            losses.append(metrics["loss"])
        losses = [float(loss) for loss in losses]
        means = {step: round(float(np.mean(losses[step - 10 : step])), 4) for step in SHOWN if step <= len(losses)}
        print(json.dumps({"config": args.config, "precision": precision, "seed": seed, "loss": means}), flush=True)
        # The next one's weights need the room.
        del ready, batches, metrics


def answers(args: argparse.Namespace) -> None:
    """Closed answers of one model about the same faces, in each precision, beside the first."""
    kept: dict[str, list[Prediction]] = {}
    on_gpu = jax.default_backend() == "gpu"
    for precision in args.precisions:
        trained = load_model(args.model)
        dtype = "bfloat16" if on_gpu else "float32"
        model = replace(
            trained.config.model, dtype=dtype, frozen_precision=precision, attention="flash" if on_gpu else "xla"
        )
        answerer = load_answerer(replace(trained, config=replace(trained.config, model=model)))
        for name in SETS:
            lines = llm_lines(answerer, name, f"{args.data}/{name}", args.faces)
            first = kept.setdefault(name, lines)
            print(json.dumps({"precision": precision, "set": name} | beside(first, lines)), flush=True)


def llm_lines(answerer, name: str, root: str, faces: int) -> list[Prediction]:
    """The LLM's answers about test faces of a set to the questions that it annotates."""
    dataset = find_dataset(name)
    records = limited(dataset.open(root).records("test"), faces)
    data = with_maps(records, replace(answerer.config.data, cache_in_memory=False), answerer.config.weights.parser)
    questions = answerer.answerable(dataset.questions)
    found = predict(answerer, records, open_dataset(records, data, answerer.vocabulary), questions, batch_size=4)
    return [line for line in found if line.source == "llm"]


def beside(first: list[Prediction], lines: list[Prediction]) -> dict:
    """Accuracy of closed answers, and how they differ from `first`, which are about the same faces and questions."""
    closed = [(a, b) for a, b in zip(first, lines, strict=True) if b.task != "age_years"]
    years = [abs(float(b.answer) - float(b.label)) for b in lines if b.task == "age_years" and b.label is not None]
    moved = np.array([abs(a.probabilities[name] - p) for a, b in closed for name, p in b.probabilities.items()])
    known = [b.answer == b.label for _, b in closed if b.label is not None]
    return {
        "answers": len(closed),
        "accuracy": round(100 * float(np.mean(known)), 2),
        "years off": round(float(np.mean(years)), 2) if years else None,
        "changed %": round(100 * float(np.mean([a.answer != b.answer for a, b in closed])), 2),
        "moved, mean": round(float(moved.mean()), 5),
        "moved, most": round(float(moved.max()), 3),
    }


if __name__ == "__main__":
    raise SystemExit(main())
