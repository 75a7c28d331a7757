"""Gemma-3-4B-it's language model with SigLIP, all else as `7b`: 46 GiB by `fi-jax plan`, one 80 GB GPU."""

from importlib import import_module

from fi_jax.config import Experiment, LlmConfig, RopeScaling, VitConfig

# The name of a module cannot begin with a digit in an import statement.
_base = import_module("7b")

LLM = LlmConfig(
    vocab_size=262208,
    hidden_size=2560,
    intermediate_size=10240,
    num_layers=34,
    num_heads=8,
    num_kv_heads=4,
    head_dim=256,
    rope_theta=1e6,
    rope_scaling=RopeScaling("linear", 8.0),
    rms_norm_eps=1e-6,
    tie_embeddings=True,
    max_position_embeddings=131072,
    family="gemma3_text",
    qk_norm=True,
    hidden_act="gelu_tanh",
    output_norms=True,
    unit_offset_norms=True,
    scale_embeddings=True,
    query_pre_attn_scalar=256.0,
    sliding_window=1024,
    # Every sixth layer sees all.
    sliding_layers=tuple(i for i in range(34) if (i + 1) % 6),
    sliding_rope_theta=1e4,
)
# Gemma's own encoder at the size that gives 256 tokens a picture, as many as Gemma has.
SIGLIP = VitConfig(
    image_size=224,
    hidden_size=1152,
    intermediate_size=4304,
    num_layers=27,
    hidden_act="gelu_tanh",
    layer_norm_eps=1e-6,
    family="siglip_vision_model",
    class_token=False,
    patch_bias=True,
    pre_norm=False,
    pixel_mean=(0.5, 0.5, 0.5),
    pixel_std=(0.5, 0.5, 0.5),
    # Through all layers and the final norm, as in Gemma 3.
    feature_layer=-1,
    norm_tokens=True,
    pool="mean",
)


def config() -> Experiment:
    encoder = (SIGLIP, "google/siglip-so400m-patch14-224")
    return _base.with_llm("gemma3_4b", LLM, "google/gemma-3-4b-it", "checkpoint", encoder)
