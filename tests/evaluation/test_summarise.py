"""Protocols end to end: predictions with known right and wrong answers give the numbers worked out by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from fi_jax.data.datasets import DATASET_NAMES, find_dataset
from fi_jax.errors import UserError
from fi_jax.evaluation.columns import gather
from fi_jax.evaluation.predictions import Prediction
from fi_jax.evaluation.protocols import choice, years
from fi_jax.evaluation.results import cells_of, read_summary, write_summary
from fi_jax.evaluation.results_tables import flat_table, results_table
from fi_jax.evaluation.rules import consistent_options
from fi_jax.evaluation.summarise import summarise, train_baseline
from fi_jax.labels.question_bank import question
from fi_jax.labels.tasks import YEAR_CENTRES, age_group_of


def predict(image, dataset, name, label, answer, confidence=0.9, **kwargs) -> Prediction:
    q = question(name)
    rest = (1 - confidence) / (len(q.options) - 1)
    probs = {o: confidence if o == answer else rest for o in q.options}
    return Prediction(image, dataset, q.family, name, label, answer, probs, **kwargs)


def in_years(image, truth, bins: dict[int, float], **kwargs) -> Prediction:
    q = question("age_years")
    probs = {o: bins.get(i, 0.0) for i, o in enumerate(q.options)}
    said = sum(p * YEAR_CENTRES[i] for i, p in bins.items())
    return Prediction(image, "utkface", "age_years", "age_years", truth, said, probs, **kwargs)


def utk(count=120, wrong_every=4, **kwargs):
    """Alternating genders; of the men every `wrong_every`-th is answered wrongly."""
    for i in range(count):
        truth = ("male", "female")[i % 2]
        wrong = truth == "male" and (i // 2) % wrong_every == 0
        yield predict(f"{i}.jpg", "utkface", "gender", truth, "female" if wrong else truth, gender=truth, **kwargs)


def test_gender_accuracy_interval_groups_and_baselines():
    summary = summarise(utk(), resamples=300)
    (entry,) = summary["entries"]
    result = entry["tasks"]["gender"]
    top = result["metrics"]["accuracy"]
    assert top["value"] == pytest.approx(1 - 15 / 120)
    assert top["low"] < top["value"] < top["high"]
    assert top["baseline"] == 0.5 and result["baseline"]["from"] == "evaluated"
    by_gender = result["groups"]["gender"]
    assert by_gender["groups"]["female"]["value"] == 1 and by_gender["groups"]["male"]["value"] == pytest.approx(0.75)
    assert by_gender["gap"] == pytest.approx(0.25) and by_gender["worst"] == "male"
    assert "race" not in result["groups"]
    counts = np.array(result["confusion"]["counts"])
    assert counts.sum() == 120 and counts[0].tolist() == [45, 15]
    assert result["calibration"]["ece"] == pytest.approx(0.9 - 0.875, abs=1e-6)
    assert entry["setting"] == "training-free" and entry["rules"] is None


def test_train_baseline_is_used_and_named():
    baselines = {
        "utkface": train_baseline(
            [{"gender": "male", "age_years": 20.0}] * 3 + [{"gender": "female", "age_years": 40.0}]
        )
    }
    assert baselines["utkface"] == {"gender": "male", "age_years": 20.0}
    predictions = [predict(f"{i}", "utkface", "gender", "female", "female") for i in range(5)]
    result = summarise(predictions, baselines, resamples=20)["entries"][0]["tasks"]["gender"]
    assert result["metrics"]["accuracy"]["baseline"] == 0 and result["baseline"] == {"answer": "male", "from": "train"}


def test_small_groups_take_no_part_in_the_gap():
    faces = list(utk(100)) + [
        predict(f"x{i}", "utkface", "gender", "male", "female", gender="male", race="Indian") for i in range(5)
    ]
    result = summarise(faces, resamples=20)["entries"][0]["tasks"]["gender"]
    assert result["groups"]["race"]["groups"]["Indian"]["value"] == 0
    assert result["groups"]["race"]["gap"] is None


def test_age_groups_within_one_and_years():
    faces = [
        predict("a", "utkface", "age_group", "20-29", "20-29"),
        predict("b", "utkface", "age_group", "20-29", "30-39"),
        predict("c", "utkface", "age_group", "20-29", "70+"),
        in_years("a", 25.0, {4: 0.5, 5: 0.5}),
        in_years("b", 30.0, {4: 1.0}),
        in_years("c", 50.0, {0: 0.4, 10: 0.6}),
    ]
    tasks = summarise(faces, {"utkface": {"age_years": 30.0}}, resamples=50)["entries"][0]["tasks"]
    assert tasks["age_group"]["metrics"]["accuracy"]["value"] == pytest.approx(1 / 3, abs=1e-5)
    assert tasks["age_group"]["metrics"]["within_one_group"]["value"] == pytest.approx(2 / 3, abs=1e-5)
    expected = [abs(24.5 - 25), abs(22 - 30), abs(0.4 * 2 + 0.6 * 52 - 50)]
    assert tasks["age_years"]["metrics"]["mae_years"]["value"] == pytest.approx(np.mean(expected), abs=1e-5)
    assert tasks["age_years"]["metrics"]["mae_years"]["baseline"] == pytest.approx((5 + 0 + 20) / 3, abs=1e-5)
    assert tasks["age_years"]["estimator"] == "expected"
    median = tasks["age_years"]["metrics"]["mae_years_median"]["value"]
    assert median < tasks["age_years"]["metrics"]["mae_years"]["value"], "the median ignores the stray mass at age 2"


def test_attributes_mask_unknown_and_average_over_attributes():
    faces = []
    for i in range(10):
        faces.append(predict(f"{i}", "maad_face", "Smiling", "Yes" if i < 8 else "No", "Yes", gender="male"))
        known = "Yes" if i == 0 else None
        faces.append(predict(f"{i}", "maad_face", "Bald", known, "No", gender="male"))
    result = summarise(faces, resamples=50)["entries"][0]["tasks"]["attribute"]
    assert result["per_attribute"]["Smiling"]["accuracy"] == pytest.approx(0.8)
    assert result["per_attribute"]["Bald"] == {
        "accuracy": 0.0, "balanced_accuracy": 0.0, "f1": 0.0, "baseline": 1.0, "share_yes": 1.0, "faces": 1,
        "baselines": {"accuracy": 1.0, "balanced_accuracy": 1.0, "f1": 1.0},
        "intervals": {"accuracy": [0.0, 0.0], "balanced_accuracy": [0.0, 0.0], "f1": [0.0, 0.0]},
    }  # fmt: skip
    low, high = result["per_attribute"]["Smiling"]["intervals"]["accuracy"]
    assert low < 0.8 < high
    assert result["metrics"]["mean_accuracy"]["value"] == pytest.approx((0.8 + 0) / 2)
    assert result["metrics"]["mean_accuracy"]["baseline"] == pytest.approx((0.8 + 1) / 2)
    assert result["metrics"]["mean_balanced_accuracy"]["value"] == pytest.approx((0.5 + 0) / 2)
    assert result["answers"] == 11


def test_expression_macro_f1_and_unreadable_free_form():
    faces = [Prediction(f"{i}", "expw", "expression", "expression", "happy", "happy") for i in range(3)]
    faces.append(Prediction("3", "expw", "expression", "expression", "sad", None))
    result = summarise(faces, resamples=20)["entries"][0]["tasks"]["expression"]
    assert result["metrics"]["accuracy"]["value"] == pytest.approx(0.75)
    assert result["metrics"]["macro_f1"]["value"] == pytest.approx(0.5)
    assert result["unreadable"] == 1 and result["calibration"] is None
    assert sum(result["confusion"]["unreadable"]) == 1


def celeba_men(first_goatee: str, count: int):
    """Men without a beard; the first one's goatee as given."""
    for i in range(count):
        yield predict(f"{i}", "celeba", "No_Beard", "Yes", "Yes")
        yield predict(f"{i}", "celeba", "Goatee", "No", first_goatee if i == 0 else "No")
        yield predict(f"{i}", "celeba", "Mustache", "No", "No")
        yield predict(f"{i}", "celeba", "Male", "Yes", "Yes")


def test_broken_rules_are_counted_named_and_shown():
    rules = summarise(celeba_men("Yes", 4), resamples=50)["entries"][0]["rules"]
    assert rules["metrics"]["violation_rate"]["value"] == pytest.approx(0.25)
    assert rules["metrics"]["violation_rate"]["baseline"] == 0 and rules["annotations"] == 0
    assert [e["image"] for e in rules["examples"]] == ["0"]
    rate = {"answered": 0.25, "annotated": 0.0, "faces": 4}
    assert rules["positive_rates"]["Goatee"] == rate, "denying everything breaks nothing, so the rates stand beside it"
    assert any("No_Beard excludes" in rule for rule in rules["examples"][0]["rules"])
    assert not any("Bald" in rule for rule in rules["by_rule"]), "rules about labels nobody asked are out of scope"


def test_a_share_of_none_or_all_has_the_exact_interval():
    """Every resample of 60 faces without a broken rule says 0; the truth may still be 1 in 17."""
    right = [p for p in utk(120) if p.answer == p.label][:60]
    entry = summarise([*right, *celeba_men("No", 60)], resamples=20)["entries"]
    accuracy = entry[0]["tasks"]["gender"]["metrics"]["accuracy"]
    assert (accuracy["value"], accuracy["high"]) == (1, 1) and accuracy["low"] == pytest.approx(
        0.025 ** (1 / 60), abs=1e-6
    )
    rate = entry[1]["rules"]["metrics"]["violation_rate"]
    assert (rate["value"], rate["low"]) == (0, 0) and rate["high"] == pytest.approx(1 - 0.025 ** (1 / 60), abs=1e-6)


def test_consistent_decoding_breaks_nothing_and_states_its_price():
    faces = []
    for i in range(4):
        # The beard is surer (0.9) than its absence (0.6): decoding gives up No_Beard, which is the truth in half of them.
        truth = "Yes" if i < 2 else "No"
        faces += [
            predict(f"{i}", "celeba", "No_Beard", truth, "Yes", 0.6),
            predict(f"{i}", "celeba", "Goatee", "Yes", "Yes", 0.9),
            predict(f"{i}", "celeba", "Male", "Yes", "Yes", 0.9),
        ]
    (block,) = gather(faces)
    decoded = consistent_options(block, np.arange(4))
    assert decoded["No_Beard"].tolist() == [1] * 4 and decoded["Goatee"].tolist() == [0] * 4
    rules = summarise(faces, resamples=20)["entries"][0]["rules"]
    assert rules["metrics"]["violation_rate"]["value"] == 1
    cost = rules["consistent"]["attribute"]
    assert cost == {
        "as_answered": pytest.approx(2.5 / 3, abs=1e-5),
        "consistent": pytest.approx(2.5 / 3, abs=1e-5),
        "faces": 4,
    }


def test_consistent_decoding_of_choices_and_of_classes_that_are_part_of_a_group():
    faces = [
        predict("a", "raf_db", "race:raf_db", "White", "White"),
        predict("a", "raf_db", "gender", "male", "female"),
    ]
    (block,) = gather(faces)
    assert {n: o.tolist() for n, o in consistent_options(block, np.arange(1)).items()} == {
        "race:raf_db": [0],
        "gender": [1],
    }
    ages = [predict("a", "utkface", "age_group", "20-29", "20-29", 0.9), in_years("a", 25.0, {4: 0.3, 19: 0.7})]
    (block,) = gather(ages)
    decoded = consistent_options(block, np.arange(1))
    assert question("age_years").options[decoded["age_years"][0]] == "20-24" or decoded["age_group"][0] == 8


def test_rules_cross_tasks_but_not_the_options_of_one_question():
    faces = [
        predict("a", "utkface", "age_group", "20-29", "20-29"),
        in_years("a", 25.0, {19: 1.0}),
        predict("b", "utkface", "age_group", "20-29", "20-29"),
        in_years("b", 25.0, {4: 1.0}),
    ]
    rules = summarise(faces, resamples=20)["entries"][0]["rules"]
    assert rules["metrics"]["violation_rate"]["value"] == 0.5
    assert not any(rule.startswith("exactly one") for rule in rules["by_rule"])


def test_blocks_keep_sets_sources_and_settings_apart():
    faces = list(utk(20)) + list(utk(20, seen=True)) + list(utk(20, source="head"))
    entries = summarise(faces, resamples=10)["entries"]
    assert {(e["source"], e["setting"]) for e in entries} == {
        ("llm", "training-free"), ("llm", "fine-tuned"), ("head", "training-free"),
    }  # fmt: skip


def test_splits_are_judged_together():
    """`--split all`: one entry over all faces, not one a split of which the table shows the last."""
    faces = [*utk(40, split="train"), *(replace(p, image=f"t{p.image}") for p in utk(8, split="test"))]
    (entry,) = summarise(faces, resamples=10)["entries"]
    assert entry["split"] == "train+test" and entry["faces"] == entry["tasks"]["gender"]["faces"] == 48


def test_an_answer_given_twice_or_a_foreign_option_is_refused():
    one = predict("a", "expw", "expression", "happy", "happy")
    with pytest.raises(UserError, match="answered twice"):
        gather([one, one])
    with pytest.raises(UserError, match="no option"):
        gather([Prediction("a", "expw", "expression", "expression", "joyful", None)])
    with pytest.raises(UserError, match="no predictions"):
        summarise([])


def test_every_question_of_every_set_belongs_to_exactly_one_protocol():
    tasks = [choice.ATTRIBUTE, years.TASK, *choice.CHOICES]
    assert len(set(tasks)) == len(tasks)
    for name in DATASET_NAMES:
        assert {q.family for q in find_dataset(name).questions} <= set(tasks)


def test_table_has_both_settings_gaps_and_majority(tmp_path):
    summary = summarise([*utk(), *utk(60, 2, seen=True)], resamples=50, meta={"command": "x"})
    write_summary(tmp_path / "metrics.json", summary)
    assert read_summary(tmp_path) == json.loads(json.dumps(summary))
    cells = cells_of(read_summary(tmp_path))
    assert cells[0].headline and cells[0].metric == "accuracy"
    table = results_table(cells)
    assert 0 in table.bold and 1 not in table.bold
    assert [h for h in table.header if "," in h] == ["training-free, LLM", "fine-tuned, LLM"]
    assert table.rows[0][:5] == ["UTKFace", "gender", "accuracy", "120 / 60", "50.0*"]
    assert table.rows[0][5].startswith("87.5 [") and table.rows[0][6] == "gender 25.0"
    assert table.to_markdown().count("\n| UTKFace") == len(table.rows)
    flat = flat_table(cells)
    assert flat.records()[0]["value"] == 0.875 and flat.records()[0]["gap_gender"] == 0.25
    assert flat.to_csv().splitlines()[0].startswith("dataset,task,metric")
    console = Console(record=True, width=140)
    table.show(console)
    assert "87.5" in console.export_text()


def test_a_setting_without_results_is_blank_not_missing():
    table = results_table(cells_of(summarise(utk(), resamples=20), headlines_only=True))
    assert table.records()[0]["fine-tuned, LLM"] is None
    assert len(table.rows) == 1


def test_foreign_or_broken_summaries_are_refused(tmp_path):
    for text, words in (
        ("{", "not JSON"),
        ("{}", "no metrics.json"),
        ('{"version": 99, "entries": []}', "no metrics.json"),
    ):
        (tmp_path / "metrics.json").write_text(text)
        with pytest.raises(UserError, match=words):
            read_summary(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        read_summary(tmp_path / "nowhere")


def test_age_group_of_matches_the_question():
    assert {age_group_of(a).removeprefix("age:") for a in range(100)} == set(question("age_group").options)
