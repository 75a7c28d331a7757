"""Qwen3-4B in place of Vicuna, all else as `7b`: 58 GiB by `fi-jax plan`, one 80 GB GPU."""

from importlib import import_module

from fi_jax.config import Experiment, LlmConfig

# The name of a module cannot begin with a digit in an import statement.
_base = import_module("7b")

LLM = LlmConfig(
    vocab_size=151936,
    hidden_size=2560,
    intermediate_size=9728,
    num_layers=36,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    rope_theta=1e6,
    rms_norm_eps=1e-6,
    tie_embeddings=True,
    max_position_embeddings=40960,
    family="qwen3",
    qk_norm=True,
)


def config() -> Experiment:
    return _base.with_llm("qwen3_4b", LLM, "Qwen/Qwen3-4B", template="chatml")
