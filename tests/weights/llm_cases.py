"""Small random language models of transformers, one a family, in odd shapes: what several tests compare with."""

import functools

import torch
import transformers

SIZES = {
    "vocab_size": 97, "hidden_size": 36, "intermediate_size": 40, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 10, "max_position_embeddings": 1024, "tie_word_embeddings": False,
    "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
# Heads of width / heads, where a family has no size of its own.
NARROW = {"hidden_size": 40, "head_dim": None}
SHORT, LONG = [1.0, 1.1, 1.3, 1.7], [2.0, 3.0, 5.0, 9.0]
LONGROPE = {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "rope_theta": 10000.0}
CASES = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 150},
    "ministral": {"sliding_window": 70, "layer_types": ["full_attention", "sliding_attention"] * 2},
    "qwen2": {**NARROW, "use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2},
    "qwen2-tied": {**NARROW, "tie_word_embeddings": True},
    "qwen3": {"attention_bias": False},
    "smollm3": {**NARROW, "no_rope_layers": [1, 0, 1, 1], "tie_word_embeddings": True},
    # As llama.cpp has it: every fourth layer is without RoPE.
    "smollm3-every": {**NARROW},
    "gemma": {"tie_word_embeddings": True},
    # The width must be a multiple of the heads here.
    "gemma2": {"sliding_window": 100, "query_pre_attn_scalar": 17, "tie_word_embeddings": True},
    "gemma3_text": {"sliding_window": 90, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "phi3": {**NARROW, "sliding_window": 300},
    "phi3-long": {
        **NARROW, "partial_rotary_factor": 0.8, "original_max_position_embeddings": 512, "rope_parameters": LONGROPE,
    },
    "phi3-short": {
        **NARROW, "partial_rotary_factor": 0.8, "original_max_position_embeddings": 900, "rope_parameters": LONGROPE,
    },
}  # fmt: skip


@functools.cache
def make(case: str):
    """The model of a case: every parameter is random, norms and biases too."""
    family = case.partition("-")[0]
    changes = dict(CASES[case])
    if "layer_types" in changes:
        changes["num_hidden_layers"] = len(changes["layer_types"])
    settings = {name: value for name, value in (SIZES | changes).items() if value is not None or name.endswith("_id")}
    config = transformers.AutoConfig.for_model(family, **settings)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.16))
            if name.endswith("norm.weight") and "gemma" not in family:
                parameter.add_(1.0)
    return model
