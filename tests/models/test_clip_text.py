"""CLIP's text tower against transformers'."""

import jax
import numpy as np
import pytest
import torch
import transformers

from fi_jax.models.clip_text import ClipText, ClipTextConfig
from fi_jax.weights.huggingface import load_clip_text

SHAPE = {"vocab_size": 60, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}


@pytest.mark.parametrize("eos_token_id", [2, 50])
def test_equals_clip(tmp_path, eos_token_id):
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        **SHAPE,
        max_position_embeddings=12,
        projection_dim=10,
        eos_token_id=eos_token_id,
        bos_token_id=49,
        pad_token_id=1,
    )
    model = transformers.CLIPTextModelWithProjection(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(tmp_path)
    ours_config, params, report = load_clip_text(tmp_path)
    end = 59 if eos_token_id == 2 else 50
    tokens = np.array([[49, 5, 6, 7, end, 1, 1], [49, 8, end, 1, 1, 1, 1], [49, 5, 9, 10, 11, 12, end]], np.int32)
    ours = jax.jit(ClipText(ours_config).apply)({"params": params}, tokens)
    with torch.no_grad():
        theirs = model(torch.tensor(tokens, dtype=torch.long))
    np.testing.assert_allclose(ours.hidden, theirs.last_hidden_state.numpy(), atol=1e-4)
    np.testing.assert_allclose(ours.projected, theirs.text_embeds.numpy(), atol=1e-4)


def test_padding_after_the_end_changes_nothing_and_earlier_tokens_matter():
    config = ClipTextConfig(60, 24, 40, 2, 3, 12, projection_size=0, eos_token_id=50)
    tokens = np.array([[49, 5, 6, 50, 0, 0]], np.int32)
    variables = jax.jit(ClipText(config).init)(jax.random.key(0), tokens)
    pooled = ClipText(config).apply(variables, tokens).pooled
    padded = ClipText(config).apply(variables, np.array([[49, 5, 6, 50, 7, 8]], np.int32)).pooled
    other = ClipText(config).apply(variables, np.array([[49, 9, 6, 50, 0, 0]], np.int32)).pooled
    np.testing.assert_array_equal(pooled, padded)
    assert np.abs(pooled - other).max() > 1e-3


def test_too_many_tokens_are_refused():
    config = ClipTextConfig(60, 24, 40, 2, 3, max_position_embeddings=4)
    with pytest.raises(ValueError, match="4 positions"):
        ClipText(config).init(jax.random.key(0), np.zeros((1, 5), np.int32))
