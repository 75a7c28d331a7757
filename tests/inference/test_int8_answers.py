"""What a user gets of int8 weights: the same answers nearly, text by kernels that stay int8, and one line without qwix."""

import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from fi_jax.benchmarks import case as cases
from fi_jax.cli.configs import load_config
from fi_jax.cli.main import main
from fi_jax.config import LlamaConfig
from fi_jax.errors import UserError
from fi_jax.inference import decode
from fi_jax.inference.answerer import load_answerer
from fi_jax.labels.question_bank import questions_for
from fi_jax.labels.registry import vocabulary
from fi_jax.models.attention import Layout
from fi_jax.models.int8 import quantize_llm
from fi_jax.models.llama import Llama
from fi_jax.models.lora import NO_LORA, is_int8
from fi_jax.parallel.rules import activation_scope, state_shardings
from fi_jax.studies.candidates import our_candidate
from fi_jax.training.optimizer import flatten, unflatten
from fi_jax.weights.bundle import TrainedModel

qwix = pytest.importorskip("qwix")

LLM = Llama(LlamaConfig(31, 16, 40, 1, 2, 2, 8), scan_layers=False)
# Of no other array: the gate's kernel.
GATE = r"\[16,40\]"


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(
        lambda: LLM.init(
            jax.random.key(0),
            jnp.zeros((1, 2, 16)),
            jnp.ones((1, 2), bool),
            method=lambda llm, x, valid: llm.logits(
                llm.prefill(x, jnp.arange(2)[None], valid, 1)[0] + llm.embed(valid * 1)
            ),
        )
    )["params"]
    key = jax.random.key(1)
    return quantize_llm(jax.tree.map(lambda leaf: 0.5 * jax.random.normal(key, leaf.shape), shapes), NO_LORA)


def test_writes_what_the_dequantised_kernels_write(params):
    prefix = jax.random.normal(jax.random.key(2), (2, 5, 16))
    whole = jax.tree.map(lambda leaf: qwix.dequantize(leaf) if is_int8(leaf) else leaf, params, is_leaf=is_int8)
    got, want = (
        decode.generate(LLM, p, prefix, jnp.ones((2, 5), bool), max_new_tokens=12, eos_ids=()) for p in (params, whole)
    )
    np.testing.assert_array_equal(got.tokens, want.tokens)


def test_the_loop_carries_int8(params):
    """XLA moves casts of what a loop does not change out of it: a decoding step would then read full-size kernels."""
    state = decode._start(LLM, params, jnp.ones((1, 5, 16)), jnp.ones((1, 5), bool), None, None, 4, (), 1.0, None)
    compiled = decode._loop.lower(LLM, 4, (), params, *decode._split(state), 1.0).compile().as_text()
    carried = [line for line in compiled.splitlines() if " while(" in line]
    assert any(re.search("s8" + GATE, line) for line in carried)
    assert not any(re.search("f32" + GATE, line) for line in carried)


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    config = load_config("tiny")
    size = len(vocabulary(config.data.vocabulary))
    rng = np.random.default_rng(0)
    prompts = rng.normal(size=(size, config.model.knowledge.prompt_size)).astype(np.float32)
    return TrainedModel(config, {}, prompts, rng.dirichlet(np.ones(size), size).astype(np.float32), {})


@pytest.mark.slow
def test_a_model_loads_as_int8_and_answers_nearly_the_same(model):
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (2, 32, 32, 3), np.uint8), rng.integers(0, 19, (2, 32, 32), np.uint8)
    questions = [q for q in questions_for(vocabulary(model.config.data.vocabulary)) if q.is_binary][:3]
    full, int8 = load_answerer(model), load_answerer(model, int8=True)
    assert full.config.model.llm.lora.rank and not int8.config.model.llm.lora.rank
    assert all(map(is_int8, jax.tree.leaves(int8.params["llm"]["layers"]["mlp"], is_leaf=is_int8)))
    a, b = (answerer.answer(image, mask, questions) for answerer in (full, int8))
    # Only the LLM is quantised.
    np.testing.assert_array_equal(a.head, b.head)
    assert 0 < np.abs(a.llm - b.llm).max() < 0.01


def test_without_qwix_one_line_names_the_extra(model, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(UserError, match="int8"):
        load_answerer(model, int8=True)
    for command in (["bench", "7b"], ["evaluate", "tiny"]):
        assert main([*command, "--weights", "int8"]) == 2
        err = capsys.readouterr().err
        assert "pip install 'fi_jax[int8]'" in err and err.count("\n") == 1


def test_predictions_of_the_two_are_kept_apart():
    assert our_candidate("nano").fingerprint != our_candidate("nano", int8=True).fingerprint


def test_the_head_alone_has_no_int8_weights(capsys):
    assert main(["evaluate", "tiny", "--weights", "int8", "--head-only"]) == 2
    assert "neither --model nor --head-only" in capsys.readouterr().err


def test_random_int8_kernels_of_a_benchmark_are_int8_from_the_start():
    config = cases.without_adapters(cases.small(load_config("7b")))
    shapes = unflatten(cases.model_shapes(config))["llm"]
    leaves = cases.random_leaves(flatten(cases.int8_shapes(shapes)), "bfloat16")
    kernels = {path: leaf for path, leaf in leaves.items() if is_int8(leaf)}
    assert len(kernels) == 7 and "lm_head/kernel" not in kernels
    for path, leaf in kernels.items():
        assert leaf.qvalue.shape == flatten(shapes)[path].shape and leaf.qvalue.dtype == jnp.int8
        # As large as the benchmark's other weights.
        assert 0.019 < np.abs(qwix.dequantize(leaf)).max() < 0.021
    assert {leaf.dtype for path, leaf in leaves.items() if path not in kernels} == {jnp.dtype(jnp.bfloat16)}


def test_int8_kernels_are_cut_over_a_mesh_as_kernels_are():
    config = cases.without_adapters(cases.small(load_config("7b", ["--mesh.fsdp", "2", "--mesh.tensor", "2"])))
    shapes = flatten(cases.int8_shapes(unflatten(cases.model_shapes(config))["llm"]))
    shapes = {f"llm/{path}": shape for path, shape in shapes.items()}
    mesh = cases.mesh_of(config)
    placed, alone = (cases.random_leaves(shapes, "float32", cut) for cut in (state_shardings(shapes, mesh), None))
    jax.tree.map(np.testing.assert_array_equal, placed, alone)
    for name, values, scales in (
        ("attn/q_proj", (None, "fsdp", "tensor"), (None, None, "tensor")),
        ("mlp/down_proj", (None, "tensor", "fsdp"), (None, None, "fsdp")),
    ):
        kernel = placed[f"llm/layers/{name}/kernel"]
        assert (kernel.qvalue.sharding.spec, kernel.scale.sharding.spec) == (P(*values), P(*scales))
    llm, tokens = Llama(config.model.llm), jnp.arange(24).reshape(4, 6)

    @jax.jit
    def logits(leaves):
        def run(llm):
            return llm.logits(llm(llm.embed(tokens), jnp.arange(6)[None].repeat(4, 0), Layout(6), tokens >= 0))

        return llm.apply({"params": unflatten(leaves)["llm"]}, method=run)

    want = logits(alone)
    with activation_scope(mesh, config.model):
        got = logits(placed)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.slow
def test_scoring_with_int8_weights_over_two_devices_is_one_line(capsys):
    flags = ["--batch", "2", "--repeats", "1", "--small", "--weights", "int8", "--mesh.fsdp", "2"]
    assert main(["bench", "7b", "--what", "score40", *flags]) == 0
    line = json.loads(capsys.readouterr().out)
    assert (line["weights"], line["devices"], line["mesh"]) == ("int8", 2, "data=1,fsdp=2,tensor=1")
