"""Questions about a face -> one shared-prefix sequence: the token arrays of the batch contract (`models.batch`).

A label becomes a token in three steps: `labels.question_bank` makes a question of it, `prompting.templates` spells the
question, and `SequenceBuilder` finds the token of each option and the place where it is due.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer

from fi_jax.errors import UserError
from fi_jax.labels.questions import Question
from fi_jax.labels.vocabulary import Vocabulary
from fi_jax.models.batch import IMAGE_SLOT, KNOWLEDGE_SLOT, SEGMENTATION_SLOT, Batch
from fi_jax.prompting.templates import Template

# A free-form question and its answer, as token ids.
OpenTokens = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Slots:
    """How many tokens the model puts into the prefix for each modality."""

    image: int
    segmentation: int
    knowledge: int


@dataclass(frozen=True)
class _ClosedTokens:
    """A closed question as tokens: its segment, and the token and label of each option (−1 is padding or none)."""

    segment: Int[np.ndarray, "s"]
    option_tokens: Int[np.ndarray, "k"]
    option_labels: Int[np.ndarray, "k"]


class SequenceBuilder:
    """Turns labels into token arrays. Immutable after construction; the closed questions are tokenised once.

    Shapes are static: `num_segments` segments of `segment_length` tokens, `lm_length` token-loss positions.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: Template,
        vocabulary: Vocabulary,
        questions: Sequence[Question],
        slots: Slots,
        *,
        num_segments: int,
        segment_length: int = 0,
        lm_length: int = 0,
    ):
        """Raises `UserError` for a template that the tokenizer lacks tokens of, for an answer that is not one token, or for
        a question longer than a segment.
        """
        self.tokenizer, self.template, self.vocabulary = tokenizer, template, vocabulary
        self.end_id = self._end_id()
        self.questions = tuple(questions)
        self.num_segments, self.lm_length = num_segments, lm_length
        self.num_options = max((len(q.options) for q in self.questions), default=1)
        self.prefix = self._prefix(slots)
        self._closed = [self._encode_closed(q) for q in self.questions]
        lengths = [len(closed.segment) for closed in self._closed]
        longest = max(lengths, default=1)
        self.segment_length = segment_length or longest
        if longest > self.segment_length:
            raise UserError(
                f"question '{self.questions[lengths.index(longest)].name}' takes {longest} tokens but "
                f"data.segment_length is {self.segment_length}; raise it to {longest} or more"
            )

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens of its own."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def _prefix(self, slots: Slots) -> Int[np.ndarray, "p"]:
        t = self.template
        # With a text behind them, the tokens that open it are apart from any that end it.
        whole = self.tokenizer.encode(t.opening + "a")
        opened = whole.ids[: whole.special_tokens_mask.index(0)] if t.opened_by_tokenizer else []
        parts = [opened, self.ids(t.opening), [IMAGE_SLOT] * slots.image]
        if slots.segmentation:
            parts += [self.ids(t.between), [SEGMENTATION_SLOT] * slots.segmentation]
        if slots.knowledge:
            parts += [self.ids(t.between), [KNOWLEDGE_SLOT] * slots.knowledge]
        parts.append(self.ids(t.closing))
        return np.array([token for part in parts for token in part], np.int32)

    def question_ids(self, text: str) -> list[int]:
        """Tokens of one question, up to where its answer is due."""
        anchor = self.template.anchor
        return self.ids(anchor + self.template.before + text + self.template.after)[len(self.ids(anchor)) :]

    def answer_ids(self, text: str) -> list[int]:
        """Tokens of an answer in its place; alone, a SentencePiece tokenizer would put another word start before it."""
        before = self.ids(self.template.after)
        ids = self.ids(self.template.after + self.template.answer_prefix + text)
        return ids[len(before) :] if ids[: len(before)] == before else self.ids(self.template.answer_prefix + text)

    def _end_id(self) -> int:
        """The token that ends an answer."""
        for marker in self.template.markers:
            if self.ids(marker) != [self.tokenizer.token_to_id(marker)]:
                raise UserError(
                    f"the chat template needs '{marker}', which is no token of this tokenizer; set data.template to the one "
                    "that the LLM was trained with, or to plain"
                )
        answer, ended = self.answer_ids("Yes"), self.answer_ids("Yes" + self.template.end)
        if ended[:-1] != answer:
            raise UserError(
                f"the end of an answer, {self.template.end!r}, is not one token with this tokenizer; set another data.template"
            )
        return ended[-1]

    def open_tokens(self, question: str, answer: str) -> OpenTokens | None:
        """Tokens of a free-form question and of its answer, end token included; None where they do not fit a segment.

        An answer that is too long loses whole sentences at its end.
        """
        ids = self.question_ids(question)
        while answer:
            tokens = self.answer_ids(answer + self.template.end)
            if len(ids) + len(tokens) <= self.segment_length:
                return ids, tokens
            answer = answer.rstrip(".").rpartition(". ")[0]
            answer += "." if answer else ""
        return None

    def _encode_closed(self, question: Question) -> _ClosedTokens:
        options = np.full(self.num_options, -1, np.int32)
        labels = np.full(self.num_options, -1, np.int32)
        for k, (answer, label) in enumerate(zip(question.answers, question.labels, strict=True)):
            options[k] = self._answer_id(question, answer)
            labels[k] = -1 if label is None or label not in self.vocabulary else self.vocabulary.index(label)
        return _ClosedTokens(np.array(self.question_ids(question.text), np.int32), options, labels)

    def _answer_id(self, question: Question, answer: str) -> int:
        ids = self.answer_ids(answer)
        if len(ids) != 1:
            raise UserError(
                f"answer '{answer}' of question '{question.name}' is {len(ids)} tokens with this tokenizer; it must be one in training"
            )
        return ids[0]

    def targets(
        self, labels: Float[np.ndarray, "b n"], known: Bool[np.ndarray, "b n"]
    ) -> tuple[Float[np.ndarray, "b questions k"], Bool[np.ndarray, "b questions"]]:
        """Target distributions of every question for a batch of faces, and which questions are answerable.

        A question is answerable when all its labels are known and some option holds.
        """
        faces, count = len(labels), len(self.questions)
        targets = np.zeros((faces, count, self.num_options), np.float32)
        answerable = np.zeros((faces, count), bool)
        for i, (question, closed) in enumerate(zip(self.questions, self._closed, strict=True)):
            at = closed.option_labels[: len(question.options)]
            if question.is_binary:
                if at[0] >= 0:
                    value = labels[:, at[0]]
                    answerable[:, i] = known[:, at[0]]
                    targets[:, i, :2] = np.stack([value, 1 - value], -1) * answerable[:, i, None]
            elif (at >= 0).all():
                mass = labels[:, at].sum(-1)
                answerable[:, i] = known[:, at].all(-1) & (mass > 0)
                targets[:, i, : len(at)] = labels[:, at] / np.maximum(mass, 1e-6)[:, None] * answerable[:, i, None]
        return targets, answerable

    def build(
        self,
        chosen: Sequence[Sequence[int]],
        targets: Float[np.ndarray, "b questions k"] | None = None,
        open_questions: Sequence[Sequence[OpenTokens]] = (),
        closed_in_lm: int = 0,
    ) -> Batch:
        """Makes the token arrays of a batch: the keys from `prefix_tokens` on.

        Args:
          chosen: for each face, indices of the closed questions to ask, in order.
          targets: target distributions, or None when nothing is known.
          open_questions: for each face, free-form questions (`open_tokens`); they stand after the closed ones. An answer
            without a question follows the prefix.
          closed_in_lm: how many of a face's first closed questions also enter the token loss.
        """
        b, q, s, k, m = len(chosen), self.num_segments, self.segment_length, self.num_options, self.lm_length
        batch: Batch = {
            "prefix_tokens": np.broadcast_to(self.prefix, (b, len(self.prefix))).copy(),
            "segment_tokens": np.zeros((b, q, s), np.int32),
            "segment_valid": np.zeros((b, q, s), bool),
            "answer_position": np.zeros((b, q), np.int32),
            "option_tokens": np.full((b, q, k), -1, np.int32),
            "option_labels": np.full((b, q, k), -1, np.int32),
            "option_targets": np.zeros((b, q, k), np.float32),
            "question_index": np.full((b, q), -1, np.int32),
            "lm_positions": np.zeros((b, m), np.int32),
            "lm_targets": np.zeros((b, m), np.int32),
            "lm_weights": np.zeros((b, m), np.float32),
        }
        for row, indices in enumerate(chosen):
            free = list(open_questions[row]) if open_questions else []
            if len(indices) + len(free) > q:
                raise UserError(f"{len(indices) + len(free)} questions about one face, but sequences hold {q}")
            loss_tokens: list[tuple[int, int]] = []
            for at, index in enumerate(indices):
                closed = self._closed[index]
                length = len(closed.segment)
                batch["segment_tokens"][row, at, :length] = closed.segment
                batch["segment_valid"][row, at, :length] = True
                batch["answer_position"][row, at] = length - 1
                batch["option_tokens"][row, at] = closed.option_tokens
                batch["option_labels"][row, at] = closed.option_labels
                batch["question_index"][row, at] = index
                if targets is not None:
                    batch["option_targets"][row, at] = targets[row, index]
                    best = int(targets[row, index].argmax())
                    if at < closed_in_lm and targets[row, index, best] > 0:
                        loss_tokens.append((at * s + length - 1, int(closed.option_tokens[best])))
            for at, (question, answer) in enumerate(free, start=len(indices)):
                tokens = question + answer
                batch["segment_tokens"][row, at, : len(tokens)] = tokens
                batch["segment_valid"][row, at, : len(tokens)] = True
                batch["answer_position"][row, at] = len(question) - 1
                loss_tokens += [(at * s + i - 1 if i else -1, tokens[i]) for i in range(len(question), len(tokens))]
            for i, (position, token) in enumerate(loss_tokens[:m]):
                batch["lm_positions"][row, i] = position
                batch["lm_targets"][row, i] = token
                batch["lm_weights"][row, i] = 1.0
        return batch
