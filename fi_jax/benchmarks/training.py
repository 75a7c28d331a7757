"""Measures the training step itself, as `fi-jax train` runs it: one question a face, or forty behind one prefix."""

from dataclasses import replace

import jax

from fi_jax.benchmarks import case as cases
from fi_jax.benchmarks.case import Case
from fi_jax.benchmarks.measure import compiled, peak_gib, timed
from fi_jax.training.optimizer import make_optimizer, split_params, unflatten
from fi_jax.training.state import init_state
from fi_jax.training.step import StepInputs, make_train_step

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


def _step(case: Case, questions: int) -> dict:
    config = replace(case.config, train=replace(case.config.train, accumulate=1))
    shapes = cases.model_shapes(config)
    trained, frozen = split_params(unflatten(shapes), config.train.trainable)
    optimizer = make_optimizer(config.train)
    state = init_state(cases.random_leaves(trained, "float32"), optimizer, config.train)
    inputs = StepInputs(
        cases.random_leaves(frozen, config.train.frozen_dtype),
        cases.random_constants(config),
        cases.rule_table(config),
    )
    batch = cases.random_batch(config, case.batch, questions)
    # As in the trainer: the old state's memory becomes the new one's.
    program, spent = compiled(jax.jit(make_train_step(config, optimizer), donate_argnums=0), state, inputs, batch)
    box, losses = [state], []
    del state

    def call():
        new, metrics = program(box.pop(), inputs, batch)
        box.append(new)
        losses.append(metrics["loss"])
        return metrics

    timing = timed(call, case.repeats, warmups=2)
    return {
        "batch": case.batch,
        "remat": config.model.remat,
        "attention": config.model.attention,
        **vars(timing),
        **spent,
        "peak_gib": peak_gib(),
        "trained_m": round(sum(leaf.size for leaf in box[0].trained.values()) / 1e6, 1),
        "first_loss": float(losses[0]),
        "last_loss": float(losses[-1]),
    }


def _llm_parameters(config) -> int:
    shapes = cases.model_shapes(cases.without_adapters(config))
    return sum(leaf.size for path, leaf in shapes.items() if path.startswith("llm/") and "/embed/" not in path)
