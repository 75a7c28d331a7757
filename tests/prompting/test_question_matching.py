"""Questions in a person's words: a corpus with the right closed question and polarity, or none; never a near one."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fi_jax.labels.question_bank import questions_for
from fi_jax.labels.registry import VOCABULARY_NAMES, vocabulary
from fi_jax.prompting import question_matching
from fi_jax.prompting.question_matching import is_description, load_phrases, match_question

BANK = questions_for(vocabulary("faces"))


# question, name of the closed question that answers it ("none": no one), which of its options say yes: "+" the closed
# question as it stands, "-" its No, "=" it asks for one of several, "Asian,White" options, "18..29" whole years.
# "?": matching nothing is allowed too.
def read_corpus(name: str) -> list[list[str]]:
    lines = (Path(__file__).parent / name).read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines]


CORPUS = read_corpus("question_corpus.tsv")[1:]
# Written when the matching was done, by somebody who had not read its phrases; nothing was changed for them.
UNSEEN = read_corpus("unseen_questions.tsv")


def weights(question, yes: str) -> tuple[float, ...] | None:
    if yes == "=" or (question.is_binary and yes == "+"):
        return None
    if question.is_binary:
        return 0.0, 1.0
    if ".." not in yes:
        return tuple(float(option in yes.split(",")) for option in question.options)
    first, last = yes.split("..")
    asked = set(range(int(first or 0), int(last or 200) + 1))
    ranges = [[int(n) for n in re.findall(r"\d+", label)] for label in question.labels]
    years = [range(low, high + 1) for low, high in (r if len(r) == 2 else (r[0], r[0] + 19) for r in ranges)]
    return tuple(len(asked & set(some)) / len(some) for some in years)


@pytest.mark.parametrize(("text", "name", "yes"), CORPUS + UNSEEN, ids=[row[0] for row in CORPUS + UNSEEN])
def test_the_corpus(text, name, yes):
    match = match_question(text, BANK)
    if name == "none" or (match is None and yes.endswith("?")):
        assert match is None
        return
    assert match is not None and match.question.name == name
    assert match.weights == (pytest.approx(w) if (w := weights(match.question, yes.rstrip("?"))) else None)


def test_the_corpus_is_large():
    assert len({row[0] for row in CORPUS}) == len(CORPUS) >= 400


@pytest.mark.parametrize("name", VOCABULARY_NAMES)
def test_every_question_finds_itself(name):
    bank = questions_for(vocabulary(name))
    for question in bank:
        for words in (question.text, question.text.upper(), question.stem, question.name):
            match = match_question(words, bank)
            assert match is not None, words
            if question.name == "Male" and any(q.name == "gender" for q in bank):
                assert (match.question.name, match.weights) == ("gender", (1.0, 0.0))
                continue
            assert match.question.family == question.family and match.weights is None, words
            assert match.question is question or question.name.startswith("race:") and words != question.name


def test_whatever_is_asked_of_gender_has_one_source():
    """ "Is this a woman?", "Is this person male?" and "man or woman?" cannot contradict each other on one picture."""
    matches = [match_question(text, BANK) for text, *_ in CORPUS]
    of_gender = [m for m in matches if m is not None and "Male" in m.question.labels]
    assert {m.question.name for m in of_gender} == {"gender"} and len(of_gender) > 30
    assert {m.weights for m in of_gender} == {None, (1.0, 0.0), (0.0, 1.0)}


# By kind of phrase, a question around it and its opposite.
AROUND = {
    "be": ("Is he {phrase}?", "Is he not {phrase}?"),
    "have": ("Does he have {phrase}?", "Does he have no {phrase}?"),
    "wear": ("Is he wearing {phrase}?", "Isn't he wearing {phrase}?"),
    "of": ("Is his {part} {phrase}?", "Is his {part} not {phrase}?"),
}


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.data())
def test_every_phrase_means_its_label_in_both_polarities(data):
    kind = data.draw(st.sampled_from(sorted(AROUND)))
    meanings = question_matching._grammar().frames[kind][1]
    # What hypothesis cannot draw from (look-behinds), and what is no label.
    meaning = data.draw(st.sampled_from([m for m in meanings if "(?<" not in m.phrase.pattern and "labels" in m.entry]))
    words = {name: data.draw(st.from_regex(getattr(meaning, name), fullmatch=True)) for name in ("phrase", "part")}
    names = [(set(labels.split("+")), holds) for labels, holds in meaning.entry["labels"]]
    known = [(labels, holds) for labels, holds in names if any(labels <= set(q.labels) for q in BANK)]
    for text, asked in zip(AROUND[kind], (True, False), strict=True):
        match = match_question(text.format(**words), BANK)
        if not known:
            assert match is None or "years" in meaning.entry
            continue
        (labels, holds), weights = known[0], match.weights or (1.0, 0.0)
        assert labels <= set(match.question.labels)
        assert weights == tuple(float((label in labels) == (holds == asked)) for label in match.question.labels)


def test_every_phrase_means_a_label_of_some_vocabulary():
    known = vocabulary("all").names
    for meaning in load_phrases()["meanings"]:
        for names, _ in meaning["labels"]:
            assert set(names.split("+")) <= set(known)


@pytest.mark.parametrize(
    ("name", "text", "question", "yes"),
    [
        ("fairface", "Is she Asian?", "race:fairface", "East Asian,Southeast Asian"),
        ("fairface", "Is he Latino?", "race:fairface", "Latino or Hispanic"),
        ("fairface", "Is she Middle Eastern?", "race:fairface", "Middle Eastern"),
        ("raf_db", "Is she a woman?", "gender", "female"),
        ("celeba", "Is she a woman?", "Male", "-"),
        ("maad_face", "Is he Asian?", "Asian", "+"),
        ("maad_face", "Does she have brown eyes?", "Brown_Eyes", "+"),
        ("maad_face", "Is he elderly?", "Senior", "+"),
        ("maad_face", "Is his mouth closed?", "Mouth_Closed", "+"),
        ("maad_face", "Any eyewear?", "No_Eyewear", "-"),
        ("celeba", "Is he over 40?", None, ""),
        ("celeba", "Does she look sad?", None, ""),
        ("fairface", "Is she in her thirties?", "age_group", "30..39"),
        ("fairface", "Is he under 18?", "age_group", "..17"),
    ],
)
def test_other_vocabularies_answer_what_they_can(name, text, question, yes):
    match = match_question(text, questions_for(vocabulary(name)))
    assert (match and match.question.name) == question
    if match is not None:
        expected = weights(match.question, yes)
        assert match.weights == (pytest.approx(expected) if expected else None)


def test_long_and_strange_texts_take_no_time():
    start = time.process_time()
    for words in (
        "very ",
        "is ",
        "a an the ",
        "not ",
        "in his ",
        "the man in the photo s ",
        "is he or not right ",
        "x",
    ):
        text = (words * 1000)[:1000]
        match_question(text, BANK)
        is_description(text)
    assert time.process_time() - start < 2


@pytest.mark.parametrize("text", ["Describe this face.", "What does she look like?", "Please describe the man.", "Tell me about this person's face."])  # fmt: skip
def test_descriptions(text):
    assert is_description(text) and match_question(text, BANK) is None


@pytest.mark.parametrize(
    "text", ["Describe her hair.", "What is she wearing?", "Is she smiling?", "Describe the weather."]
)
def test_no_descriptions(text):
    assert not is_description(text)


def test_it_needs_the_standard_library_alone():
    """Exported models carry the file and its phrases."""
    code = f"import sys; sys.path.insert(0, {str(Path(question_matching.__file__).parent)!r}); import question_matching"
    code += "; question_matching.load_phrases(); print([m for m in ('fi_jax', 'numpy', 'jax') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
