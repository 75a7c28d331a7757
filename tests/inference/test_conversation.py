"""A question in a person's words, about one picture: what is matched, what is said, and what is kept to oneself."""

import copy
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import small_answerer, small_config

from fi_jax.errors import UserError
from fi_jax.faces.framing import FramedFace
from fi_jax.inference import conversation
from fi_jax.inference.answerer import Answerer, check_base
from fi_jax.inference.answers import Answer, Request, Response
from fi_jax.inference.conversation import consistent_options, replies, respond
from fi_jax.labels.question_bank import question
from fi_jax.weights.bundle import TrainedModel

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
BOX = (2.0, 4.0, 26.0, 30.0)


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    """A small model without a map, over UTKFace's labels: no parser is needed."""
    config = small_config()
    config = replace(
        config,
        model=replace(config.model, use_segmentation=False),
        data=replace(config.data, vocabulary="utkface"),
    )
    return small_answerer(config)


def test_one_question_one_answer(answerer):
    reply = respond(answerer, PICTURE, BOX, Request("Man or woman?"))
    assert [a.question.name for a in reply.answers] == ["gender"]
    assert sum(reply.answers[0].probabilities) == pytest.approx(1, abs=1e-5)
    answer = f"{reply.answers[0].option} ({100 * reply.answers[0].probability:.0f} %)"
    assert reply.to_text() == f"{answer}\nanswered: What is this person's gender?"
    assert reply.image.shape == (16, 16, 3)


def test_answers_that_are_no_numbers_are_refused(answerer):
    """Weights that diverged or overflow made "Yes (nan %)"."""
    image, mask, asked = PICTURE[None, :16, :16], np.zeros((1, 16, 16), np.uint8), [question("gender")]
    for part, leaf, by_llm in (("head", "log_scale", False), ("llm", "norm", True)):
        broken = copy.copy(answerer)
        broken.params = {**answerer.params, part: jax.tree.map(lambda x: x, answerer.params[part])}
        broken.params[part][leaf] = jax.tree.map(lambda x: x * jnp.nan, broken.params[part][leaf])
        with pytest.raises(UserError, match="answers are not finite numbers"):
            broken.answer(image, mask, asked, by_llm=by_llm)


def test_questions_asked_alone_share_a_shape_and_are_answered_as_among_others(answerer):
    asked = [question("gender"), question("age_group")]
    lengths = [answerer.builder([one]).segment_length for one in asked]
    assert all(length % 16 == 0 for length in lengths) and answerer.builder(asked).segment_length % 16
    image, mask = PICTURE[None, :16, :16], np.zeros((1, 16, 16), np.uint8)
    together = answerer.answer(image, mask, asked).llm
    for i, one in enumerate(asked):
        alone = answerer.answer(image, mask, [one]).llm[0, 0]
        np.testing.assert_allclose(alone, together[0, i, : len(alone)], atol=1e-5)


def test_an_age_is_said_in_years(answerer):
    reply = respond(answerer, PICTURE, BOX, Request("How old?", by_llm=False))
    p = np.array(reply.answers[0].probabilities)
    assert reply.age == pytest.approx(float(p @ np.arange(2, 100, 5)), abs=1e-3)
    assert reply.to_text().startswith("about ") and reply.source == "head"
    assert reply.to_json("x.jpg")["answers"][0]["years"] == pytest.approx(reply.age, abs=0.06)


def test_everything_leaves_race_out_unless_asked(answerer):
    listed = respond(answerer, PICTURE, BOX, Request(everything=True, by_llm=False))
    assert [a.question.name for a in listed.answers] == ["Male", "gender", "age_group", "age_years"]
    listed = respond(answerer, PICTURE, BOX, Request(everything=True, race=True, by_llm=False))
    assert "race:utkface" in [a.question.name for a in listed.answers]


def test_everything_and_a_question_keeps_both(answerer):
    alone = respond(answerer, PICTURE, BOX, Request(everything=True, by_llm=False))
    both = respond(answerer, PICTURE, BOX, Request("gender", everything=True, by_llm=False))
    assert both.answers == alone.answers and both.age == alone.age is not None
    gender = next(a for a in alone.answers if a.question.name == "gender")
    assert both.text == f"{gender.option} ({100 * gender.probability:.0f} %)" and both.note.startswith("answered: ")


def test_all_at_once_equals_one_by_one(answerer):
    """Padding and company change no answer."""
    together = respond(answerer, PICTURE, BOX, Request(everything=True, race=True))
    named = {answer.question.name: answer for answer in together.answers}
    for asked in named.values():
        (alone,) = respond(answerer, PICTURE, BOX, Request(asked.question.text)).answers
        # "Is this person male?" is answered from "gender".
        assert alone.question == asked.question or asked.question.name == "Male"
        np.testing.assert_allclose(alone.probabilities, named[alone.question.name].probabilities, atol=1e-4)


def test_consistent_answers_break_no_rule(answerer):
    """Age group and years disagree; the surer one wins, options of probability zero included."""
    asked = [question("age_group"), question("age_years")]
    said = np.zeros((2, 20), np.float32)
    said[0, :9] = [0.9, 0.1, 0, 0, 0, 0, 0, 0, 0]
    said[1, 10], said[1, 0] = 0.51, 0.49
    chosen = consistent_options(answerer, asked, said)
    assert asked[0].options[chosen[0]] == "0-2" and chosen[1] == 0


def test_replies_as_text_and_json():
    yes = Answer(question("Smiling"), (0.8, 0.2), 0)
    years = Answer(question("age_years"), (0.05,) * 20, 3, years=49.5)
    reply = Response(PICTURE, PICTURE[..., 0], BOX, "?", (yes, years), text="A face.", changed=("Smiling",))
    lines = reply.to_text().splitlines()
    assert lines[0] == "A face." and lines[1].endswith("Yes (80 %)")
    assert "about 50 years (15-19: 5 %)" in lines[2] and lines[3].endswith("Smiling")
    found = reply.to_json("x.jpg")
    assert found["image"] == "x.jpg" and found["text"] == "A face." and found["box"] == list(BOX)
    assert found["answers"][0]["probabilities"] == {"Yes": 0.8, "No": 0.2}
    assert found["answers"][1]["years"] == 49.5


def test_adapters_stay_with_their_base(answerer):
    info = {"base": {"llm": {"name": "smollm2", "hash": "abcdef"}}}
    model = TrainedModel(answerer.config, {}, np.zeros((1, 1)), np.zeros((1, 1)), info)
    check_base(model, {"llm": {"name": "smollm2", "hash": "abcdef"}})
    with pytest.raises(UserError, match="llm adapters were trained on smollm2 with hash abcdef"):
        check_base(model, {"llm": {"name": "smollm2", "hash": "123"}})


@pytest.mark.slow
def test_a_description_is_text(answerer):
    reply = respond(answerer, PICTURE, BOX, Request(max_new_tokens=4))
    assert not reply.answers and isinstance(reply.text, str) and reply.question == "Describe this face."


def test_a_description_that_the_closed_answers_deny_is_not_said(answerer, monkeypatch):
    """The text stands in for what an LLM may write; the answers it is held against are the model's own."""
    said = respond(answerer, PICTURE, BOX, Request("gender")).answers[0].option
    right, wrong = ("man", "woman") if said == "male" else ("woman", "man")
    for noun, kept in ((right, True), (wrong, False)):
        monkeypatch.setattr(conversation, "generate", lambda *_, noun=noun: f"I see a {noun} here.")
        text = respond(answerer, PICTURE, BOX, Request("Describe the person in this picture.")).text
        assert (text == f"I see a {noun} here.") == kept
        assert wrong not in text.split()


def test_the_opposite_question_gets_the_opposite_answer(answerer):
    """One closed question, both polarities: the terminal and JSON say which was answered, and how."""
    gender = respond(answerer, PICTURE, BOX, Request("Is it a man or a woman?")).answers[0]
    male, female = gender.probabilities
    for words, claim, p in (
        ("Is this person male?", "male", male),
        ("Is this a woman?", "woman", female),
        ("Isn't this person male?", "not male", female),
        ("Is she not a woman?", "not woman", male),
    ):
        reply = respond(answerer, PICTURE, BOX, Request(words))
        assert reply.text == f"{'Yes' if p >= 0.5 else 'No'} ({100 * max(p, 1 - p):.0f} %)"
        assert reply.note == f"answered: What is this person's gender? {gender.to_text()}; {claim}: {100 * p:.0f} %"
        found = reply.to_json("x.jpg")
        assert found["answered"]["question"] == "gender" and found["answered"]["claim"] == claim
        assert found["answered"]["claim_probability"] == pytest.approx(p, abs=1e-4)


def test_an_age_is_compared_by_its_distribution(answerer):
    years = np.array(respond(answerer, PICTURE, BOX, Request("How old is he?")).answers[0].probabilities)
    reply = respond(answerer, PICTURE, BOX, Request("Is he older than 40?"))
    # Of the five years 40 to 44, four are older.
    assert reply.answer.claim_probability == pytest.approx(0.8 * years[8] + years[9:].sum(), abs=1e-5)
    assert "older than 40: " in reply.note and "about " in reply.note


def test_race_is_answered_when_asked_with_its_labels(answerer):
    reply = respond(answerer, PICTURE, BOX, Request("Is the person Asian?"))
    assert reply.text.split()[0] in ("Yes", "No") and "White, Black, Asian, Indian, Others" in reply.note


def test_what_no_face_shows_never_reaches_the_model(answerer, monkeypatch):
    monkeypatch.setattr(conversation, "generate", None)
    for words, sentence in (
        ("What is the weather like?", "I cannot tell that"),
        ("Wie alt ist diese Person?", "I answer questions in English."),
        ("Who is this?", "I do not identify people."),
    ):
        reply = respond(answerer, PICTURE, BOX, Request(words))
        assert reply.text.startswith(sentence) and not reply.answers and not reply.note


def test_free_text_is_marked_and_withheld_where_closed_answers_contradict_it(answerer, monkeypatch):
    gender = respond(answerer, PICTURE, BOX, Request("gender")).answers[0].option
    right, wrong = ("man", "woman") if gender == "male" else ("woman", "man")
    ask = Request("Describe the hair of this person.")
    for text, kept in (
        (f"The {right} has hair.", True),
        ("I cannot tell that from this picture: only the face can be seen.", True),
        (f"The {wrong} has hair.", False),
        ("Asian hair.", False),
        ("Aussie Australians.", False),
        ("It is sunny.", False),
    ):
        monkeypatch.setattr(conversation, "generate", lambda *_, text=text: text)
        reply = respond(answerer, PICTURE, BOX, Request("What is the hair like?"))
        assert (reply.text == text) == kept and ("not calibrated" in reply.note) == kept
    assert respond(answerer, PICTURE, BOX, ask).text != "Asian hair."


def test_a_text_is_told_as_it_grows_and_checked_when_it_is_whole(answerer):
    face = FramedFace(PICTURE[:16, :16], PICTURE[:16, :16, 0] % 19, "box")
    own = replace(answerer.vocabulary, open_questions=("What is written on the card?",))
    taught = copy.copy(answerer)
    taught.vocabulary = own
    for asked, words, end in (
        ("What is the hair like?", ["It", "It is sunny."], ""),
        (own.open_questions[0], ["It", "It is a B."], "It is a B."),
        (own.open_questions[0], ["An", "An Asian card."], ""),
    ):
        *grown, last = replies(taught, face, BOX, Request(asked), lambda *_, words=words: words)
        assert grown == words and (last.text == words[-1]) == bool(end) and bool(last.note) == bool(last.text == end)
    (closed,) = replies(taught, face, BOX, Request("gender"), lambda *_: pytest.fail("the LLM writes nothing"))
    assert closed.answer.question.name == "gender"


def test_the_head_says_what_it_cannot_answer(answerer):
    with pytest.raises(UserError, match="the alignment head has no answer to 'What is the hair like"):
        respond(answerer, PICTURE, BOX, Request("What is the hair like?", by_llm=False))
    reply = respond(answerer, PICTURE, BOX, Request(by_llm=False))
    assert reply.text.startswith("This is a ") and reply.note == "put together from the closed answers"
    with pytest.raises(UserError, match="100000 letters"):
        respond(answerer, PICTURE, BOX, Request("x" * 100_000))


def test_what_is_known_is_answered_as_stated_and_rules_with_it(answerer):
    """Facts reach the head, the gates of the LLM's tokens, and every question that they or a rule settle."""
    known = {"gender": "female", "age": 71}
    for by_llm in (True, False):
        request = Request(everything=True, race=True, by_llm=by_llm)
        plain, told = (respond(answerer, PICTURE, BOX, replace(request, known=k)) for k in (None, known))
        answers = {a.question.name: a for a in told.answers}
        assert answers["gender"].probabilities == (0.0, 1.0) and answers["age_group"].option == "70+"
        assert answers["age_years"].years == pytest.approx(71, abs=1e-3)
        # Nothing is known of the race. The LLM hears of the facts, a head without a graph of scores does not.
        before = next(a for a in plain.answers if a.question.family == "race").probabilities
        assert (before != answers["race:utkface"].probabilities) == by_llm


def test_a_rule_that_leaves_some_options_out_shares_their_chance(answerer):
    facts = answerer.facts({"age": 5})
    facts = facts._replace(known=facts.known & ~np.isin(answerer.vocabulary.names, ["age:3-9"]))
    q = question("age_group")
    plain, told = (answerer.answer(*_batch(), [q], by_llm=False, facts=f).head[0, 0] for f in (None, facts))
    assert plain.max() < 1 and told[1] == pytest.approx(1, abs=1e-6)


def _batch():
    image = np.resize(PICTURE, (1, 16, 16, 3)).astype(np.uint8)
    return image, np.zeros((1, 16, 16), np.uint8)


def test_facts_that_cannot_be_are_refused(answerer):
    with pytest.raises(UserError, match="--known"):
        respond(answerer, PICTURE, BOX, Request("How old?", known={"gender": "woman"}))
