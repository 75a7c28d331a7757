"""fi_jax: FaceInsight, a multimodal LLM for face perception, in JAX and Flax."""

__version__ = "0.1.0"
