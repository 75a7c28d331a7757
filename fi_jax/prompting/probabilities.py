"""Option logits -> probabilities of options and of the labels that they assert."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fi_jax.knowledge.logic import LogProbs


def option_probabilities(logits: Float[Array, "b q k"]) -> Float[Array, "b q k"]:
    """Softmax over the options of each question: Bernoulli for yes/no, categorical for choices."""
    return jax.nn.softmax(logits.astype(jnp.float32), axis=-1)


def label_probabilities(
    probabilities: Float[Array, "b q k"], batch: dict[str, Array], num_labels: int
) -> tuple[Float[Array, "b n"], Bool[Array, "b n"]]:
    """Scatters option probabilities to the labels they assert: ŷ, and which labels were asked about.

    A label that two questions assert ("Male" by its own and by "gender") gets the mean of both.
    """
    index, rows = _places(batch, num_labels)
    times = _times(batch, num_labels)
    zeros = jnp.zeros((index.shape[0], num_labels + 1))
    values = zeros.at[rows, index].add(probabilities.reshape(index.shape))[:, :num_labels]
    return values / jnp.maximum(times, 1.0), times > 0


def label_log_probs(
    logits: Float[Array, "b q k"], batch: dict[str, Array], num_labels: int
) -> tuple[LogProbs, Bool[Array, "b n"]]:
    """The same from option logits, as logarithms of ŷ and of 1 - ŷ that are exact wherever ŷ is."""
    index, rows = _places(batch, num_labels)
    times = _times(batch, num_labels)

    def mean(logs: Float[Array, "b q k"]) -> Float[Array, "b n"]:
        logs = logs.reshape(index.shape)
        most = jnp.full((index.shape[0], num_labels + 1), -jnp.inf).at[rows, index].max(jax.lax.stop_gradient(logs))
        shares = jnp.zeros_like(most).at[rows, index].add(jnp.exp(logs - most[rows, index]))[:, :num_labels]
        # Where nothing was asked, any finite number will do: it is out of scope.
        return jnp.where(times > 0, most[:, :num_labels] + jnp.log(jnp.where(times > 0, shares / times, 1.0)), 0.0)

    yes = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    # The likeliest option leaves what the others have; of the rest each is at most a half, and 1 - p is exact.
    likeliest = jax.nn.one_hot(jnp.argmax(yes, -1), yes.shape[-1], dtype=bool)
    left = jax.nn.logsumexp(jnp.where(likeliest, -jnp.inf, yes), axis=-1, keepdims=True)
    no = jnp.where(likeliest, left, jnp.log1p(-jnp.exp(jnp.where(likeliest, -1.0, yes))))
    return LogProbs(mean(yes), mean(no)), times > 0


def _places(batch: dict[str, Array], num_labels: int) -> tuple[Int[Array, "b qk"], Int[Array, "b 1"]]:
    """Which label each option asserts, and its face; index n is a bin for what asserts nothing, to be cut off."""
    at = batch["option_labels"]
    asserts = (at >= 0) & (batch["option_tokens"] >= 0)
    return jnp.where(asserts, at, num_labels).reshape(at.shape[0], -1), jnp.arange(at.shape[0])[:, None]


def _times(batch: dict[str, Array], num_labels: int) -> Float[Array, "b n"]:
    """How many questions assert each label."""
    index, rows = _places(batch, num_labels)
    return jnp.zeros((index.shape[0], num_labels + 1)).at[rows, index].add(1.0)[:, :num_labels]
