"""Tables of one's own: read in every form that people have, described by a schema, drafted by `dataset init`."""

import contextlib
import csv
import re
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import picture
from PIL import Image

from fi_jax.cli.configs import load_config
from fi_jax.cli.main import main
from fi_jax.data.datasets import find_dataset
from fi_jax.data.records import encode_labels
from fi_jax.data.table_guess import guess_columns
from fi_jax.data.tables import table_dataset
from fi_jax.errors import UserError
from fi_jax.evaluation.predictions import Prediction, from_line, to_line
from fi_jax.evaluation.summarise import summarise
from fi_jax.labels.question_bank import questions_for
from fi_jax.labels.registry import vocabulary
from fi_jax.labels.rule_tables import rules_for
from fi_jax.labels.schema import find_vocabulary, read_schema
from fi_jax.prompting.question_matching import match_question
from fi_jax.prompting.question_sampling import training_sequences
from fi_jax.prompting.sequences import SequenceBuilder, Slots
from fi_jax.prompting.templates import template
from fi_jax.tables import read_table
from fi_jax.weights.tokenizers import byte_tokenizer

VOCABULARY = vocabulary("celeba")
YES_NO = {"type": "yes/no", "question": "Is it?", "prompt": "It."}
ONE_OF = {"type": "one of", "question": "Which?"}
SMILES = {"type": "yes/no", "same_as": "Smiling"}
YEARS = {"type": "number", "same_as": "age"}
HEADER = ["file", "subject", "badge", "mood", "sex", "Age", "height", "note"]


def rows(count: int = 40) -> list[list[str]]:
    mood = ("calm", "tense", "")
    return [
        [
            f"{i:02d}.jpg",
            f"p{i // 2}",
            "yes" if i % 2 else "no",
            mood[i % 3],
            "MF"[i % 2],
            str(20 + i),
            str(150 + i),
            f"n{i}",
        ]
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "photos"
    folder.mkdir()
    for i in range(40):
        Image.fromarray(picture(i)).save(folder / f"{i:02d}.jpg")
    return folder


def write_csv(path: Path, table: list[list[str]], header=HEADER, delimiter=",", encoding="utf-8", newline="\n") -> Path:
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter, lineterminator=newline).writerows([header, *table])
    return path


def describe(pictures: Path, tmp_path: Path, content: list[list[str]] | None = None, **changes) -> Path:
    """Writes a table and its schema; `changes` replace entries of the schema."""
    write_csv(tmp_path / "labels.csv", rows() if content is None else content)
    schema = {
        "name": "mine",
        "table": "labels.csv",
        "images": str(pictures),
        "picture": "file",
        "person": "subject",
        "labels": {
            "badge": {"type": "yes/no", "question": "Is there a badge?", "prompt": "A face with a badge."},
            "mood": {
                "type": "one of",
                "question": "Which mood?",
                "options": {"calm": "A calm face.", "tense": "A tense face."},
            },
            "sex": {"type": "one of", "same_as": "gender", "options": {"male": "M", "female": "F"}},
            "Age": {"type": "number", "same_as": "age"},
            "height": {"type": "number", "question": "How tall?", "bins": [160, 170, 180]},
            "note": {"type": "ignore"},
        },
        "rules": [{"excludes": ["badge", ["mood:tense"]], "source": "the uniform"}],
    } | changes
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in schema.items() if value is not None}, sort_keys=False))
    return path


def test_a_table_becomes_records_questions_and_rules(pictures, tmp_path):
    dataset = table_dataset(describe(pictures, tmp_path))
    source = dataset.open()
    assert len(source.faces) == 40
    assert [q.name for q in dataset.questions] == ["badge", "mood", "gender", "age_group", "age_years", "height"]
    face = next(face for face in source.faces if face.key == "01.jpg")
    assert face.labels["badge"] == 1 and face.labels["Female"] and face.labels["mood:tense"] and face.age == 21
    assert face.labels["height:below 160"] == 1 and face.labels["height:160 to 170"] == 0
    assert "mood:calm" not in next(f for f in source.faces if f.key == "02.jpg").labels, "an empty cell is unknown"
    labels, known = encode_labels(face, dataset.vocabulary)
    assert known[dataset.vocabulary.index("badge")] and labels[dataset.vocabulary.index("Female")] == 1
    said = {str(rule) for rule in rules_for(dataset.vocabulary)}
    assert "badge excludes mood:tense" in said and "exactly one of mood:calm, mood:tense" in said


def test_numbers_and_free_text_are_kept_beside_the_labels(pictures, tmp_path):
    labels = yaml.safe_load(describe(pictures, tmp_path).read_text())["labels"]
    labels["note"] = {"type": "text", "question": "What was noted?", "also": ["Which note is there?"]}
    dataset = table_dataset(describe(pictures, tmp_path, labels=labels))
    face = next(face for face in dataset.open().faces if face.key == "15.jpg")
    assert face.numbers == {"height": 165.0}
    assert face.texts == (("What was noted?", "n15"), ("Which note is there?", "n15"))
    assert dataset.vocabulary.open_questions == ("What was noted?", "Which note is there?")


def test_free_text_is_an_open_question_of_training():
    builder = SequenceBuilder(
        byte_tokenizer(), template("plain"), VOCABULARY, questions_for(VOCABULARY)[:1], Slots(1, 0, 1), num_segments=2,
        segment_length=120, lm_length=122,
    )  # fmt: skip
    n = len(VOCABULARY)
    batch = {"labels": np.zeros((2, n), np.float32), "known": np.zeros((2, n), bool), "row": np.arange(2)}
    batch["index"] = np.array([1, 0])
    texts = [(("What was noted?", "A scar."),), ()]
    made = training_sequences(batch, builder, VOCABULARY, (0,), texts=texts)
    question, answer = builder.open_tokens("What was noted?", "A scar.")
    (asked, own) = made["segment_tokens"][:, 0]
    assert own[: len(question + answer)].tolist() == question + answer and asked.tolist() != own.tolist()


def test_a_person_lies_in_one_split(pictures, tmp_path):
    faces = table_dataset(describe(pictures, tmp_path)).open().faces
    sides: dict[str, set] = {}
    for face in faces:
        sides.setdefault(face.identity, set()).add(face.split)
    assert all(len(splits) == 1 for splits in sides.values()) and len({face.split for face in faces}) > 1
    table = [[*row, "train" if i % 4 else "test"] for i, row in enumerate(rows())]
    write_csv(tmp_path / "split.csv", table, [*HEADER, "part"])
    with pytest.raises(UserError, match="person 'p0' is in test and in train"):
        table_dataset(describe(pictures, tmp_path, table="split.csv", split="part")).open()


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (lambda path: write_csv(path, rows(), delimiter=";", encoding="utf-8-sig", newline="\r\n"), "t.csv"),
        (lambda path: write_csv(path, rows(), delimiter="\t"), "t.tsv"),
        (lambda path: write_csv(path, rows(), newline="\r"), "t.csv"),
        (lambda path: pd.DataFrame(rows(), columns=HEADER).to_parquet(path), "t.parquet"),
        (lambda path: pd.DataFrame(rows(), columns=HEADER).to_json(path, orient="records", lines=True), "t.jsonl"),
    ],
    ids=["semicolons, BOM, CRLF", "tabs", "CR", "Parquet", "JSON lines"],
)
def test_every_form_of_table_reads_the_same(pictures, tmp_path, write, name):
    write(tmp_path / name)
    expected = table_dataset(describe(pictures, tmp_path)).open().faces
    assert table_dataset(describe(pictures, tmp_path, table=name)).open().faces == expected


def test_damage_is_left_out_by_name_or_refused(pictures, tmp_path):
    table = rows()
    table += [table[0], [*table[1][:2], "no", *table[1][3:]], ["gone.jpg", "p99", *table[2][2:]]]
    table[5][2], table[6][5] = "maybe", "1e9"
    source = table_dataset(describe(pictures, tmp_path, table)).open()
    reasons = {item.key: item.reason for item in source.rejected}
    assert "duplicate row" in reasons["00.jpg"] and "disagree" in reasons["01.jpg"] and "missing" in reasons["gone.jpg"]
    assert any("'maybe' (1 rows) means nothing" in note for note in source.notes)
    assert any("'1e9'" in note for note in source.notes)
    constant = [[*row[:2], "yes", *row[3:]] for row in rows()]
    notes = table_dataset(describe(pictures, tmp_path, constant)).open().notes
    assert any("column 'badge' says the same of every face" in note for note in notes)
    (tmp_path / "labels.csv").write_bytes("file,badge\nä.jpg,yes\n".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        table_dataset(tmp_path / "mine.yaml").open()
    (tmp_path / "labels.csv").write_text("file,badge\na.jpg,yes,more\n")
    with pytest.raises(UserError, match="row 2 has 3 cells, its header 2"):
        table_dataset(tmp_path / "mine.yaml").open()


def test_names_in_another_unicode_form_are_found(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(4):
        Image.fromarray(picture(i)).save(folder / unicodedata.normalize("NFD", f"é{i}.jpg"))
    table = [[unicodedata.normalize("NFC", f"é{i}.jpg"), f"p{i}", *rows()[i][2:]] for i in range(4)]
    assert len(table_dataset(describe(folder, tmp_path, table)).open().faces) == 4


def test_folders_by_class(tmp_path, pictures, monkeypatch):
    folder = tmp_path / "faces #1: mine"  # Signs that mean something in YAML.
    for name, some in (("smiling person", range(8)), ("other", range(8, 16))):
        (folder / name).mkdir(parents=True)
        for i in some:
            Image.fromarray(picture(i)).save(folder / name / f"{i}.png")
    monkeypatch.chdir(folder)
    assert main(["dataset", "init", "."]) == 0
    dataset = table_dataset(tmp_path / f"{folder.name}.yaml")
    faces = dataset.open().faces
    assert len(faces) == 16 and faces[-1].labels == {"class:other": 0.0, "class:smiling person": 1.0}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"table": None}, "needs either 'table'"),
        ({"name": "a b"}, "name 'a b' must be letters"),
        ({"labels": {"badge": {"type": "yes/no", "question": "Q?"}}}, "labels: badge needs 'prompt'"),
        ({"labels": {"badge": {"type": "bool"}}}, "type 'bool' is unknown"),
        ({"labels": {"badge": {"tpye": "ignore"}}}, "did you mean 'type'"),
        ({"labels": {"Smiling": {"type": "yes/no", "question": "Q?", "prompt": "P."}}}, "say 'same_as: Smiling'"),
        (
            {"labels": {"x": {"type": "one of", "question": "Q?", "options": {"a": "A."}}}},
            "1 options; a question takes 2",
        ),
        ({"labels": {"x": {"type": "number", "question": "Q?", "bins": [3, 2]}}}, "rising order"),
        (
            {"labels": {"x": {"type": "yes/no", "question": "Q?", "prompt": "P.", "yes": ["1"], "no": ["1"]}}},
            "both yes and no",
        ),
        ({"labels": {"x": {**ONE_OF, "options": {"Old": "A.", "old": "B."}}}}, "options have the value 'old' twice"),
        ({"labels": {"x": {**ONE_OF, "options": {"a": ["A."], "b": "B."}}}}, "options needs 'a', some text"),
        ({"labels": {"x": {**YES_NO, "also": [["Q?"]]}}}, "also must be some text"),
        ({"labels": {"x": YES_NO, "y": YES_NO}}, "two labels have the question 'is it?' twice"),
        ({"labels": {"x:a": YES_NO, "x": {**ONE_OF, "options": {"a": "A.", "b": "B."}}}}, "label 'x:a' twice"),
        ({"labels": {"x": SMILES, "y": SMILES}}, "two columns answer the question 'Smiling' twice"),
        ({"labels": {"x": YEARS, "y": {"type": "one of", "same_as": "age_group"}}}, "the question 'age_group' twice"),
        ({"labels": {"gender": YES_NO}}, "say 'same_as: gender'"),
        ({"labels": {"x": {"type": "number", "question": "Q?", "bins": ["1000001", "1000002"]}}}, "6 digits at most"),
        ({"name": "faces"}, "that of a vocabulary"),
        ({"box": ["a", "a", "b", "c"]}, "box must be four columns"),
        ({"rules": [{"excludes": ["bagde", ["mood:calm"]]}]}, "did you mean 'badge'"),
        ({"rules": ["badge"]}, "rules: 1 must be a group"),
        ({"rules": [{"excludes": [["badge"], "badge"]}]}, "rules: 1 must be 'implies: [label, [labels]]'"),
        ({"box": ["a"]}, "box must be four columns"),
        ({"picture": "fil"}, "no column 'fil'; did you mean 'file'"),
    ],
)
def test_mistakes_in_a_schema_are_named(pictures, tmp_path, changes, says):
    with pytest.raises(UserError, match=re.escape(says)):
        table_dataset(describe(pictures, tmp_path, **changes)).open()


def test_a_name_that_stands_twice_in_a_schema_is_refused(pictures, tmp_path):
    path = describe(pictures, tmp_path)
    path.write_text(path.read_text().replace("labels:\n", "labels:\n  badge: {type: ignore}\n"))
    with pytest.raises(UserError, match="mine.yaml': 'badge' stands twice, the second time in line "):
        table_dataset(path)


def test_init_makes_a_schema_of_names_that_collide(tmp_path, capsys):
    write_csv(
        tmp_path / "faces.csv",
        [
            [f"{i}.jpg", "mf"[i % 2], "MF"[i % 2], f"{i % 3}0s", "ab"[i % 2], "ab"[i % 2], "01"[i % 2]]
            for i in range(40)
        ],
        header=["file", "sex", "gender", "age_group", "Eye colour", "eye_colour", "Female"],
    )
    assert main(["dataset", "init", str(tmp_path / "faces.csv")]) == 0
    said = capsys.readouterr().out
    assert "'gender' asks what 'sex' asks" in said and "'eye_colour' asks what 'Eye colour' asks" in said
    schema = read_schema((tmp_path / "faces.yaml").read_text())
    assert schema.name == "my_faces"
    assert {column.name: column.column for column in schema.columns} == {
        "sex": "sex",
        "own_age_group": "age_group",
        "Eye colour": "Eye colour",
        "own_Female": "Female",
    }


def test_a_damaged_schema_is_one_line(tmp_path):
    for text in (
        "a: [",
        "- 1",
        "",
        "name: x\ntable: t\nlabels: 3",
        "name: {a: b}\ntable: t\nlabels: {}",
        '{"a":' * 2000,
    ):
        with pytest.raises(UserError):
            read_schema(text)
    rng = np.random.default_rng(0)
    whole = "name: mine\ntable: t.csv\nlabels:\n  a: {type: yes/no, question: Q, prompt: P.}\nrules: []\n"
    assert read_schema(whole).name == "mine"
    for _ in range(300):
        letters = list(whole)
        for _ in range(int(rng.integers(1, 4))):
            letters[int(rng.integers(len(letters)))] = chr(int(rng.integers(9, 126)))
        with contextlib.suppress(UserError):
            read_schema("".join(letters))


def test_init_guesses_and_says_what_it_could_not_decide(pictures, tmp_path, capsys):
    write_csv(tmp_path / "labels.csv", rows())
    assert main(["dataset", "init", str(tmp_path / "labels.csv"), "--images", str(pictures)]) == 0
    out = capsys.readouterr().out
    assert "'note' looks like free text" in out and "'height' is a number" in out and "'badge'" in out
    schema = read_schema((tmp_path / "labels.yaml").read_text())
    assert (schema.picture, schema.person) == ("file", "subject")
    assert {column.name for column in schema.columns} == {"badge", "mood", "sex", "Age", "height"}
    assert main(["dataset", "init", str(tmp_path / "labels.csv")]) == 2, "nothing is overwritten"
    assert main(["dataset", "check", str(tmp_path / "labels.yaml")]) == 0
    out = capsys.readouterr().out
    assert "40 faces" in out and "mood: known of 27" in out
    assert main(["dataset", "check", str(tmp_path / "none.yaml")]) == 2
    assert "schema" in capsys.readouterr().err


def test_a_split_is_known_by_its_words(tmp_path):
    def guessed(**column: str) -> str:
        (name, values), *_ = column.items()
        (tmp_path / "t.csv").write_text(
            f"file,{name}\n" + "".join(f"{i}.jpg,{v}\n" for i, v in enumerate(values.split()))
        )
        return guess_columns(read_table(tmp_path / "t.csv")).split

    assert guessed(part="train val Test") == "part" and guessed(fold="0 1 2") == "fold"
    assert guessed(badge="0 1 0") == "" and guessed(set="red blue red") == "" and guessed(part="train train") == ""


def test_a_config_holds_the_schemas_of_its_tables(pictures, tmp_path):
    path = describe(pictures, tmp_path)
    config = load_config("tiny", ["--data.sources.0.name", f"table:{path}", "--data.vocabulary", "faces+tables"])
    assert config.data.vocabulary == "faces+mine" and config.data.schemas == (path.read_text(),)
    vocabulary = find_vocabulary(config.data.vocabulary, config.data.schemas)
    assert len(vocabulary) == len(find_vocabulary("faces")) + 1 + 2 + 4
    assert {"badge", "mood", "height", "Smiling", "gender"} <= {q.name for q in questions_for(vocabulary)}
    alone = load_config("tiny", ["--data.sources.0.name", f"table:{path}", "--data.vocabulary", "tables"])
    assert alone.data.vocabulary == "mine"
    with pytest.raises(UserError, match="vocabulary 'mnie' is unknown"):
        find_vocabulary("faces+mnie", config.data.schemas)


def test_a_table_is_a_data_set_by_its_schema(pictures, tmp_path):
    path = describe(pictures, tmp_path)
    assert find_dataset(f"table:{path}").name == "mine"
    assert read_table(tmp_path / "labels.csv").columns == tuple(HEADER)
    with pytest.raises(UserError, match="cannot be read"):
        find_dataset("table:nowhere.yaml")


OWN = """
name: own
table: t.csv
labels:
  mood: {type: one of, question: "Which mood?", also: ["How does she feel today?"], options: {calm: A., tense: B.}}
  badge: {type: yes/no, question: "Is there a badge?", prompt: A badge.}
  height: {type: number, question: "How tall?", bins: [160, 170]}
rules:
  - excludes: [badge, [mood:tense]]
"""


@pytest.mark.parametrize(
    ("text", "name", "weights"),
    [
        ("What mood is she in?", "mood", None),
        ("how does she feel today", "mood", None),
        ("Does he wear a badge?", "badge", None),
        ("Is there no badge?", "badge", (0.0, 1.0)),
        ("What is her height?", "height", None),
        ("Is she smiling?", "Smiling", None),
        ("Is the badge in a good mood?", None, None),
        ("Who gave him the badge?", None, None),
    ],
)
def test_questions_in_other_words_go_to_the_tables_own_labels(text, name, weights):
    match = match_question(text, questions_for(find_vocabulary("faces+own", (OWN,))))
    assert (match and match.question.name) == name
    assert match is None or match.weights == weights


def test_own_numbers_have_an_error_and_own_rules_a_violation_rate():
    def about(image, task, name, label, probabilities, **more):
        answer = max(probabilities, key=probabilities.get)
        return Prediction(image, "own", task, name, label, answer, probabilities, **more)

    lines = []
    for i in range(10):
        bins = {"below 160": 0.0, "160 to 170": 0.5, "170 or more": 0.5}
        # Expected 170; the true numbers are 165 and 173 in turn.
        lines.append(
            about(f"{i}", "number:height", "height", "170 or more" if i % 2 else "160 to 170", bins, number=173 if i % 2 else 165)
        )  # fmt: skip
        lines.append(about(f"{i}", "attribute", "badge", "Yes", {"Yes": 0.9, "No": 0.1}))
        lines.append(about(f"{i}", "choice:mood", "mood", "calm", {"calm": 0.2, "tense": 0.8} if i < 3 else {"calm": 1.0, "tense": 0.0}))  # fmt: skip
    lines = [from_line(to_line(line)) for line in lines]
    (entry,) = summarise(lines, tables=(OWN,))["entries"]
    height = entry["tasks"]["number:height"]
    assert height["headline"] == "mae" and height["metrics"]["mae"]["value"] == pytest.approx(4.0)
    assert height["metrics"]["accuracy"]["value"] == pytest.approx(0.5)
    assert entry["rules"]["metrics"]["violation_rate"]["value"] == pytest.approx(0.3)
    assert entry["rules"]["positive_rates"]["badge"]["answered"] == 1.0
    # Without the schema nobody knows the rule.
    assert summarise(lines)["entries"][0]["rules"] is None
    with pytest.raises(UserError, match="no bins of a number"):
        from_line(to_line(lines[0]).replace("160 to 170", "medium"))


@pytest.mark.real_data
def test_declared_rules_come_out_on_top_of_real_annotations(shared_data, capsys):
    assert main(["dataset", "rules", "celeba", "--data-root", str(shared_data / "celeba")]) == 0
    beards = ("Goatee", "Mustache", "Sideburns")
    said = re.findall(r"- (\w+): \[(\w+), \[(\w+)\]\]", capsys.readouterr().out)
    first = {(kind, frozenset((a, b))) for kind, a, b in said[:17]}
    assert {("implies", frozenset((beard, "Male"))) for beard in ("5_o_Clock_Shadow", *beards)} <= first
    excluded = (*(("No_Beard", beard) for beard in beards), ("Bangs", "Receding_Hairline"), ("Bald", "Wavy_Hair"))
    assert {("excludes", frozenset(pair)) for pair in excluded} <= first
