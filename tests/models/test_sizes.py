"""The full-size configs have exactly the parameters of the checkpoints they load."""

import math
from dataclasses import replace

import pytest

from fi_jax.cli.configs import load_config
from fi_jax.parallel.memory import GIB, plan_memory, shapes_of
from fi_jax.training.abstract import split_shapes
from fi_jax.training.optimizer import split_params
from fi_jax.trees import unflatten
from fi_jax.weights.assemble import param_shapes
from fi_jax.weights.hf_config import vision_json
from fi_jax.weights.llm_families import write_llm


def _count(shapes, *prefixes):
    return sum(
        math.prod(leaf.shape) for path, leaf in shapes.items() if path.startswith(prefixes) and "/lora_" not in path
    )


def _llava_parameters(hidden, intermediate, layers, heads):
    torch = pytest.importorskip("torch")
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    text = LlamaConfig(
        vocab_size=32064,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
    )
    with torch.device("meta"):
        return LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text)).num_parameters()


@pytest.mark.parametrize(
    ("name", "total", "size"),
    [("7b", 7_063_427_072, (4096, 11008, 32, 32)), ("13b", 13_351_494_656, (5120, 13824, 40, 40))],
)
def test_parameter_counts_are_those_of_llava(name, total, size):
    shapes = param_shapes(replace(load_config(name).model, attention="xla"))
    ours = _count(shapes, "image_encoder/", "image_connector/", "llm/")
    assert ours == total
    assert ours == _llava_parameters(*size)
    assert _count(shapes, "segmentation_encoder/") == _count(shapes, "image_encoder/") == 303_507_456


def test_the_encoder_of_gemma3_4b_is_siglip():
    """As many parameters as transformers' class of the size that the Hub's checkpoint has, and as many tokens as Gemma."""
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModel

    config = load_config("gemma3_4b").model
    assert config.image_encoder.num_tokens == 256
    described = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    assert vision_json(config.image_encoder).items() >= (described | {"patch_size": 14, "image_size": 224}).items()
    with torch.device("meta"):
        theirs = AutoModel.from_config(AutoConfig.for_model(**vision_json(config.image_encoder)))
    shapes = param_shapes(replace(config, attention="xla"))
    assert _count(shapes, "image_encoder/") == theirs.num_parameters()


def test_what_7b_trains():
    config = load_config("7b")
    shapes = param_shapes(replace(config.model, attention="xla"))
    trained, frozen = split_params(unflatten(shapes), config.train.trainable)
    # r (in + out) of seven layers, 32 times.
    adapters = 128 * 32 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    assert sum(math.prod(v.shape) for k, v in trained.items() if k.startswith("llm/")) == adapters == 319_815_680
    assert not any("lora" in path for path in frozen)
    assert not any(path.startswith("image_encoder/") for path in trained)
    assert any(path.startswith("segmentation_encoder/") for path in trained)


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("qwen3_4b", 4_022_468_096),
        ("qwen2_5_7b", 7_615_616_512),
        ("gemma3_4b", 3_880_263_168),
        ("smollm3_3b", 3_075_098_624),
    ],
)
def test_presets_have_the_sizes_of_their_checkpoints_and_fit_where_they_say(name, total):
    """Made by transformers from the config that we write of it, on no device; and planned for one GPU of 80 GB."""
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    config = load_config(name)
    assert config.weights.llm and config.weights.image_encoder
    trained, frozen = split_shapes(config)
    assert _count(trained | frozen, "llm/") == total
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**write_llm(config.model.llm)))
    assert theirs.num_parameters() == total
    mesh = {"data": 1, "fsdp": 1, "tensor": 1}
    # What an H100 of 80 GB leaves to a program.
    assert plan_memory(config, mesh, trained, frozen, shapes_of(config, mesh, 40, 40)).training < 78 * GIB
