"""Option logits -> probabilities of options and of the labels that they assert."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fi_jax.knowledge.logic import LogProbs, softmax_log_probs


def option_probabilities(logits: Float[Array, "b q k"]) -> Float[Array, "b q k"]:
    """Softmax over the options of each question: Bernoulli for yes/no, categorical for choices."""
    return jax.nn.softmax(logits.astype(jnp.float32), axis=-1)


def label_probabilities(
    probabilities: Float[Array, "b q k"], batch: dict[str, Array], num_labels: int
) -> tuple[Float[Array, "b n"], Bool[Array, "b n"]]:
    """Scatters option probabilities to the labels they assert: ŷ, and which labels were asked about.

    A label that two questions assert ("Male" by its own and by "gender") gets the mean of both.
    """
    index = _places(batch, num_labels)
    times = _times(batch, num_labels)
    values = _sums(index, probabilities.reshape(index.shape), num_labels)
    return values / jnp.maximum(times, 1.0), times > 0


def label_log_probs(
    logits: Float[Array, "b q k"], batch: dict[str, Array], num_labels: int
) -> tuple[LogProbs, Bool[Array, "b n"]]:
    """The same from option logits, as logarithms of ŷ and of 1 - ŷ that are exact wherever ŷ is."""
    index = _places(batch, num_labels)
    times = _times(batch, num_labels)

    def most(logs: Float[Array, "qk"], index: Int[Array, "qk"]) -> Float[Array, "n1"]:
        return jnp.full(num_labels + 1, -jnp.inf).at[index].max(logs)

    def mean(logs: Float[Array, "b q k"]) -> Float[Array, "b n"]:
        logs = logs.reshape(index.shape)
        top = jax.vmap(most)(jax.lax.stop_gradient(logs), index)
        shares = _sums(index, jnp.exp(logs - jnp.take_along_axis(top, index, axis=1)), num_labels)
        # Where nothing was asked, any finite number will do: it is out of scope.
        return jnp.where(times > 0, top[:, :num_labels] + jnp.log(jnp.where(times > 0, shares / times, 1.0)), 0.0)

    return LogProbs(*map(mean, softmax_log_probs(logits))), times > 0


def _places(batch: dict[str, Array], num_labels: int) -> Int[Array, "b qk"]:
    """Which label each option asserts; index n is a bin for what asserts nothing, to be cut off."""
    at = batch["option_labels"]
    asserts = (at >= 0) & (batch["option_tokens"] >= 0)
    return jnp.where(asserts, at, num_labels).reshape(at.shape[0], -1)


def _times(batch: dict[str, Array], num_labels: int) -> Float[Array, "b n"]:
    """How many questions assert each label."""
    index = _places(batch, num_labels)
    return _sums(index, jnp.ones(index.shape), num_labels)


def _sums(index: Int[Array, "b qk"], values: Float[Array, "b qk"], num_labels: int) -> Float[Array, "b n"]:
    """Values summed where they belong; face by face, so that the partitioner sees that faces do not mix."""
    sums = jax.vmap(lambda at, value: jnp.zeros(num_labels + 1).at[at].add(value))(index, values)
    return sums[:, :num_labels]
