"""Token arrays of the batch contract: prefix slots, segments, targets, token loss."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from fi_jax.errors import UserError
from fi_jax.labels.question_bank import questions_for
from fi_jax.labels.registry import vocabulary as find_vocabulary
from fi_jax.labels.tasks import age_labels
from fi_jax.models.batch import IMAGE_SLOT, KNOWLEDGE_SLOT, SEGMENTATION_SLOT
from fi_jax.prompting.descriptions import open_examples
from fi_jax.prompting.sequences import SequenceBuilder, Slots
from fi_jax.prompting.templates import template
from fi_jax.weights.tokenizers import byte_tokenizer

VOCABULARY = find_vocabulary("faces")
QUESTIONS = questions_for(VOCABULARY)
TOKENIZER = byte_tokenizer()


SLOTS = Slots(4, 2, 3)


def build(slots=SLOTS, questions=QUESTIONS, style="plain", **sizes) -> SequenceBuilder:
    return SequenceBuilder(TOKENIZER, template(style), VOCABULARY, questions, slots, **{"num_segments": 6, **sizes})


BUILDER = build(lm_length=40)


def text_of(ids) -> str:
    return TOKENIZER.decode([int(i) for i in ids], skip_special_tokens=False)


@pytest.mark.parametrize("style", ["chatml", "plain"])
def test_prefix_has_every_slot_in_order(style):
    style_of = template(style)
    prefix = build(style=style).prefix
    runs = [int(a) for a, b in zip(prefix, [*prefix[1:], 0], strict=True) if a < 0 and a != b]
    assert runs == [IMAGE_SLOT, SEGMENTATION_SLOT, KNOWLEDGE_SLOT]
    assert [(prefix == slot).sum() for slot in runs] == [4, 2, 3]
    words = style_of.opening + 2 * style_of.between + style_of.closing
    assert text_of(prefix[prefix >= 0]) == words


def test_without_segmentation_its_slots_and_their_separator_go():
    with_map, without = build(), build(slots=Slots(4, 0, 3))
    assert SEGMENTATION_SLOT not in without.prefix
    assert len(with_map.prefix) - len(without.prefix) == 2 + len(with_map.ids(template("plain").between))


def test_a_segment_is_its_question_and_ends_where_the_answer_is_due():
    batch = BUILDER.build([[0, 5], [len(QUESTIONS) - 1]])
    for row, at, index in ((0, 0, 0), (0, 1, 5), (1, 0, len(QUESTIONS) - 1)):
        valid = batch["segment_valid"][row, at]
        assert text_of(batch["segment_tokens"][row, at][valid]) == f"Q: {QUESTIONS[index].text}\nA:"
        assert batch["answer_position"][row, at] == valid.sum() - 1
        # Padding is on the right.
        assert not valid[valid.sum() :].any()
        question = QUESTIONS[index]
        count = len(question.answers)
        assert [text_of([t]) for t in batch["option_tokens"][row, at, :count]] == [f" {a}" for a in question.answers]
        assert (batch["option_tokens"][row, at, count:] == -1).all()
        labels = [-1 if label is None else VOCABULARY.index(label) for label in question.labels]
        assert batch["option_labels"][row, at, :count].tolist() == labels
        assert batch["question_index"][row, at] == index
    assert not batch["segment_valid"][1, 1:].any() and (batch["option_tokens"][1, 1:] == -1).all()
    assert (batch["option_targets"] == 0).all() and (batch["lm_weights"] == 0).all()


def test_shapes_and_types_are_the_contracts():
    batch = BUILDER.build([[0], [1], [2]])
    b, q, s, k, m, p = 3, 6, BUILDER.segment_length, 20, 40, len(BUILDER.prefix)
    shapes = {
        "prefix_tokens": ((b, p), np.int32),
        "segment_tokens": ((b, q, s), np.int32),
        "segment_valid": ((b, q, s), bool),
        "answer_position": ((b, q), np.int32),
        "option_tokens": ((b, q, k), np.int32),
        "option_labels": ((b, q, k), np.int32),
        "option_targets": ((b, q, k), np.float32),
        "lm_positions": ((b, m), np.int32),
        "lm_targets": ((b, m), np.int32),
        "lm_weights": ((b, m), np.float32),
        "question_index": ((b, q), np.int32),
    }
    assert {key: (value.shape, value.dtype) for key, value in batch.items()} == shapes


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_targets_are_distributions_where_answerable_and_nothing_elsewhere(seed):
    rng = np.random.default_rng(seed)
    n = len(VOCABULARY)
    labels, known = (rng.random((3, n)) < 0.5).astype(np.float32), rng.random((3, n)) < 0.8
    targets, answerable = BUILDER.targets(labels, known)
    sums = targets.sum(-1)
    np.testing.assert_allclose(sums[answerable], 1, atol=1e-6)
    assert (sums[~answerable] == 0).all()
    # Unknown labels have no part in it, whatever stands there.
    noise = np.where(known, labels, rng.random((3, n))).astype(np.float32)
    again, same = BUILDER.targets(noise, known)
    np.testing.assert_array_equal(targets, again)
    np.testing.assert_array_equal(answerable, same)
    for i, question in enumerate(QUESTIONS):
        at = [VOCABULARY.index(label) for label in question.labels if label]
        expected = known[:, at].all(-1) & (question.is_binary | (labels[:, at].sum(-1) > 0))
        np.testing.assert_array_equal(answerable[:, i], expected)


def test_an_age_is_two_hot_over_the_years_question():
    labels, known = np.zeros((1, len(VOCABULARY)), np.float32), np.zeros((1, len(VOCABULARY)), bool)
    for name, value in age_labels(31.0).items():
        labels[0, VOCABULARY.index(name)], known[0, VOCABULARY.index(name)] = value, True
    targets, answerable = BUILDER.targets(labels, known)
    at = next(i for i, q in enumerate(QUESTIONS) if q.name == "age_years")
    assert answerable[0, at]
    # 31 lies between the centres 27 and 32.
    np.testing.assert_allclose(targets[0, at, 5:7], [0.2, 0.8], atol=1e-6)


def test_token_loss_predicts_the_next_token_of_the_answer():
    targets = np.zeros((1, len(QUESTIONS), 20), np.float32)
    targets[0, 0, 1] = 1
    opened = [[BUILDER.open_tokens("Describe this face.", "A man who smiles.")]]
    batch = BUILDER.build([[0, 3]], targets, opened, closed_in_lm=1)
    flat = batch["segment_tokens"][0].reshape(-1)
    real = batch["lm_weights"][0] > 0
    positions, expected = batch["lm_positions"][0][real], batch["lm_targets"][0][real]
    # The closed question's answer, due at its last token, then the whole free answer and the end.
    assert positions[0] == batch["answer_position"][0, 0]
    assert text_of(expected) == " No A man who smiles.\n"
    np.testing.assert_array_equal(flat[positions[1:] + 1], expected[1:])
    valid = batch["segment_valid"][0, 2]
    assert text_of(batch["segment_tokens"][0, 2][valid]) == "Q: Describe this face.\nA: A man who smiles.\n"
    assert (batch["option_tokens"][0, 2] == -1).all()


def test_an_unknown_closed_answer_is_not_in_the_token_loss():
    batch = BUILDER.build([[0]], np.zeros((1, len(QUESTIONS), 20), np.float32), closed_in_lm=2)
    assert batch["lm_weights"].sum() == 0


def test_a_free_answer_longer_than_its_segment_keeps_whole_sentences_and_its_end():
    builder = build(lm_length=1000)
    short = "She smiles. " + "x" * 20 + ". " + "y" * 500 + "."
    batch = builder.build([[]], None, [[builder.open_tokens("Who?", short)]])
    valid = batch["segment_valid"][0, 0]
    assert text_of(batch["segment_tokens"][0, 0][valid]) == f"Q: Who?\nA: She smiles. {'x' * 20}.\n"
    real = batch["lm_weights"][0] > 0
    assert batch["lm_targets"][0][real][-1] == builder.end_id
    assert builder.open_tokens("Who?", "x" * 500) is None


@pytest.mark.parametrize("length", [40, 60])
def test_no_training_answer_loses_its_end(length):
    """At 40 tokens 2 % of the open answers did (with a tokenizer of words, as here)."""
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "\n": 1, "Yes": 2, "No": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|\w+|[^\w\s]"), "isolated")
    style = replace(template("plain"), answer_prefix="")
    builder = SequenceBuilder(
        words, style, VOCABULARY, QUESTIONS[:3], Slots(1, 0, 1), num_segments=2, segment_length=length, lm_length=length
    )
    rng = np.random.default_rng(0)
    for _ in range(200):
        labels = {name: bool(rng.random() < 0.7) for name in VOCABULARY.names}
        for pair in open_examples(labels, 34.0, rng):
            tokens = builder.open_tokens(*pair)
            assert tokens is None or (tokens[1][-1] == builder.end_id and sum(map(len, tokens)) <= length)


def llama_tokenizer() -> Tokenizer:
    """As Llama-2's: a word start before every text, a new line as a byte."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        "▁",
        *"YesNoQA:",
        "▁Y",
        "▁Ye",
        "▁Yes",
        "▁N",
        "▁No",
    ]
    merges = [("▁", "Y"), ("▁Y", "e"), ("▁Ye", "s"), ("▁", "N"), ("▁N", "o")]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    made = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.add_special_tokens(["<s>", "</s>"])
    return made


def test_answers_stop_on_the_token_that_ends_them():
    """`plain` on Llama-2 ended answers with the word start that every answer begins with."""
    llama = llama_tokenizer()
    builder = SequenceBuilder(
        llama, template("plain"), VOCABULARY, QUESTIONS[:1], Slots(1, 0, 1), num_segments=1, segment_length=400
    )
    assert builder.end_id == llama.token_to_id("<0x0A>")
    question, answer = builder.open_tokens("Who?", "No")
    assert answer == [llama.token_to_id("▁No"), builder.end_id] and question[-1] == llama.token_to_id(":")
    builder = SequenceBuilder(llama, template("vicuna"), VOCABULARY, QUESTIONS[:1], Slots(1, 0, 1), num_segments=1)
    assert builder.end_id == llama.token_to_id("</s>")


@pytest.mark.parametrize(("style", "tokenizer"), [("chatml", llama_tokenizer()), ("vicuna", TOKENIZER)])
def test_a_template_whose_markers_are_no_tokens_is_refused(style, tokenizer):
    with pytest.raises(UserError, match="which is no token of this tokenizer; set data.template"):
        SequenceBuilder(tokenizer, template(style), VOCABULARY, QUESTIONS[:1], Slots(1, 0, 1), num_segments=1)


def test_what_does_not_fit_is_one_line():
    with pytest.raises(UserError, match="data.segment_length is 10; raise it to"):
        build(segment_length=10)
    with pytest.raises(UserError, match="7 questions about one face, but sequences hold 6"):
        BUILDER.build([range(7)])
    with pytest.raises(UserError, match="is 3 tokens with this tokenizer; it must be one"):
        SequenceBuilder(
            _Bytes(),
            replace(template("plain"), answer_prefix=""),
            VOCABULARY,
            QUESTIONS[:1],
            Slots(1, 0, 1),
            num_segments=1,
        )


class _Bytes:
    """A tokenizer with no word in one token."""

    def encode(self, text, add_special_tokens=False):
        return type("Encoding", (), {"ids": list(text.encode())})()
