"""Qwen2.5-7B-Instruct in place of Vicuna, all else as `7b`: 75 GiB by `fi-jax plan`, one 80 GB GPU."""

from importlib import import_module

from fi_jax.config import Experiment, LlmConfig

# The name of a module cannot begin with a digit in an import statement.
_base = import_module("7b")

LLM = LlmConfig(
    vocab_size=152064,
    hidden_size=3584,
    intermediate_size=18944,
    num_layers=28,
    num_heads=28,
    num_kv_heads=4,
    head_dim=128,
    rope_theta=1e6,
    rms_norm_eps=1e-6,
    max_position_embeddings=32768,
    family="qwen2",
    qkv_bias=True,
)


def config() -> Experiment:
    return _base.with_llm("qwen2_5_7b", LLM, "Qwen/Qwen2.5-7B-Instruct", template="chatml")
