"""fi_jax: FaceInsight, a multimodal LLM for face perception, in JAX and Flax."""

__version__ = "0.2.0.dev0"
