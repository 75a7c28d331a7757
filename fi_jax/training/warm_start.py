"""A start for the knowledge connector: its tokens as words that the language model can already read (ours)."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import erf
from tokenizers import Tokenizer

from fi_jax.config import Experiment
from fi_jax.knowledge.gcn import PromptGcn
from fi_jax.labels.question_bank import questions_for
from fi_jax.labels.vocabulary import Vocabulary
from fi_jax.models.face_insight import Constants
from fi_jax.trees import unflatten
from fi_jax.weights.tokenizers import load_template

# How far a label holds, as the connector sees it: σ(s_i).
_GATES = np.linspace(0.0, 1.0, 9, dtype=np.float32)


class Words(NamedTuple):
    """Input embeddings of the LLM: what each label says when it holds, and what is said where one does not."""

    present: Float[np.ndarray, "n d"]
    absent: Float[np.ndarray, " d"]


def label_words(
    contents: list[Float[np.ndarray, "w d"]], answers: list[Float[np.ndarray, "a d"]], no: Float[np.ndarray, " d"]
) -> Words:
    """What each label says: its own words and its answers, in equal parts, as long as a word usually is.

    Args:
      contents: embeddings of the words of each label's prompt. What all prompts share ("a face with") is taken off.
      answers: embeddings of the answers that assert each label ("Yes", or the letter of its option).
      no: embedding of the answer where a label does not hold.
    """
    means = np.stack([words.mean(0) for words in contents])
    length = float(np.mean([np.linalg.norm(words, axis=1).mean() for words in contents]))
    said = np.stack([np.mean(words, axis=0) for words in answers])
    present = _unit(means - means.mean(0)) + _unit(said)
    return Words(length * _unit(present), length * _unit(no))


def knowledge_connector_start(
    prompts: Float[np.ndarray, "n e"], words: Words, seed: int, ridge: float = 1e-4
) -> dict[str, Float[np.ndarray, "..."]]:
    """Fits the connector to `g · present_i + (1 − g) · absent` for its inputs g · T_p,i: one least-squares problem.

    The first layer is random and the second is solved for, so nothing is trained. The gate turns a token from "no"
    to the label's words; it does not merely shorten it, as the LLM's first norm would take that back.

    Args:
      prompts: T_p^L.

    Returns:
      Leaves of the connector (`fc1/kernel` …), both layers `d` wide.
    """
    rng = np.random.default_rng(seed)
    e, d = prompts.shape[1], words.present.shape[1]
    scale = 1.0 / max(float(np.linalg.norm(prompts, axis=1).mean()), 1e-6)
    kernel = rng.normal(size=(e, d)).astype(np.float32) * scale * 2.0
    bias = rng.normal(size=(d,)).astype(np.float32)
    x = (_GATES[:, None, None] * prompts).reshape(-1, e) @ kernel + bias
    hidden = np.concatenate([_gelu(x), np.ones((len(x), 1), np.float32)], axis=1).astype(np.float64)
    targets = (_GATES[:, None, None] * words.present + (1 - _GATES[:, None, None]) * words.absent).reshape(-1, d)
    gram = hidden.T @ hidden
    gram += ridge * np.trace(gram) / len(gram) * np.eye(len(gram))
    solved = np.linalg.solve(gram, hidden.T @ targets).astype(np.float32)
    return {"fc1/kernel": kernel, "fc1/bias": bias, "fc2/kernel": solved[:-1], "fc2/bias": solved[-1]}


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-9)


def words_of(
    vocabulary: Vocabulary, tokenizer: Tokenizer, embedding: Float[np.ndarray, "v d"], answer_prefix: str
) -> Words:
    """Looks up what each label says: the words of its prompt, and the answers of the questions that can assert it."""

    def rows(text: str) -> np.ndarray:
        return np.asarray(embedding[np.array(tokenizer.encode(text, add_special_tokens=False).ids)], np.float32)

    def answer(text: str) -> np.ndarray:
        return rows(answer_prefix + text)[-1]

    questions = questions_for(vocabulary)
    said = {
        label: [answer(q.answers[q.labels.index(label)]) for q in questions if label in q.labels]
        for label in vocabulary.names
    }
    contents = [rows(label.prompt) for label in vocabulary.labels]
    # A label that no question asserts says its words alone.
    answers = [np.stack(said[name] or [words.mean(0)]) for name, words in zip(vocabulary.names, contents, strict=True)]
    return label_words(contents, answers, answer("No"))


def word_connector(
    config: Experiment, leaves: dict, constants: Constants, vocabulary: Vocabulary, tokenizer: Tokenizer
) -> dict[str, Float[np.ndarray, "..."]]:
    """Leaves of `knowledge_connector` that turn the model's refined prompts into words, by their full paths."""
    gcn = PromptGcn(config.model.knowledge)
    prompts = gcn.apply({"params": unflatten(leaves)["knowledge"]}, constants.prompts, constants.graph)
    embedding = np.asarray(leaves["llm/embed/embedding"], np.float32)
    if config.model.llm.scale_embeddings:
        embedding = embedding * np.float32(config.model.llm.hidden_size**0.5)
    words = words_of(vocabulary, tokenizer, embedding, load_template(config, tokenizer).answer_prefix)
    started = knowledge_connector_start(np.asarray(prompts, np.float32), words, config.train.seed)
    return {f"knowledge_connector/{path}": leaf for path, leaf in started.items()}
