"""The terms of L on what the model says: token loss, L_bce and L_c on the LLM's answers, the same on the head.

Every term is a sum and the count it is divided by, so that micro-batches and hosts weigh by what was counted.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from fi_jax.config import LossConfig
from fi_jax.knowledge.logic import RuleTable, log_probs, logic_loss
from fi_jax.prompting.probabilities import label_log_probs


class Answers(NamedTuple):
    """What one forward pass says; None where the stage does not run that part."""

    scores: Float[Array, "b n"]
    option_logits: Float[Array, "b q k"] | None = None
    answer_logits: Float[Array, "b m v"] | None = None


def _closed(logits: Float[Array, "b q k"], batch: dict[str, Array]) -> tuple[Array, Array]:
    """L_bce: cross-entropy between target and said distribution of each question that has a known answer."""
    targets = batch["option_targets"]
    known = (targets.sum(-1) > 0) * batch["weight"][:, None]
    loss = optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)
    return jnp.sum(loss * known), jnp.sum(known)


def _head(answers: Answers, batch: dict[str, Array]) -> tuple[Array, Array]:
    """L_bce on the alignment head: Bernoulli throughout, unknown labels masked."""
    known = batch["known"] * batch["weight"][:, None]
    loss = optax.sigmoid_binary_cross_entropy(answers.scores.astype(jnp.float32), batch["labels"])
    return jnp.sum(loss * known), jnp.sum(known)


def _tokens(logits: Float[Array, "b m v"], batch: dict[str, Array]) -> tuple[Array, Array]:
    """L_lm: next-token cross-entropy of free-form answers."""
    weights = batch["lm_weights"] * batch["weight"][:, None]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), batch["lm_targets"])
    return jnp.sum(loss * weights), jnp.sum(weights)


def loss_terms(
    answers: Answers,
    batch: dict[str, Array],
    rules: RuleTable,
    config: LossConfig,
) -> dict[str, tuple[Array, Array]]:
    """Returns `(sum, count)` of every term that has a weight and whose part ran.

    L_c on the LLM's answers is in scope where a label was asked about; on the head, for every label, but not for
    faces that were blended (`training.mixup`).
    """
    num_labels = batch["labels"].shape[1]
    real = batch["weight"][:, None] > 0
    terms: dict[str, tuple[Array, Array]] = {}
    if config.head_bce:
        terms["head_bce"] = _head(answers, batch)
    if config.head_logic:
        whole = batch["whole"][:, None] if "whole" in batch else True
        in_scope = jnp.broadcast_to(real & whole, answers.scores.shape)
        terms["head_logic"] = logic_loss(
            log_probs(answers.scores), in_scope, rules, config.logic_form, config.logic_alpha
        )
    if answers.option_logits is not None:
        if config.bce:
            terms["bce"] = _closed(answers.option_logits, batch)
        if config.logic:
            said, asked = label_log_probs(answers.option_logits, batch, num_labels)
            terms["logic"] = logic_loss(
                said, asked & real, rules, config.logic_form, config.logic_alpha, categorical=True
            )
    if config.lm and answers.answer_logits is not None and answers.answer_logits.shape[1]:
        terms["lm"] = _tokens(answers.answer_logits, batch)
    return terms


def mae_loss(
    reconstructed: Float[Array, "b i c"], targets: Float[Array, "b i c"], hidden: Bool[Array, "b i"]
) -> tuple[Array, Array]:
    """Sum and count over hidden patches of the mean squared error of their values."""
    return jnp.sum(jnp.mean((reconstructed - targets) ** 2, axis=-1) * hidden), jnp.sum(hidden)


def total(terms: dict[str, tuple[Array, Array]], counts: dict[str, Array], weights: Mapping[str, Any]) -> Array:
    """Σ weight · sum / count, with the counts of the whole batch (all micro-batches, all hosts)."""
    return sum(
        (weights[name] * value / jnp.maximum(counts[name], 1.0) for name, (value, _) in terms.items()),
        start=jnp.zeros(()),
    )
