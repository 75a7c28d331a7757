"""Correlation at the level of scores: one step of message passing over what is known or said of one face (ours).

The paper's graph refines prompts, which are the same for every face; a graph of constants is then another
parametrisation of the classifier. Here a face's own labels speak to each other: what is stated of it, or what its
scores say, moves the scores of the labels that go with it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from fi_jax.config import KnowledgeConfig
from fi_jax.knowledge.choices import Groups, score_log_probs
from fi_jax.knowledge.correlation import Counts, log_lift, prior, shared_places, shuffled_lift
from fi_jax.knowledge.logic import Facts


class Relations(NamedTuple):
    """What counts say of pairs of labels, and of each label (`knowledge.correlation`)."""

    # Signed logarithm of P(j | i) / P(j), 0 where nothing is known of the pair.
    lift: Float[Array | np.ndarray, "n n"]
    # P(i).
    prior: Float[Array | np.ndarray, "n"]


def count_relations(counts: Counts, config: KnowledgeConfig, seed: int = 0) -> Relations | None:
    """What `counts` say, as the config wants it; None where no messages pass. `seed` matters to shuffled labels alone."""
    if config.score_graph == "off":
        return None
    lift = log_lift(counts)
    if config.score_graph == "shuffled":
        lift = shuffled_lift(lift, seed)
    return Relations(lift.astype(np.float32), prior(counts).astype(np.float32))


def extended_relations(
    before: Relations,
    labels: Sequence[str],
    counted: Relations,
    new_labels: Sequence[str],
    seen: Bool[np.ndarray, "n n"],
) -> Relations:
    """`counted` over the pairs of labels that were `seen` together; of the others, what `before` says of `labels`."""
    shared, old = shared_places(labels, new_labels)
    lift, priors = np.zeros_like(counted.lift), np.array(counted.prior)
    lift[np.ix_(shared, shared)] = before.lift[np.ix_(old, old)]
    priors[shared] = before.prior[old]
    return Relations(np.where(seen, counted.lift, lift), np.where(seen.diagonal(), counted.prior, priors))


class ScoreGraph(nn.Module):
    """s' = s + (q − π) E, with q the facts where they are known and else what the scores say, π how often labels hold.

    E_ij = strength · lift_ij + speak(T_i) · hear(T_j): edges start at the log-lift of the masked counts; the second part,
    zero at first, is learnt and reads the prompts, so that a label that was never counted has edges by what its words
    mean; it does not shape them. No label speaks to itself, nor options of one choice to each other. Trained with some
    of each face's labels revealed at random (`revealed`), so that stated facts mean something.
    """

    config: KnowledgeConfig

    @nn.compact
    def __call__(
        self,
        scores: Float[Array, "b n"],
        prompts: Float[Array, "n e"],
        relations: Relations,
        groups: Groups | None,
        facts: Facts | None = None,
    ) -> Float[Array, "b n"]:
        """Returns s' in float32. Where only scores speak, they are taken as they are: no gradient goes through q."""
        strength = self.param("strength", nn.initializers.constant(self.config.score_strength), (), jnp.float32)
        edges = strength * jnp.asarray(relations.lift, jnp.float32)
        if self.config.score_rank:
            x = jax.lax.stop_gradient(prompts.astype(jnp.float32))
            x = x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-12))
            speak = nn.Dense(self.config.score_rank, use_bias=False, name="speak")(x)
            hear = nn.Dense(self.config.score_rank, use_bias=False, kernel_init=nn.initializers.zeros, name="hear")(x)
            edges += speak @ hear.T
        evidence = jax.lax.stop_gradient(jnp.exp(score_log_probs(scores, groups).yes))
        evidence = with_facts(evidence, facts) - relations.prior
        return scores + evidence @ jnp.where(_apart(edges.shape[0], groups), edges, 0.0)


def with_facts(probs: Float[Array, "b n"], facts: Facts | None) -> Float[Array, "b n"]:
    """`probs`, with what is known in place of what is said."""
    return probs if facts is None else jnp.where(facts.known, facts.labels, probs)


def _apart(n: int, groups: Groups | None) -> Bool[Array, "n n"]:
    """Which labels may speak to which."""
    apart = ~jnp.eye(n, dtype=bool)
    if groups is None:
        return apart
    members = jnp.asarray(groups, jnp.float32)
    return apart & (members.T @ members == 0)


def revealed(key: Array, known: Float[Array, "b n"] | Bool[Array, "b n"], groups: Groups | None) -> Bool[Array, "b n"]:
    """Which of the known labels a training step reveals: none of half the faces, a random share of the others'.

    The options of a choice are revealed together, else one would tell the others.
    """
    faces, rates, labels = jax.random.split(key, 3)
    b, n = known.shape
    rate = jax.random.bernoulli(faces, 0.5, (b, 1)) * jax.random.uniform(rates, (b, 1))
    draw = jax.random.uniform(labels, (b, n))
    for group in () if groups is None else groups:
        draw = jnp.where(group, draw[:, jnp.argmax(group), None], draw)
    return (known > 0) & (draw < rate)
