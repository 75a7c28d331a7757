"""Runs two real training steps on each mesh of eight virtual CPU devices; prints losses, gradients, shardings as JSON.

Usage: mesh_agreement.py DATA,FSDP,TENSOR... In a process of its own: the device count is set at the start.
"""

import dataclasses
import json
import os
import sys
from dataclasses import replace


def main() -> int:
    # One thread a device is too few: a device that runs two collectives at once would starve another one.
    os.environ["NPROC"] = "64"
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    import numpy as np

    from fi_jax.cli.configs import load_config
    from fi_jax.config import MeshConfig
    from fi_jax.knowledge.logic import compile_rules
    from fi_jax.labels.registry import vocabulary
    from fi_jax.labels.rule_tables import rules_for
    from fi_jax.models.batch import IMAGE_SLOT, KNOWLEDGE_SLOT, SEGMENTATION_SLOT
    from fi_jax.models.face_insight import Constants
    from fi_jax.parallel.collectives import collectives
    from fi_jax.parallel.memory import TEXT_TOKENS
    from fi_jax.parallel.mesh import make_mesh
    from fi_jax.parallel.rules import activation_scope, place, place_batch, replicated, state_shardings
    from fi_jax.training.abstract import batch_shapes
    from fi_jax.training.optimizer import make_optimizer, split_params
    from fi_jax.training.state import init_state
    from fi_jax.training.step import StepInputs, jit_step
    from fi_jax.trees import unflatten
    from fi_jax.weights.assemble import param_shapes

    config = load_config("tiny")
    data = replace(config.data, vocabulary="expw", questions_per_face=2, segment_length=8, augment=False)
    # No clipping: the test reads gradients from the optimiser's moments.
    config = replace(config, data=data, train=replace(config.train, clip_norm=1e9, warmup_steps=0))

    # The same numbers on every mesh; small ones, so that nothing saturates and rounding is not amplified.
    rng = np.random.default_rng(0)
    leaves = {
        path: rng.normal(0, 0.1, leaf.shape).astype(leaf.dtype) for path, leaf in param_shapes(config.model).items()
    }
    trained, frozen = split_params(unflatten(leaves), config.train.trainable)
    labels = vocabulary(config.data.vocabulary)
    n = len(labels)
    constants = Constants(
        rng.normal(size=(n, config.model.knowledge.prompt_size)).astype(np.float32), np.eye(n, dtype=np.float32)
    )
    rules = compile_rules(rules_for(labels), labels)
    batch = {}
    for key, leaf in batch_shapes(config).items():
        if leaf.dtype == bool:
            batch[key] = np.ones(leaf.shape, bool)
        elif np.issubdtype(leaf.dtype, np.floating):
            batch[key] = rng.random(leaf.shape, np.float32)
        else:
            batch[key] = rng.integers(0, 6, leaf.shape).astype(leaf.dtype)
    # The slots of every modality, and zeros for the text of the prefix.
    counts = {IMAGE_SLOT: config.model.image_encoder.num_tokens, KNOWLEDGE_SLOT: n}
    counts[SEGMENTATION_SLOT] = config.model.segmentation_encoder.num_tokens
    slots = [0] * TEXT_TOKENS + [slot for slot, count in counts.items() for _ in range(count)]
    batch["prefix_tokens"] = np.tile(np.asarray(slots, np.int32), (config.data.batch_size, 1))

    def run(sizes: list[int]) -> dict:
        mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])
        state = init_state(trained, make_optimizer(config.train), config.train)
        state = place(state, state_shardings(state, mesh))
        inputs = StepInputs(
            place(frozen, state_shardings(frozen, mesh)),
            place(constants, replicated(mesh)),
            place(rules, replicated(mesh)),
        )
        placed = place_batch(batch, mesh)
        with activation_scope(mesh, config.model):
            # One program: called with arrays of other shapes or places it would refuse them.
            step = jit_step(config, state, mesh).lower(state, inputs, placed).compile()
            state, first = step(state, inputs, placed)
            moments = state.opt_state[1].mu
            # Nothing is clipped, so Adam's first moment after one step is a tenth of the gradient.
            grads = {path: np.asarray(leaf, np.float64) * 10 for path, leaf in moments.items()}
            cuts = {path: str(leaf.sharding.spec) for path, leaf in moments.items()}
            state, second = step(state, inputs, placed)
        return {
            "loss": [float(first["loss"]), float(second["loss"])],
            "grad_norm": float(first["grad_norm"]),
            "grads": {path: leaf.ravel()[:: max(1, leaf.size // 50)].tolist() for path, leaf in grads.items()},
            "largest": {path: float(np.abs(leaf).max()) for path, leaf in grads.items()},
            "shardings": {path: str(leaf.sharding.spec) for path, leaf in {**state.trained, **inputs.frozen}.items()},
            "moments": cuts,
            "batch": str(placed["image"].sharding.spec),
            "collectives": [dataclasses.asdict(one) for one in collectives(step.as_text(), dict(mesh.shape))],
        }

    print(json.dumps({mesh: run([int(size) for size in mesh.split(",")]) for mesh in sys.argv[1:]}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
