"""Which labels are alternatives of one choice for the alignment head, and what its scores then say (ours).

A label of an exactly-one group (gender, age, race, expression) is one option of a softmax; every other label is a
yes/no of its own. Independent yes/nos would count the evidence for an option twice: for it, and against the others.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from fi_jax.config import KnowledgeConfig
from fi_jax.knowledge.logic import LogProbs, log_probs, softmax_log_probs
from fi_jax.labels.vocabulary import Vocabulary

Groups = Bool[Array | np.ndarray, "g n"]
# Logit of a label that is no option of a choice.
_NONE = -1e30


def head_groups(config: KnowledgeConfig, vocabulary: Vocabulary) -> Bool[np.ndarray, "g n"] | None:
    """Which labels are the options of each choice; None where the head is Bernoulli, or the vocabulary has no choice."""
    groups = [group.labels for group in vocabulary.groups if group.kind == "exactly_one"]
    if config.head == "bernoulli" or not groups:
        return None
    return np.array([[name in labels for name in vocabulary.names] for labels in groups])


def score_log_probs(scores: Float[Array, "b n"], groups: Groups | None) -> LogProbs:
    """What the head's scores say of each label. A label in two groups gets the mean of what both say."""
    alone = log_probs(scores)
    if groups is None:
        return alone
    options = softmax_log_probs(jnp.where(groups, scores[:, None], _NONE))
    times = jnp.asarray(groups).sum(0)

    def mean(logs: Float[Array, "b g n"]) -> Float[Array, "b n"]:
        return jax.nn.logsumexp(jnp.where(groups, logs, _NONE), axis=1) - jnp.log(jnp.maximum(times, 1))

    return LogProbs(*(jnp.where(times > 0, mean(one), own) for one, own in zip(options, alone, strict=True)))


def yes_no_logits(scores: Float[Array, "b n"], groups: Groups | None) -> Float[Array, "b n"]:
    """Log-odds of every label taken alone: what a yes/no question about an option of a choice goes by."""
    if groups is None:
        return scores
    said = score_log_probs(scores, groups)
    return said.yes - said.no


def score_cross_entropy(
    scores: Float[Array, "b n"],
    labels: Float[Array, "b n"],
    known: Float[Array, "b n"] | Bool[Array, "b n"],
    groups: Groups | None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns `(sum, count)` of the head's cross-entropy; a choice counts once, like a yes/no label.

    `known` weighs each label. Of a choice of which only some options are annotated, the others are one option: what
    is annotated says how likely it is (a face that is not White, Black or Indian is one of the rest).
    """
    scores, known = scores.astype(jnp.float32), known.astype(jnp.float32)
    bernoulli = optax.sigmoid_binary_cross_entropy(scores, labels)
    if groups is None:
        return jnp.sum(bernoulli * known), jnp.sum(known)
    alone = known * ~jnp.asarray(groups).any(0)
    told = jnp.asarray(groups) & (known[:, None] > 0)
    yes = jax.nn.log_softmax(jnp.where(groups, scores[:, None], _NONE), axis=-1)
    mass = jnp.where(told, labels[:, None], 0.0)
    has_rest = (told != groups).any(-1)
    rest = jnp.where(has_rest, jnp.maximum(1 - mass.sum(-1), 0.0), 0.0)
    rest_log = jax.nn.logsumexp(jnp.where(groups & ~told, yes, _NONE), axis=-1)
    cost = -jnp.where(told, mass * yes, 0.0).sum(-1) - jnp.where(has_rest, rest * rest_log, 0.0)
    total = mass.sum(-1) + rest
    # The mean weight of the options that are annotated; an annotation under which no option holds says nothing.
    weight = (known[:, None] * told).sum(-1) / jnp.maximum(told.sum(-1), 1) * (total > 0) * told.any(-1)
    cost = cost / jnp.where(total > 0, total, 1.0)
    return jnp.sum(bernoulli * alone) + jnp.sum(cost * weight), jnp.sum(alone) + jnp.sum(weight)
