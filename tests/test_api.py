"""The Python door and `fi-jax predict`, on the bundled model: every kind of picture, batches, files that resume."""

import json
import os
import resource
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage import data

import fi_jax
from fi_jax import api
from fi_jax.cli.main import main
from fi_jax.data.synthetic.face import draw_face
from fi_jax.inference.batch_prediction import FacePrediction, Picture
from fi_jax.inference.prediction_files import PredictionFile
from fi_jax.pictures.decode import decode
from fi_jax.pictures.find import find_pictures, is_named_like_pictures
from fi_jax.weights.bundle import load_model

SOME = ["Smiling", "gender", "age_years"]


@pytest.fixture(scope="module")
def model():
    return fi_jax.load("nano")


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    return data.astronaut()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, portrait) -> Path:
    """Three drawn faces, a photograph, a picture without a face and a file that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "drawn").mkdir()
    for i in range(3):
        Image.fromarray(draw_face(0, i, 96).image).save(folder / "drawn" / f"{i}.PNG")
    Image.fromarray(portrait).save(folder / "portrait.png")
    Image.fromarray(np.full((200, 300, 3), 90, np.uint8)).save(folder / "grey.jpg")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


def test_every_kind_of_picture_gives_the_same_answers(model, folder, portrait):
    path = folder / "portrait.png"
    kinds = [str(path), path, path.read_bytes(), Image.open(path), portrait]
    given = [model.answers(kind, by="head").to_json("p") for kind in kinds]
    assert all(one == given[0] for one in given)
    assert len(given[0]["answers"]) == sum(not name.startswith("race") for name in model.questions)


def test_race_is_answered_when_asked_and_never_volunteered(model, portrait):
    asked = model.answers(portrait, race=True, by="head").answers
    assert any(a.question.family == "race" for a in asked)
    assert not any(a.question.family == "race" for a in model.answers(portrait, by="head").answers)
    (face,) = next(model.predict([portrait], by="head"))
    assert not any(name.startswith("race") for name in face.to_row())


def test_predictions_are_the_answers_of_ask_in_any_batch(model, folder):
    pictures = [folder / "portrait.png", *sorted((folder / "drawn").iterdir())]
    box = {"whole": True}
    alone = [next(model.predict([p], by="head", batch_size=1, **box)) for p in pictures]
    together = list(model.predict(pictures, by="head", batch_size=3, **box))
    for one, other in zip(alone, together, strict=True):
        a, b = (np.array([x.probability for x in found[0].answers]) for found in (one, other))
        np.testing.assert_allclose(a, b, atol=2e-3)
    (found,) = next(model.predict([pictures[0]], by="head"))
    said = model.answers(pictures[0], by="head")
    assert [a.option for a in found.answers] == [a.option for a in said.answers]
    np.testing.assert_allclose([a.probability for a in found.answers], [a.probability for a in said.answers], atol=2e-3)


def test_what_a_table_states_of_each_face_is_known(model, folder, tmp_path, capsys):
    names = ["portrait.png", "drawn/0.PNG", "drawn/1.PNG", "drawn/2.PNG"]
    sex, years = ["female", "", "male", "both"], [45, None, 30, 20]
    table = pd.DataFrame({"image": [folder / name for name in names], "sex": sex, "age": years})
    table.to_csv(tmp_path / "t.csv", index=False)
    out, asked = tmp_path / "out.csv", ["--head", "--whole", "--questions", "Male", "Smiling", "gender", "age_group"]
    command = ["predict", str(tmp_path / "t.csv"), "--out", str(out), *asked]
    assert main([*command, "--known-columns", "gendr=sex"]) == 2 and "mean 'gender'" in capsys.readouterr().err
    assert main([*command, "--known-columns", "gender=sexx"]) == 2 and "mean 'sex'" in capsys.readouterr().err
    assert main([*command, "--known-columns", "gender=sex", "--every-face"]) == 2
    assert main([*command, "--known-columns", "gender=sex", "gender=age"]) == 2
    assert "gender names two columns" in capsys.readouterr().err
    # No file of other options is left, which would stop this one.
    assert main([*command, "--known-columns", "gender=sex", "age"]) == 0
    found = pd.read_csv(out)
    # An empty cell says nothing, a wrong one is the picture's error.
    assert list(found.gender[[0, 2]]) == ["female", "male"] and "both" in found.error[3]
    assert list(found.gender_probability[[0, 2]]) == [1, 1] and found.gender_probability[1] < 1
    assert list(found.Male[[0, 2]]) == ["No", "Yes"] and list(found.age_group[[0, 2]]) == ["40-49", "30-39"]
    said = model.answers(folder / names[0], by="head", known={"gender": "female", "age": 45}, box=(0, 0, 512, 512))
    smiling = next(a.probability for a in said.answers if a.question.name == "Smiling")
    assert found.Smiling_probability[0] == pytest.approx(smiling, abs=2e-3)
    with pytest.raises(fi_jax.UserError, match="every_face"):
        list(model.predict([folder / names[0]], known=[{"age": 45}], every_face=True))
    asked = {"questions": ["gender"], "by": "head", "whole": True}
    with pytest.raises(fi_jax.UserError, match="differ in length"):
        list(model.predict([folder / names[0]], known=[], **asked))
    # pandas' own empty cell; then a picture of which nothing is known beside one of which something is.
    (nothing,) = next(model.predict([folder / names[1]], known=[{"gender": pd.NA}], **asked))
    told = Picture("told", folder / names[1], {"gender": "female"})
    found = [faces[0].answers[0].probability for faces in model.predict([told, folder / names[1]], **asked)]
    assert found[0] == 1 and found[1] == pytest.approx(nothing.answers[0].probability, abs=2e-3) and found[1] < 1


def test_the_fingerprint_changes_with_what_questions_see(model, monkeypatch):
    read = load_model("nano")
    monkeypatch.setattr(api, "load_answerer", lambda _: model._answerer)
    assert api.Model(read).fingerprint == model.fingerprint
    assert api.Model(replace(read, info=read.info | {"nearer": []})).fingerprint != model.fingerprint


def test_what_cannot_be_read_says_why_and_stops_nothing(model, folder):
    names = ["broken.jpg", "portrait.png", "grey.jpg", "missing.jpg"]
    done: list[int] = []
    pictures = [folder / name for name in names]
    found = list(model.predict(pictures, questions=SOME, by="head", batch_size=1, progress=done.append))
    assert sum(done) == len(names) and len(done) > 1, "told after each batch how many pictures are done"
    assert [faces[0].face for faces in found] == [0, 1, 0, 0]
    assert (
        "not an image" in found[0][0].error and "no face" in found[2][0].error and "does not exist" in found[3][0].error
    )
    row = found[1][0].to_row()
    table = pd.DataFrame([face.to_row() for faces in found for face in faces])
    assert len(table) == 4 and table["Smiling"].notna().sum() == 1 and table["error"].astype(bool).sum() == 3
    assert row["image"].endswith("portrait.png") and row["Smiling"] in ("Yes", "No") and 0 < row["age_years"] < 100


def test_mistakes_are_exceptions_that_name_them(model, portrait, folder):
    with pytest.raises(fi_jax.UserError, match="did you mean 'Smiling'"):
        list(model.predict([portrait], questions=["Smilling"]))
    with pytest.raises(fi_jax.UserError, match="no face"):
        model.ask(folder / "grey.jpg", "Is this person smiling?")
    with pytest.raises(fi_jax.UserError, match="float64"):
        model.ask(np.zeros((4, 4, 3)), "Is this person smiling?")
    with pytest.raises(fi_jax.UserError, match="by"):
        model.answers(portrait, by="heart")
    with pytest.raises(fi_jax.UserError, match="no model"):
        fi_jax.load("nanno")


def test_threads_take_turns(model, portrait):
    alone = model.answers(portrait, by="head").to_json("p")
    with ThreadPoolExecutor(4) as pool:
        given = list(pool.map(lambda _: model.answers(portrait, by="head").to_json("p"), range(8)))
    assert all(one == alone for one in given)


def test_predict_writes_the_same_rows_in_every_format(folder, tmp_path):
    rows = {}
    for suffix in ("csv", "jsonl", "parquet"):
        out = tmp_path / f"out.{suffix}"
        command = ["predict", str(folder), "--out", str(out), "--head", "--questions", *SOME]
        assert main(command) == 0
        read = {"csv": pd.read_csv, "jsonl": lambda p: pd.read_json(p, lines=True), "parquet": pd.read_parquet}[suffix]
        rows[suffix] = read(out)
        assert not list(tmp_path.glob("*.partial"))
    assert len(rows["csv"]) == 6
    for suffix in ("jsonl", "parquet"):
        assert list(rows[suffix]["image"]) == list(rows["csv"]["image"])
        numbers = [name for name in rows["csv"] if name.endswith("_probability") or name in ("face", "age_years")]
        pd.testing.assert_frame_equal(rows[suffix][numbers], rows["csv"][numbers], check_dtype=False)


def test_an_interrupted_prediction_goes_on_where_it_stopped(model, folder, tmp_path, capsys):
    out, names = tmp_path / "out.csv", [str(p) for p in sorted((folder / "drawn").iterdir())]
    questions = model.choose_questions(SOME)
    made_with = {"model": model.fingerprint, "head": True, "every_face": False, "whole": True}
    file = PredictionFile(out, questions, made_with)
    stream = file.write(model.predict(names, questions=SOME, by="head", whole=True, batch_size=1))
    next(stream), next(stream)
    stream.close()
    with file.partial.open("a") as lines:
        # A damaged line, and one cut as a kill leaves it.
        lines.write(json.dumps({"image": names[2], "rows": 3}) + '\n{"image": "cut sho')
    command = ["predict", *names, "--out", str(out), "--head", "--whole", "--questions", *SOME]
    assert main([*command[:-1]]) == 2, "other questions, other columns"
    assert "other options" in capsys.readouterr().err
    assert main(command) == 0
    assert "2 of 3 pictures were done before" in capsys.readouterr().out
    assert list(pd.read_csv(out)["image"]) == names
    assert main(command) == 2 and "there already" in capsys.readouterr().err


def test_a_full_disk_keeps_what_was_predicted(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    names, out = [f"{i}{'x' * 200}.png" for i in range(40)], tmp_path / "out.csv"
    found = ([FacePrediction(name, error="damaged")] for name in names)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limit[1]))
        with pytest.raises(fi_jax.UserError, match=r"cannot write '.*out.csv.partial' \(File too large\).*repeat"):
            list(PredictionFile(out, [], {}).write(found))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    file = PredictionFile(out, [], {})
    assert 0 < len(file.done) < 40 and file.done == set(names[: len(file.done)])


def test_pictures_are_found_in_folders_lists_tables_and_globs(folder, tmp_path):
    everything = find_pictures([str(folder)])
    assert len(everything) == 6 and folder / "drawn" / "0.PNG" in everything
    assert len(find_pictures([str(folder / "drawn" / "*.PNG"), str(folder / "drawn")])) == 3
    for hidden in ("._0.PNG", ".thumbnails/0.PNG"):
        (tmp_path / "mac" / hidden).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mac" / hidden).write_bytes(b"\0\5\x16\7")
    (tmp_path / "mac" / "0.PNG").write_bytes((folder / "drawn" / "0.PNG").read_bytes())
    for text in (str(tmp_path / "mac"), str(tmp_path / "mac" / "*.PNG")):
        assert find_pictures([text]) == [tmp_path / "mac" / "0.PNG"]
    assert find_pictures([str(tmp_path / "mac" / "._*")]) == [tmp_path / "mac" / "._0.PNG"]
    inside = (tmp_path / "mac").rename(tmp_path / ".mac")
    assert find_pictures([str(inside / "*.PNG")]) == [inside / "0.PNG"]
    # A question may be longer than any name.
    assert not is_named_like_pictures("Is she smiling? " * 60) and is_named_like_pictures(str(folder))
    (folder / "list.txt").write_text("drawn/0.PNG\n\nportrait.png\n")
    assert find_pictures([str(folder / "list.txt")]) == [
        folder / "drawn/0.PNG",
        folder / "portrait.png",
    ]
    (folder / "list.txt").unlink()
    table = pd.DataFrame({"id": [1, 2], "Path": ["drawn/1.PNG", "portrait.png"]})
    for write, name in ((table.to_csv, "t.csv"), (table.to_parquet, "t.parquet")):
        write(tmp_path / name, index=False)
        assert [p.name for p in find_pictures([str(tmp_path / name)])] == ["1.PNG", "portrait.png"]
    (tmp_path / "semi.csv").write_text("﻿id;picture\n1;a.png\n", encoding="utf-8")
    assert [p.name for p in find_pictures([str(tmp_path / "semi.csv")])] == ["a.png"]
    with pytest.raises(fi_jax.UserError, match="did you mean 'Path'"):
        find_pictures([str(tmp_path / "t.csv")], "Pth")
    (tmp_path / "empty.txt").write_text("\n")
    for nothing, message in (
        (str(tmp_path / "nothing*"), "neither a file nor a folder"),
        (str(tmp_path / "a**"), "not a pattern"),
        (str(tmp_path / "empty.txt"), "names no picture"),
        ("", "is empty"),
    ):
        with pytest.raises(fi_jax.UserError, match=message):
            find_pictures([nothing])


def test_only_files_are_read_as_pictures(tmp_path):
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    # Links that lead nowhere are among the pictures, so that somebody says so; nothing waits for a pipe.
    found = find_pictures([str(tmp_path)])
    assert [path.name for path in found] == ["loop.png", "pipe.png"]
    for path in (*found, tmp_path / "folder.png", Path("/dev/zero")):
        with pytest.raises(fi_jax.UserError, match="not a file|symbolic links"):
            decode(path)


def test_a_response_turns_into_plain_values(model, portrait):
    response = model.ask(portrait, "Is this person smiling?", by="head")
    assert "%" in response.to_text()
    assert json.loads(json.dumps(response.to_json("p")))["answers"][0]["question"] == "Smiling"


def test_places_that_cannot_be_written_are_one_line(folder, tmp_path, capsys):
    for out in (folder / "portrait.png" / "p.csv", Path("/proc/p.csv")):
        assert main(["predict", str(folder / "portrait.png"), "--out", str(out), "--head", "--questions", *SOME]) == 2
        assert capsys.readouterr().err.startswith("fi-jax: ")


def test_a_figure_replaces_no_photograph(folder, tmp_path, capsys):
    other = tmp_path / "other.png"
    other.write_bytes((folder / "portrait.png").read_bytes())
    command = ["ask", str(folder / "portrait.png"), "Is this person smiling?", "--head", "--figure"]
    (tmp_path / "thesis.pdf").write_bytes(b"%PDF" + bytes(100_000))
    for name in ("other.png", "thesis.pdf"):
        assert main([*command, str(tmp_path / name)]) == 2
        assert "not written by this command" in capsys.readouterr().err
    # Said before the model is loaded, not after its answers.
    for name, says in (("card.xyz", "figure format 'xyz'"), ("other.png/card.png", "is a file")):
        assert main([*command[:-2], "--checkpoint", "none", "--figure", str(tmp_path / name)]) == 2
        assert says in capsys.readouterr().err
    card = tmp_path / "card.png"
    assert main([*command, str(card)]) == 0 and main([*command, str(card)]) == 0


def test_names_that_are_no_text_are_printed_and_written(folder, tmp_path, capsys):
    name = os.fsdecode(bytes(tmp_path / "caf") + b"\xe9.PNG")
    Path(name).write_bytes((folder / "drawn" / "0.PNG").read_bytes())
    assert main(["ask", name, "Is she smiling?", "--head", "--json", "--box", "full"]) == 0
    assert json.loads(capsys.readouterr().out)["image"] == name
    for suffix, read in (("csv", pd.read_csv), ("parquet", pd.read_parquet)):
        out = tmp_path / f"out.{suffix}"
        assert main(["predict", name, "--out", str(out), "--head", "--whole", "--questions", *SOME]) == 0
        assert read(out)["image"][0] == f"{tmp_path}/caf\\udce9.PNG"


def test_ask_answers_questions_about_pictures_and_folders_and_loads_once(folder, capsys, monkeypatch):
    import fi_jax.api

    loads, real = [], fi_jax.api.load
    monkeypatch.setattr(fi_jax.api, "load", lambda name: loads.append(name) or real(name))
    command = ["ask", str(folder / "drawn"), str(folder / "portrait.png"), "Is she smiling?", "Is she older than 40?"]
    assert main([*command, "--head", "--json", "--box", "full"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(loads) == 1 and [Path(f["image"]).name for f in found[::2]] == [
        "0.PNG",
        "1.PNG",
        "2.PNG",
        "portrait.png",
    ]
    assert [f["question"] for f in found[:2]] == command[3:]
    # What cannot be read stops nothing, and is no success.
    assert main(["ask", str(folder / "*.*"), "Is she smiling?", "--head"]) == 2
    said = capsys.readouterr()
    assert f"{folder}/portrait.png: Is she smiling?\n  Yes (" in said.out and "answered: Is this person" in said.out
    assert "2 of 3 pictures failed" in said.err and "broken.jpg" in said.err and "grey.jpg" in said.err
    assert main([*command, "--chat"]) == 2 and "--chat is about one picture" in capsys.readouterr().err


def test_a_chat_keeps_the_face_for_questions_that_follow(folder, capsys, monkeypatch):
    import io

    from fi_jax.faces import face_detector

    looked = []
    monkeypatch.setattr(
        face_detector, "_search", lambda *a, real=face_detector._search, **k: looked.append(1) or real(*a, **k)
    )
    command = ["ask", str(folder / "portrait.png"), "Is she smiling?", "--head"]
    assert main(command) == 0
    first, searches = capsys.readouterr().out, len(looked)
    typed = "Is she smiling?\n\n" + "x" * 1001 + "\nWhat is her name?\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    assert main([*command, "--chat"]) == 0
    said = capsys.readouterr()
    assert said.out == first * 2 + "I do not identify people. I can describe the face instead.\n"
    assert "1,000" in said.err or "1000" in said.err, "a mistake is said, and the conversation goes on"
    assert len(looked) == 2 * searches, "the face is looked for once"
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["faces"] == 1


def test_what_takes_long_says_what_it_is(capsys, monkeypatch):
    from fi_jax.cli import ask

    real, timers = ask.threading.Timer, []
    monkeypatch.setattr(ask.threading, "Timer", lambda *given: timers.append(real(*given)) or timers[-1])
    with ask._step("answering"):
        pass
    with ask._step("loading the model"):
        # As after its two seconds, which need not pass here.
        timers[1].function()
    for timer in timers:
        timer.join()
        assert timer.interval == 2.0
    assert capsys.readouterr().err == "loading the model …\n"
