"""Figures: nothing overlaps, nothing leaves the page, the same input gives the same bytes, bad input is named."""

import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

sys.path.insert(0, str(Path(__file__).parent))
from synthetic_answers import answers

from fi_jax.cli.main import main
from fi_jax.errors import UserError
from fi_jax.evaluation.figures import style
from fi_jax.evaluation.figures.ask import PARTS, ask_figure, blocks, part_map
from fi_jax.evaluation.figures.attribution import attribution_figure, strongest
from fi_jax.evaluation.figures.compare import compare_figure, is_right, lines_of
from fi_jax.evaluation.figures.curves import curves_figure, series, smooth
from fi_jax.evaluation.figures.graph import graph_figure, strongest_edges
from fi_jax.evaluation.figures.headings import HEADINGS, heading_of
from fi_jax.evaluation.figures.summary import attributes_figure, confusion_figure, groups_figure, reliability_figure
from fi_jax.evaluation.predictions import Prediction, write_predictions
from fi_jax.evaluation.results import select, write_summary
from fi_jax.evaluation.summarise import summarise
from fi_jax.inference.answers import Answer
from fi_jax.inference.attribution import Attribution
from fi_jax.labels.face_parts import CLASSES
from fi_jax.labels.question_bank import question, questions_for
from fi_jax.labels.registry import vocabulary

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 255, (60, 60, 3), dtype=np.uint8)
MASK = np.arange(60 * 60, dtype=np.uint8).reshape(60, 60) % len(CLASSES)


def answered(names=None) -> list[Answer]:
    asked = [question(n) for n in names] if names else questions_for(vocabulary("faces"))
    return [Answer.likeliest(q, RNG.dirichlet(np.ones(len(q.options)))) for q in asked]


def check_layout(drawn) -> None:
    """No two texts overlap. Slanted ones are left out: their box is larger than they are."""
    canvas = FigureCanvasAgg(drawn)
    with style.styled():
        canvas.draw()
    unseen = set()
    for axes in drawn.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not low - 1e-9 <= tick.get_loc() <= high + 1e-9:
                    unseen |= {tick.label1, tick.label2}
    texts = [t for t in drawn.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in unseen]
    boxes = [
        (t.get_text(), t.get_window_extent(canvas.get_renderer()).padded(-1))
        for t in texts
        if t.get_rotation() % 90 == 0
    ]
    assert boxes
    for i, (a, box) in enumerate(boxes):
        for b, other in boxes[i + 1 :]:
            assert not box.overlaps(other), f"'{a}' and '{b}' overlap"


@pytest.fixture(scope="module")
def summary() -> dict:
    lines = [p for name, n in (("utkface", 150), ("celeba", 40), ("expw", 60)) for p in answers(name, n, 1.5)]
    lines += answers("utkface", 150, 2.5, seed=1, source="head", seen=True)
    return summarise(lines, resamples=50)


def one(summary, dataset, task, source="llm"):
    (result,) = select(summary, dataset=dataset, task=task, source=source)
    return result.values


@pytest.mark.parametrize("names", [None, ["Smiling"], ["age_years"], ["gender", "race:fairface", "expression"], []])
@pytest.mark.parametrize("mask", [MASK, None])
@pytest.mark.parametrize("title", ["", "What is this person's expression, and why? " * 3])
def test_answer_card_layout(names, mask, title):
    drawn = ask_figure(IMAGE, mask, [] if names == [] else answered(names), title, "A face. " * 20)
    check_layout(drawn)


def test_answer_card_shows_every_question_once_and_marks_what_was_said():
    given = answered()
    bars = [bar for block in blocks(given) for bar in block.bars]
    binary = [a for a in given if a.question.is_binary]
    assert len(bars) == len(binary) - 1 + 2 + 5 + 9 + 5 + 5, "the gender has one place, not two"
    assert sum(bar.chosen for bar in bars) == 5 + sum(
        a.probabilities[0] > 0.5 for a in binary if a.question.name != "Male"
    )
    consistent = Answer(question("gender"), (0.9, 0.1), chosen=1)
    assert [bar.chosen for bar in blocks([consistent])[0].bars] == [False, True]


def test_every_attribute_has_a_heading():
    asked = [q for name in ("celeba", "maad_face") for q in questions_for(vocabulary(name)) if q.is_binary]
    assert {heading_of(q) for q in asked} == set(HEADINGS) - {"Other"}


def test_parts_cover_all_classes_and_name_what_is_there():
    assert sorted(c for *_, classes in PARTS for c in classes) == sorted(CLASSES)
    coloured, names = part_map(np.array([[0, 13], [13, 13]], np.uint8))
    assert names == ["hair"] and coloured[0, 0].tolist() == [255, 255, 255]


def test_summary_figures_layout(summary):
    check_layout(confusion_figure(one(summary, "utkface", "age_group"), "UTKFace, age group"))
    check_layout(confusion_figure(one(summary, "utkface", "gender"), "UTKFace"))
    both = {"LLM": one(summary, "utkface", "race"), "head, fine-tuned": one(summary, "utkface", "race", "head")}
    check_layout(reliability_figure(both, "UTKFace, race"))
    check_layout(groups_figure(both, "UTKFace, race"))
    check_layout(groups_figure({"LLM": one(summary, "utkface", "age_years")}))
    check_layout(attributes_figure(one(summary, "celeba", "attribute")))
    check_layout(attributes_figure(one(summary, "celeba", "attribute"), "f1"))


def test_figures_without_data_are_refused(summary):
    with pytest.raises(UserError, match="no breakdown"):
        groups_figure({"LLM": one(summary, "expw", "expression")})
    with pytest.raises(UserError, match="no probabilities"):
        reliability_figure({"LLM": one(summary, "utkface", "age_years")})
    with pytest.raises(UserError, match="no edge"):
        graph_figure(["a", "b"], np.eye(2))
    with pytest.raises(UserError, match="no numbers"):
        curves_figure({"run": []})


def test_curves_group_loss_terms_and_keep_the_last_value_of_a_step():
    records = [
        {"step": i, "loss": 2.0 / i, "lm": 1.0 / i, "head_bce": None if i == 3 else 0.5, "grad_norm": 1.0}
        for i in range(1, 9)
    ]
    records.append({"step": 8, "loss": 9.0})
    found = series(records)
    assert found["loss"][1][-1] == 9.0 and len(found["head_bce"][0]) == 7
    drawn = curves_figure({"a": records, "b": records})
    check_layout(drawn)
    assert [axes.get_title(loc="left") for axes in drawn.axes] == ["loss", "grad norm"]
    np.testing.assert_allclose(smooth(np.ones(9), 4), 1)


def test_graph_shows_the_strongest_edges_off_the_diagonal():
    weights = np.array([[9.0, 0.2, 0.0], [0.7, 9.0, 0.1], [0.0, 0.0, 9.0]])
    assert [(i, j) for i, j, _ in strongest_edges(weights, 2)] == [(1, 0), (0, 1)]
    vocab = vocabulary("celeba")
    check_layout(graph_figure(vocab.names, RNG.uniform(size=(40, 40)), 60))


def test_compare_marks_right_and_wrong_and_puts_differences_first():
    def says(name, truth, answer):
        return Prediction(
            "1",
            "celeba",
            "attribute",
            name,
            truth,
            answer,
            {"Yes": 0.7, "No": 0.3} if answer == "Yes" else {"Yes": 0.3, "No": 0.7},
        )

    first = [says("Bald", "No", "No"), says("Smiling", "Yes", "No"), says("Young", None, "Yes")]
    second = [says("Young", None, "Yes"), says("Smiling", "Yes", "Yes"), says("Bald", "No", "No")]
    lines = lines_of({"a": first, "b": second})
    assert [line.question for line in lines] == ["Smiling", "Bald", "Young"]
    assert lines[0].right == (False, True) and lines[2].right == (None, None)
    check_layout(compare_figure({"a": first, "b": second}, IMAGE, "1"))
    with pytest.raises(UserError, match="no question in common"):
        lines_of({"a": first[:1], "b": second[:1]})
    years = Prediction("1", "utkface", "age_years", "age_years", 25.0, 29.4)
    assert is_right(years) and not is_right(Prediction("1", "utkface", "age_years", "age_years", 25.0, 30.0))


@pytest.mark.parametrize("mapped", [True, False], ids=["with map", "photo alone"])
@pytest.mark.parametrize("name", ["Smiling", "age_years", "race:fairface"])
def test_attribution_layout(name, mapped):
    asked = question(name)
    evidence = RNG.normal(size=(7, 7))
    attribution = Attribution(
        asked, len(asked.options) - 1, evidence, 0.2 * evidence[:4, :4] if mapped else None, 0.7, -1.0
    )
    check_layout(attribution_figure(IMAGE, MASK, attribution))
    check_layout(attribution_figure(IMAGE, MASK, attribution, "astronaut.png"))


def test_the_outlined_tokens_are_the_fewest_that_carry_half_of_the_evidence_for_it():
    evidence = np.array([[4.0, 1.0], [3.0, -9.0]])
    assert strongest(evidence).tolist() == [[True, False], [False, False]]
    assert strongest(evidence, 0.51).tolist() == [[True, False], [True, False]]
    assert strongest(evidence, 1.0).tolist() == [[True, True], [True, False]]
    assert not strongest(-np.ones((2, 2))).any()


def test_the_same_figure_gives_the_same_bytes(tmp_path, summary):
    for kind in style.FORMATS:
        drawn = [style.to_bytes(confusion_figure(one(summary, "utkface", "race")), kind) for _ in range(2)]
        assert drawn[0] == drawn[1]
    with pytest.raises(UserError, match="figure format"):
        style.save(confusion_figure(one(summary, "utkface", "race")), tmp_path / "x.bmp")
    assert list(tmp_path.iterdir()) == []


def test_command_line(tmp_path, capsys, summary):
    write_predictions(tmp_path / "a" / "predictions.jsonl", answers("utkface", 3, 1.0))
    write_predictions(tmp_path / "b" / "predictions.jsonl", answers("utkface", 3, 2.0))
    write_summary(tmp_path / "metrics.json", summary)
    out = tmp_path / "f.png"
    assert (
        main(["figure", "compare", str(tmp_path / "a"), str(tmp_path / "b"), "--image", "00001.jpg", "--out", str(out)])
        == 0
    )
    assert out.read_bytes().startswith(b"\x89PNG")
    chosen = ["--dataset", "utkface", "--task", "race", "--source", "llm", "--out", str(tmp_path / "c.svg")]
    assert main(["figure", "confusion", str(tmp_path), *chosen]) == 0
    assert "<svg" in (tmp_path / "c.svg").read_text()
    capsys.readouterr()
    for arguments, words in (
        (["confusion", str(tmp_path), "--out", str(out)], "several results fit"),
        (["confusion", str(tmp_path), "--task", "rase", "--out", str(out)], "did you mean 'race'"),
        (["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out)], "--image"),
        (["compare", str(tmp_path / "a"), "--image", "x", "--out", str(out)], "two evaluation"),
        (
            ["card", str(tmp_path / "a"), "--image", "nobody", "--picture", "x.jpg", "--out", str(out)],
            "no such answers",
        ),
        (["curves", str(tmp_path / "a"), "--out", str(out)], "no run folder"),
        (["confusion", str(tmp_path), "--out", str(tmp_path / "f.gif")], "figure format"),
    ):
        assert main(["figure", *arguments]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    """The small model with random weights, as a run leaves it."""
    from small_model import small_config

    from fi_jax.weights.bundle import TrainedModel, save_model

    folder = tmp_path_factory.mktemp("run") / "model"
    n = len(vocabulary("faces"))
    prompts = RNG.normal(size=(n, 20)).astype(np.float32)
    save_model(folder, TrainedModel(small_config(), {}, prompts, np.eye(n, dtype=np.float32), {}))
    return folder.parent


def test_attribution_names_its_mistakes(tmp_path, capsys, model_folder):
    from PIL import Image

    Image.fromarray(IMAGE).save(tmp_path / "face.png")
    Image.fromarray(MASK[:30]).save(tmp_path / "map.png")
    face = ["--picture", str(tmp_path / "face.png"), "--box", "full"]
    out = ["--out", str(tmp_path / "f.png")]
    for arguments, words in (
        ([], "needs --picture"),
        (face, "--question"),
        ([*face, "--question", "Tell me a story about this person."], "no closed question"),
        ([*face, "--question", "gender", "--answer", "mole"], "did you mean 'male'"),
        (
            [*face, "--question", "gender", "--head", "--mask", str(tmp_path / "map.png")],
            "60x30 but the picture is 60x60",
        ),
    ):
        assert main(["figure", "attribution", str(model_folder), *arguments, *out]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
    assert not (tmp_path / "f.png").exists()


@pytest.mark.slow
def test_attribution_is_drawn_from_the_command_line(tmp_path, model_folder):
    from PIL import Image

    Image.fromarray(IMAGE).save(tmp_path / "face.png")
    Image.fromarray(MASK).save(tmp_path / "map.png")
    arguments = [
        "--picture",
        str(tmp_path / "face.png"),
        "--mask",
        str(tmp_path / "map.png"),
        "--box",
        "full",
        "--head",
    ]
    out = tmp_path / "f.svg"
    assert (
        main(["figure", "attribution", str(model_folder), *arguments, "--question", "smiling?", "--out", str(out)]) == 0
    )
    assert "Attribution to the map of parts" in out.read_text()
