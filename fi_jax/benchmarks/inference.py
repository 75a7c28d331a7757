"""Measures closed answers by likelihood and greedy decoding, with adapters merged, through the product's own paths."""

import time
from dataclasses import replace
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from fi_jax.benchmarks import case as cases
from fi_jax.benchmarks.case import Case
from fi_jax.benchmarks.measure import peak_gib, timed
from fi_jax.inference import decode
from fi_jax.inference.answerer import Answerer
from fi_jax.inference.prepare import prepare_for_inference, without_adapters
from fi_jax.models.layer_stack import prepare_frozen
from fi_jax.models.llm import make_llm
from fi_jax.parallel.mesh import check_batch, run_on
from fi_jax.parallel.rules import activation_scope, place, place_batch, replicated, state_shardings
from fi_jax.prompting.probabilities import option_probabilities
from fi_jax.trees import unflatten
from fi_jax.weights.assemble import param_shapes

_QUESTION_KEYS = (
    "prefix_tokens",
    "segment_tokens",
    "answer_position",
    "option_tokens",
)


def score40(case: Case) -> dict:
    """Encodes faces and answers `case.questions` closed questions about each in one forward pass."""
    config = replace(case.config, model=without_adapters(case.config.model))
    mesh = cases.mesh_of(config)
    config = run_on(config, mesh)
    check_batch(case.batch, 1, mesh)
    shapes = param_shapes(config.model)
    prepare = partial(prepare_for_inference, model=config.model)
    params = unflatten(
        cases.random_leaves(
            shapes,
            config.model.dtype,
            state_shardings(shapes, mesh) if mesh.size > 1 else None,
            prepare=prepare,
            unrolled=not config.model.scan_layers,
        )
    )
    constants = place(cases.random_constants(config), replicated(mesh))
    # The benchmark has token arrays already, so no tokenizer.
    answerer = Answerer(config, params, constants, cast(Any, None), {})
    batch = place_batch(cases.random_batch(config, case.batch, case.questions), mesh)
    asked = {key: batch[key] for key in _QUESTION_KEYS}

    def call():
        faces, alignment = answerer.faces(batch["image"], batch["mask"])
        return option_probabilities(answerer._score(params, faces, alignment, asked))

    with activation_scope(mesh, config.model):
        start = time.perf_counter()
        jax.block_until_ready(call())
        compile_s = time.perf_counter() - start
        timing = timed(call, case.repeats)
    pairs = case.questions * case.batch
    return {
        "batch": case.batch,
        "seq": asked["prefix_tokens"].shape[1] + case.questions * cases.QUESTION_TEXT,
        "attention": config.model.attention,
        "scan_layers": config.model.scan_layers,
        "precision": config.model.frozen_precision,
        **vars(timing),
        "pairs_s": pairs / timing.s,
        "compile_s": round(compile_s, 2),
        "peak_gib": peak_gib(),
    }


def decode_faces(case: Case) -> dict:
    """Greedy decoding about `case.batch` different faces, one question each."""
    return _decode(case, case.batch, 1)


def decode_shared(case: Case) -> dict:
    """Greedy decoding of `case.batch` questions about one face, whose prefix is stored and read once."""
    return _decode(case, 1, case.batch)


def _decode(case: Case, faces: int, questions: int) -> dict:
    config = without_adapters(case.config.model)
    shapes = {path: shape for path, shape in param_shapes(config).items() if path.startswith("llm/")}
    prepare = partial(prepare_frozen, model=config, differentiated=False)
    leaves = cases.random_leaves(shapes, config.dtype, prepare=prepare, unrolled=not config.scan_layers)
    p = cases.random_batch(case.config, 1, 1)["prefix_tokens"].shape[1]
    rng = np.random.default_rng(0)
    arguments = (
        *(make_llm(config), unflatten(leaves)["llm"]),
        jnp.asarray(rng.normal(size=(faces, p, config.llm.hidden_size)) * 0.02, config.dtype),
        jnp.asarray(rng.integers(1, config.llm.vocab_size, (faces, questions, cases.QUESTION_TEXT)), jnp.int32),
    )

    def first():
        return next(decode.stream(*arguments, max_new_tokens=case.new_tokens, eos_ids=()))

    def every():
        return decode.generate(*arguments, max_new_tokens=case.new_tokens, eos_ids=()).tokens

    start = time.perf_counter()
    every()
    compile_s = time.perf_counter() - start
    prefill, whole = timed(first, case.repeats), timed(every, case.repeats)
    a_token = (whole.s - prefill.s) / (case.new_tokens - 1)
    return {
        "faces": faces,
        "questions": questions,
        "seq": p + cases.QUESTION_TEXT,
        "new_tokens": case.new_tokens,
        "scan_layers": config.scan_layers,
        "precision": config.frozen_precision,
        "kv": config.kv_precision,
        **vars(whole),
        "prefill_s": prefill.s,
        "ms_token": 1e3 * a_token,
        "tokens_s": faces * questions / a_token,
        "compile_s": round(compile_s, 2),
        "peak_gib": peak_gib(),
    }
