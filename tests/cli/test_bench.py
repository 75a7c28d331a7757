import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fi_jax.benchmarks import case as cases
from fi_jax.cli.configs import load_config
from fi_jax.cli.main import main
from fi_jax.errors import UserError
from fi_jax.parallel.rules import state_shardings
from fi_jax.weights.assemble import param_shapes


def _lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.slow
def test_small_decoding_and_scoring_print_one_line_each(capsys):
    flags = ["--what", "score40,decode_shared", "--batch", "2", "--repeats", "1", "--small", "--together"]
    assert main(["bench", "7b", *flags]) == 0
    score, decode = _lines(capsys)
    assert (score["what"], decode["what"]) == ("score40", "decode_shared")
    # 40 questions about 2 faces in the median time.
    assert score["pairs_s"] == pytest.approx(80 / score["s"], rel=1e-3)
    assert decode["faces"] == 1 and decode["questions"] == 2
    assert decode["tokens_s"] == pytest.approx(2e3 / decode["ms_token"], rel=1e-3)
    assert all(line["lo"] <= line["s"] <= line["hi"] and line["jax"] == jax.__version__ for line in (score, decode))


@pytest.mark.slow
def test_small_training_moves_the_loss(capsys):
    assert main(["bench", "7b", "--what", "train", "--batch", "2", "--repeats", "2", "--small"]) == 0
    (line,) = _lines(capsys)
    assert line["remat"] == "dots" and line["attention"] == "xla"
    assert np.isfinite(line["first_loss"]) and line["last_loss"] != line["first_loss"]
    # Two 2 x 2 grids of visual tokens and 64 of text, 2 samples.
    assert line["seq"] == 8 + 64
    assert line["tokens_s"] == pytest.approx(2 * 72 / line["s"], rel=1e-3)
    assert line["devices"] == 1 and "collectives" not in line
    # The same batch over two devices that share the parameters: the same steps.
    flags = ["--what", "train", "--batch", "2", "--repeats", "2", "--small", "--mesh.fsdp", "2"]
    assert main(["bench", "7b", *flags]) == 0
    (cut,) = _lines(capsys)
    assert cut["devices"] == 2 and cut["mesh"] == "data=1,fsdp=2,tensor=1" and cut["batch"] == 2
    assert [cut["first_loss"], cut["last_loss"]] == pytest.approx([line["first_loss"], line["last_loss"]], rel=2e-5)
    # Parameters are gathered, gradients summed.
    assert cut["collectives"]["all-gather"]["count"] > 0 and cut["collectives"]["all-reduce"]["count"] > 0


@pytest.mark.slow
def test_small_scoring_over_the_data_axis(capsys):
    flags = ["--what", "score40", "--batch", "4", "--repeats", "1", "--small", "--mesh.data", "2"]
    assert main(["bench", "7b", *flags]) == 0
    (line,) = _lines(capsys)
    assert line["devices"] == 2 and line["pairs_s"] == pytest.approx(160 / line["s"], rel=1e-3)


def test_one_device_unless_the_mesh_names_more():
    assert cases.num_devices(load_config("7b").mesh) == 1
    config = load_config("7b", ["--mesh.fsdp", "2"])
    assert cases.num_devices(config.mesh) == 2
    assert dict(cases.mesh_of(config).shape) == {"data": 1, "fsdp": 2, "tensor": 1}
    with pytest.raises(UserError, match="there are"):
        cases.mesh_of(load_config("7b", ["--mesh.data", "512"]))


def test_random_leaves_are_the_same_wherever_they_lie():
    config = load_config("7b", ["--mesh.fsdp", "2"])
    names = ("llm/layers/attn/q_proj/lora_a", "llm/norm/scale", "head/image/kernel")
    every = param_shapes(cases.small(config).model)
    shapes = {name: every[name] for name in names}
    shardings = state_shardings(shapes, cases.mesh_of(config))
    placed, alone = cases.random_leaves(shapes, "float32", shardings), cases.random_leaves(shapes, "float32")
    for name in names:
        assert placed[name].sharding == shardings[name]
        np.testing.assert_array_equal(placed[name], alone[name])
    assert not placed["head/image/kernel"].sharding.is_fully_replicated


def test_a_failure_is_a_line_and_exit_1(capsys):
    # There is no flash attention on a CPU.
    flags = ["--what", "score40", "--batch", "1", "--attention", "flash", "--small"]
    if jax.default_backend() == "gpu":
        pytest.skip("flash attention exists here")
    assert main(["bench", "7b", *flags]) == 1
    (line,) = _lines(capsys)
    assert "flash" in line["error"]


@pytest.mark.parametrize(
    "flags", [["--what", "trian"], ["--batch", "many"], ["--batch", "0"], ["--repeats", "0"], ["--mesh.data", "2"]]
)
def test_mistakes_exit_2(flags, capsys):
    assert main(["bench", "7b", *flags]) == 2
    assert capsys.readouterr().err.startswith("fi-jax: ")


def test_counts_the_peers_tokens_and_makes_weights_without_zeros():
    config = load_config("7b")
    # 1152 visual and 64 text tokens.
    assert cases.counted_tokens(config) == 1216
    leaves = cases.random_leaves(param_shapes(cases.small(config).model), "bfloat16")
    assert all(leaf.dtype == jnp.bfloat16 and bool((leaf != 0).any()) for leaf in leaves.values())
