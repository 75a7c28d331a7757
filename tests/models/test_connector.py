"""The connector against transformers' LLaVA projector."""

import jax
import numpy as np
import torch
import transformers

from fi_jax.models.connector import Connector


def test_equals_llavas_projector():
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(hidden_size=12),
        text_config=transformers.LlamaConfig(hidden_size=20, num_attention_heads=2),
    )
    projector = LlavaMultiModalProjector(config)
    x = np.random.default_rng(0).normal(size=(2, 5, 12)).astype(np.float32)
    state = {name: value.detach().numpy() for name, value in projector.state_dict().items()}
    params = {
        ours: {"kernel": state[f"{theirs}.weight"].T, "bias": state[f"{theirs}.bias"]}
        for ours, theirs in (("fc1", "linear_1"), ("fc2", "linear_2"))
    }
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, Connector(20).init(jax.random.key(0), x)["params"])
    expected = projector(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(Connector(20).apply({"params": params}, x), expected, atol=1e-5)
