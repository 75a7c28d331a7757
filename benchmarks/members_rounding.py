"""Whether a member's log differs from its own run's by rounding alone: both beside a run whose sums are in another order.

    python benchmarks/members_rounding.py --steps 40

`tiny` with random weights learns random answers, three times with the same numbers: alone; alone with the faces of every
batch in another order, which permutes the sums over faces in loss and gradients and changes nothing else; as one of two
members. Prints, for float32 and for bfloat16 arithmetic, the largest relative difference of the loss and of the
gradient's norm from the first run. A fault would stay in float32; rounding shrinks with the type, and is as large
as that of the permuted run.
"""

import argparse
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from fi_jax.cli.configs import load_config
from fi_jax.config import Experiment, MeshConfig
from fi_jax.models.face_insight import Constants
from fi_jax.parallel.mesh import make_mesh
from fi_jax.training.abstract import batch_shapes
from fi_jax.training.members import side_by_side, stack
from fi_jax.training.optimizer import make_optimizer, split_params
from fi_jax.training.setup import step_inputs
from fi_jax.training.state import init_state
from fi_jax.training.step import jit_step
from fi_jax.trees import unflatten
from fi_jax.weights.assemble import param_shapes


def main() -> int:
    """Trains and prints one JSON line a type."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    for dtype in ("float32", "bfloat16"):
        print(
            json.dumps({"dtype": dtype, "steps": args.steps} | _compare(_config(dtype, args.steps), args.steps)),
            flush=True,
        )
    return 0


def _config(dtype: str, steps: int) -> Experiment:
    config = load_config("tiny", ["--data.vocabulary", "expw", "--model.dtype", dtype])
    # Augmentation draws by a face's place in the batch.
    data = replace(config.data, questions_per_face=2, segment_length=8, augment=False)
    train = replace(
        config.train, steps=steps, frozen_dtype=dtype, trainable=(r"llm/.*/lora_[ab]", r".*connector/.*", r"head/.*")
    )
    return replace(config, data=data, train=train)


def _compare(config: Experiment, steps: int) -> dict:
    rng = np.random.default_rng(0)
    shapes = param_shapes(config.model)
    leaves = {path: rng.normal(0, 0.1, leaf.shape).astype(leaf.dtype) for path, leaf in shapes.items()}
    trained, frozen = split_params(unflatten(leaves), config.train.trainable)
    frozen = {path: np.asarray(leaf, config.train.frozen_dtype) for path, leaf in frozen.items()}
    n = batch_shapes(config)["labels"].shape[1]
    constants = Constants(
        rng.normal(size=(n, config.model.knowledge.prompt_size)).astype(np.float32), np.eye(n, dtype=np.float32)
    )
    batches = [_batch(config, rng) for _ in range(steps)]
    order = rng.permutation(config.data.batch_size)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    other = replace(config, train=replace(config.train, learning_rate=2 * config.train.learning_rate))

    def run(configs: list[Experiment], batches: list[dict[str, np.ndarray]]) -> np.ndarray:
        starts = [init_state(trained, make_optimizer(one.train), one.train) for one in configs]
        # The step gives its state up.
        state = jax.tree.map(jnp.array, stack(starts))
        inputs = step_inputs(configs, frozen, [constants] * len(configs))
        step = jit_step(config, state, mesh, side_by_side if len(configs) > 1 else None)
        log = []
        for batch in batches:
            state, metrics = step(state, inputs, batch)
            log.append([np.ravel(metrics[name])[0] for name in ("loss", "grad_norm")])
        return np.asarray(log, np.float64)

    turned = [{key: leaf[order] for key, leaf in batch.items()} for batch in batches]
    alone = run([config], batches)
    gaps = {"permuted": run([config], turned), "member": run([config, other], batches)}
    return {
        name: dict(zip(("loss", "grad_norm"), (f"{gap:.1e}" for gap in np.max(np.abs(log / alone - 1), axis=0))))
        for name, log in gaps.items()
    }


def _batch(config: Experiment, rng: np.random.Generator) -> dict[str, np.ndarray]:
    made = {}
    for key, leaf in batch_shapes(config).items():
        if leaf.dtype == bool:
            made[key] = np.ones(leaf.shape, bool)
        elif np.issubdtype(leaf.dtype, np.floating):
            made[key] = rng.random(leaf.shape, np.float32)
        else:
            made[key] = rng.integers(0, 6, leaf.shape).astype(leaf.dtype)
    return made


if __name__ == "__main__":
    raise SystemExit(main())
