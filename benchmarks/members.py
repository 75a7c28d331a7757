"""Time of one step of M members in one program against one run alone, on the alignment stage with frozen encoders.

    python benchmarks/members.py --members 32 --batch 64

Prints seconds a step of both (medians, measured in turn, so that a busy machine disturbs both alike) and their ratio.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np


def main() -> int:
    """Measures and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="nano_align")
    parser.add_argument("--members", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    import jax

    from fi_jax.cli.configs import load_config

    config = load_config(args.config)
    towers = {
        name: replace(getattr(config.model, name), drop_path=0.0) for name in ("image_encoder", "segmentation_encoder")
    }
    config = replace(
        config,
        model=replace(config.model, **towers),
        data=replace(config.data, batch_size=args.batch),
        train=replace(config.train, trainable=("knowledge/.*", "head/.*"), ema=0.0),
    )
    configs = [replace(config, train=replace(config.train, learning_rate=1e-4 * (i + 1))) for i in range(args.members)]
    alone, together = _runner([config]), _runner(configs)
    times: dict[str, list[float]] = {"alone": [], "together": []}
    for repeat in range(args.repeats + 1):
        for name, run in (("alone", alone), ("together", together)):
            begin = time.perf_counter()
            jax.block_until_ready(run())
            if repeat:
                times[name].append(time.perf_counter() - begin)
    one, many = (statistics.median(times[name]) for name in ("alone", "together"))
    shown = {"members": args.members, "batch": args.batch, "alone_s": round(one, 3), "together_s": round(many, 3)}
    print(json.dumps({**shown, "ratio": round(many / one, 3)}))
    return 0


def _parts(config):
    """Random leaves, constants, rules and one batch of a config."""
    from fi_jax.labels.registry import vocabulary
    from fi_jax.training.abstract import batch_shapes
    from fi_jax.training.optimizer import split_params
    from fi_jax.trees import unflatten
    from fi_jax.weights.assemble import param_shapes

    rng = np.random.default_rng(0)
    # The stage does not read the language model.
    shapes = {path: leaf for path, leaf in param_shapes(config.model).items() if not path.startswith("llm/")}
    leaves = {path: rng.normal(0, 0.02, leaf.shape).astype(np.float32) for path, leaf in shapes.items()}
    trained, frozen = split_params(unflatten(leaves), config.train.trainable)
    labels = vocabulary(config.data.vocabulary)
    batch = {
        key: np.ones(leaf.shape, leaf.dtype)
        if leaf.dtype == bool
        else rng.integers(0, 2, leaf.shape).astype(leaf.dtype)
        for key, leaf in batch_shapes(config).items()
    }
    n = len(labels)
    prompts = rng.normal(size=(n, config.model.knowledge.prompt_size)).astype(np.float32)
    return SimpleNamespace(
        trained=trained, frozen=frozen, batch=batch, prompts=prompts, graph=np.eye(n, dtype=np.float32)
    )


def _runner(configs):
    """Returns what takes one step of all configs, compiled when first called."""
    import jax

    from fi_jax.models.face_insight import Constants
    from fi_jax.training.members import shared_config, side_by_side, stack
    from fi_jax.training.optimizer import make_optimizer
    from fi_jax.training.setup import step_inputs
    from fi_jax.training.state import init_state
    from fi_jax.training.step import make_step

    parts = _parts(configs[0])
    states = [init_state(parts.trained, make_optimizer(one.train), one.train) for one in configs]
    constants = [Constants(parts.prompts, parts.graph)] * len(configs)
    state, batch = jax.device_put((stack(states), parts.batch))
    inputs = jax.device_put(step_inputs(configs, parts.frozen, constants))
    step = make_step(shared_config(configs))
    jitted = jax.jit(side_by_side(step) if len(configs) > 1 else step)
    return lambda: jitted(state, inputs, batch)


if __name__ == "__main__":
    raise SystemExit(main())
