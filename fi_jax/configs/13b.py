"""LLaVA-1.5-13B: `7b` with the larger Vicuna; one 141 GB GPU, or two and more of 80 GB with `--mesh.fsdp`."""

from dataclasses import replace
from importlib import import_module

from fi_jax.config import Experiment, WeightsConfig

# The name of a module cannot begin with a digit in an import statement.
_base = import_module("7b")


def config() -> Experiment:
    base = _base.config()
    llm = replace(
        base.model.llm,
        hidden_size=5120,
        intermediate_size=13824,
        num_layers=40,
        num_heads=40,
        num_kv_heads=40,
    )
    return replace(
        base,
        name="13b",
        model=replace(base.model, llm=llm, remat="full"),
        weights=WeightsConfig(
            llava="llava-hf/llava-1.5-13b-hf", segmentation_encoder=_base.CLIP, text_encoder=_base.CLIP
        ),
    )
