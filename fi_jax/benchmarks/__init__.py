"""What `fi-jax bench` measures: speed and memory of training, scoring and decoding, with random weights."""
