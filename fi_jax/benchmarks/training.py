"""Measures the training step itself, as `fi-jax train` runs it: one question a face, or forty behind one prefix."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from jax.sharding import Mesh

from fi_jax.benchmarks import case as cases
from fi_jax.benchmarks.case import Case
from fi_jax.benchmarks.measure import compiled, peak_gib, sent, timed
from fi_jax.config import Experiment
from fi_jax.inference.prepare import without_adapters
from fi_jax.models.layer_stack import prepare_frozen
from fi_jax.parallel.mesh import check_batch, run_on
from fi_jax.parallel.rules import activation_scope, place, place_batch, replicated, state_shardings
from fi_jax.training.optimizer import make_optimizer, split_params
from fi_jax.training.state import TrainState, init_state
from fi_jax.training.step import StepInputs, jit_step
from fi_jax.trees import unflatten
from fi_jax.weights.assemble import param_shapes

FLOPS = "4 N a token (forward 2 N, backward 2 N), N = parameters of the LLM without its embedding; no attention, vision, adapters or recomputation"


def train(case: Case) -> dict:
    """One free-form question a sample; counts visual and text tokens."""
    config = case.config
    measured = _step(case, questions=1)
    tokens = cases.counted_tokens(config) * case.batch
    work = 4 * _llm_parameters(config) * tokens
    return measured | {
        "seq": cases.counted_tokens(config),
        "tokens_s": tokens / measured["s"],
        "pairs_s": case.batch / measured["s"],
        "tflops_s": work / measured["s"] / 1e12,
        "flops": FLOPS,
    }


def train40(case: Case) -> dict:
    """`case.questions` yes/no questions a face in one shared-prefix sequence."""
    measured = _step(case, questions=case.questions)
    pairs = case.questions * case.batch
    seq = cases.random_batch(case.config, 1, 1)["prefix_tokens"].shape[1] + case.questions * cases.QUESTION_TEXT
    return measured | {"seq": seq, "pairs_s": pairs / measured["s"], "tokens_s": seq * case.batch / measured["s"]}


@dataclass
class Ready:
    """A compiled training step, and what it is called with. `state` is given up by every call."""

    program: Any
    state: TrainState
    inputs: StepInputs
    batch: dict[str, Any]
    config: Experiment
    mesh: Mesh
    # Seconds of compiling.
    spent: dict


def ready_step(case: Case, questions: int, seed: int = 0) -> Ready:
    """Compiles the step of `case.config` on its mesh, with random weights and a random batch of `case.batch` faces."""
    config = replace(case.config, train=replace(case.config.train, accumulate=1))
    mesh = cases.mesh_of(config)
    config = run_on(config, mesh)
    check_batch(case.batch, 1, mesh)
    shapes = param_shapes(config.model)
    trained, frozen = split_params(unflatten(shapes), config.train.trainable)
    leaves = cases.random_leaves(trained, "float32", state_shardings(trained, mesh), seed)
    state = init_state(leaves, make_optimizer(config.train), config.train)
    state = place(state, state_shardings(state, mesh))
    inputs = StepInputs(
        cases.random_leaves(
            frozen,
            config.train.frozen_dtype,
            state_shardings(frozen, mesh) if mesh.size > 1 else None,
            seed,
            prepare=partial(prepare_frozen, model=config.model),
            # bf16 leaves are the same on any mesh; in 8 bits, whole stacks in 16 would leave holes in the memory.
            unrolled=not config.model.scan_layers and config.model.frozen_precision != "bf16",
        ),
        place(cases.random_constants(config), replicated(mesh)),
        place(cases.rule_table(config), replicated(mesh)),
    )
    batch = place_batch(cases.random_batch(config, case.batch, questions), mesh)
    with activation_scope(mesh, config.model):
        program, spent = compiled(jit_step(config, state, mesh), state, inputs, batch)
    return Ready(program, state, inputs, batch, config, mesh, spent)


def _step(case: Case, questions: int) -> dict:
    ready = ready_step(case, questions)
    config = ready.config
    collectives = {"collectives": sent(ready.program)} if ready.mesh.size > 1 else {}
    losses = []

    def call():
        ready.state, metrics = ready.program(ready.state, ready.inputs, ready.batch)
        losses.append(metrics["loss"])
        return metrics

    timing = timed(call, case.repeats, warmups=2)
    return {
        "batch": case.batch,
        "remat": config.model.remat,
        "attention": config.model.attention,
        "scan_layers": config.model.scan_layers,
        "precision": config.model.frozen_precision,
        **vars(timing),
        **ready.spent,
        **collectives,
        "peak_gib": peak_gib(),
        "trained_m": round(sum(leaf.size for leaf in ready.state.trained.values()) / 1e6, 1),
        "first_loss": float(losses[0]),
        "last_loss": float(losses[-1]),
    }


def _llm_parameters(config) -> int:
    shapes = param_shapes(without_adapters(config.model))
    return sum(leaf.size for path, leaf in shapes.items() if path.startswith("llm/") and "/embed/" not in path)
