"""The prediction file: round trip, validation, atomicity, truths and groups."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fi_jax.errors import UserError
from fi_jax.evaluation.predictions import (
    Prediction,
    from_line,
    group_fields,
    read_predictions,
    to_line,
    true_answer,
    write_predictions,
)
from fi_jax.labels.question_bank import question


def smiling(image="1.jpg", label="Yes", p=0.75, **kwargs) -> Prediction:
    return Prediction(
        image, "celeba", "attribute", "Smiling", label, "Yes" if p >= 0.5 else "No", {"Yes": p, "No": 1 - p}, **kwargs
    )


@given(
    st.text(min_size=1),
    st.sampled_from(["Yes", "No", None]),
    st.floats(0, 1),
    st.booleans(),
    st.sampled_from([None, "male"]),
)
def test_line_round_trip(image, label, p, seen, gender):
    line = to_line(smiling(image, label, round(p, 5), seen=seen, gender=gender))
    assert "\n" not in line and "\r" not in line
    back = from_line(line)
    assert (back.image, back.label, back.seen, back.gender) == (image, label, seen, gender)
    assert back.probabilities["Yes"] == pytest.approx(p, abs=1e-5)
    assert to_line(back) == line


def test_file_round_trip_and_required_fields(tmp_path):
    assert write_predictions(tmp_path / "out" / "predictions.jsonl", (smiling(f"{i}.jpg") for i in range(3))) == 3
    assert [p.image for p in read_predictions(tmp_path / "out")] == ["0.jpg", "1.jpg", "2.jpg"]
    first = json.loads((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()[0])
    assert {"image", "dataset", "task", "question", "label", "answer", "probabilities"} <= set(first)


def test_nothing_is_left_when_writing_fails(tmp_path):
    def broken():
        yield smiling()
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        write_predictions(tmp_path / "predictions.jsonl", broken())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": "atribute"}, "did you mean 'attribute'"),
        ({"source": "lm"}, "unknown"),
        ({"label": "Maybe"}, "none of"),
        ({"answer": 3}, "none of"),
        ({"probabilities": {"Yes": 0.9, "No": 0.3}}, "sum to"),
        ({"probabilities": {"Yes": 1.2, "No": -0.2}}, "not in"),
        ({"probabilities": {"Yes": float("nan"), "No": 0.5}}, "not in"),
        ({"probabilities": [0.5, 0.5]}, "not an object"),
        ({"extra": 1}, "unknown"),
    ],
)
def test_bad_lines_name_file_line_and_fault(tmp_path, change, words):
    path = tmp_path / "predictions.jsonl"
    values = json.loads(to_line(smiling())) | change
    path.write_text(to_line(smiling()) + "\n" + json.dumps(values) + "\n")
    with pytest.raises(UserError, match=f"line 2.*{words}"):
        list(read_predictions(path))


def test_missing_file_missing_field_and_broken_json(tmp_path):
    with pytest.raises(UserError, match="fi-jax evaluate"):
        list(read_predictions(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match="missing: label"):
        from_line(json.dumps({k: v for k, v in json.loads(to_line(smiling())).items() if k != "label"}))
    with pytest.raises(UserError, match="not JSON"):
        from_line('{"image": "1.jp')


def test_true_answers():
    labels = {"Male": False, "Smiling": True, "race:White": False, "race:Black": True, "expression:happy": True}
    assert true_answer(question("Smiling"), labels) == "Yes"
    assert true_answer(question("Male"), labels) == "No"
    assert true_answer(question("Bald"), labels) is None
    assert true_answer(question("gender"), labels) == "female"
    assert true_answer(question("gender"), {}) is None
    assert true_answer(question("race:utkface"), labels) == "Black"
    assert true_answer(question("race:utkface"), {"race:White": False}) is None
    assert true_answer(question("expression"), labels) == "happy"
    assert true_answer(question("age_group"), {}, 29.9) == "20-29"
    assert true_answer(question("age_group"), {"age:70+": True}) == "70+"
    assert true_answer(question("age_years"), {}, 31) == 31.0
    assert true_answer(question("age_years"), {"age:70+": True}) is None


def test_groups_of_a_face():
    assert group_fields({"Male": True, "race:Indian": True}, 41) == {
        "gender": "male",
        "race": "Indian",
        "age_group": "40-49",
    }
    assert group_fields({"Male": False, "Young": False}) == {"gender": "female", "race": None, "age_group": "not Young"}
    assert group_fields({"Young": True}) == {"gender": None, "race": None, "age_group": "Young"}
    assert group_fields({"Young": False, "Senior": True, "Asian": True})["age_group"] == "Senior"
    assert group_fields({}) == {"gender": None, "race": None, "age_group": None}
