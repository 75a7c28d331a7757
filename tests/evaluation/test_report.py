"""The report: self-contained, complete, escaped, within its size; comparisons; pictures only when asked for."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from synthetic_answers import answers

from fi_jax.cli.main import main
from fi_jax.evaluation.predictions import Prediction, write_predictions
from fi_jax.evaluation.report.gather import badness, compare, faces_that_differ, read_inputs, worst_mistakes
from fi_jax.evaluation.report.tables import ablation_table, changes
from fi_jax.evaluation.results import write_summary
from fi_jax.evaluation.summarise import summarise

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


CONFIGS = {
    "before": {"name": "before", "knowledge": {"enabled": False, "tau": 0.4}, "data": {"sources": [{"root": "here"}]}},
    "after": {"name": "after", "knowledge": {"enabled": True, "tau": 0.4}, "data": {"sources": [{"root": "there"}]}},
}


class Page(HTMLParser):
    """Collects what a test asks about: tags with their attributes, and whether tags are balanced."""

    VOID = {"meta", "link", "img", "br", "input", "hr"}

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("evaluations")
    Image.new("RGB", (300, 200), "orange").save(root / "face.jpg")
    for name, skill in (("before", 0.5), ("after", 2.0)):
        lines = [
            *answers("utkface", 40, skill, seed=len(name), path=str(root / "face.jpg")),
            *answers("celeba", 12, skill, seed=len(name), seen=True),
        ]
        write_predictions(root / name / "predictions.jsonl", lines)
        write_summary(
            root / name / "metrics.json",
            summarise(lines, resamples=20, meta={"command": "fi-jax evaluate <x> & y", "config": CONFIGS[name]}),
        )
    run = root / "run"
    run.mkdir()
    (run / "config.json").write_text('{"name": "run"}')
    (run / "metrics.jsonl").write_text("".join(f'{{"step": {i}, "loss": {1 / i}}}\n' for i in range(1, 5)) + '{"step"')
    return root


def test_one_evaluation(evaluations, tmp_path):
    assert main(["report", str(evaluations / "before"), "--out", str(tmp_path)]) == 0
    text = (tmp_path / "index.html").read_text()
    page = Page(text)
    assert not page.open
    assert len(text.encode()) < 5_000_000
    # No network: nothing is loaded from anywhere but the page itself.
    sources = [a.get("src", "") for _, a in page.tags if "src" in a] + [a["href"] for a in page.all("link")]
    assert sources and all(s.startswith("data:") for s in sources)
    # Names of XML vocabularies are no addresses to fetch.
    assert not re.search(r"@import|url\(|https?://(?!www\.w3\.org)", text)
    assert all(a.get("alt") for a in page.all("img"))
    assert {"dataset", "task", "group"} == {a["data-key"] for a in page.all("select")}
    labelled = {a["for"] for a in page.all("label")}
    assert {a["id"] for a in page.all("select")} <= labelled
    cards = [a for a in page.all("li") if a.get("data-kind") == "mistake"]
    assert {c["data-dataset"] for c in cards} == {"utkface", "celeba"}
    assert "data:image/jpeg" not in text, "faces are shown only when asked for"
    assert "fi-jax evaluate &lt;x&gt; &amp; y" in text and "<x>" not in text
    assert "Broken rules" in text and "fi-jax report" in text


def test_comparison_of_two_with_a_run(evaluations, tmp_path):
    inputs = [str(evaluations / name) for name in ("before", "after", "run")]
    assert main(["report", *inputs, "--out", str(tmp_path), "--most", "3"]) == 0
    text = (tmp_path / "index.html").read_text()
    assert "before against after" in text and "after mends" in text and "difference" in text
    page = Page(text)
    assert {"dataset", "task", "model", "group"} == {a["data-key"] for a in page.all("select")}
    assert any(a.get("data-kind") == "differ" for a in page.all("li"))
    assert any("Training curves" in a["alt"] for a in page.all("img"))

    # The faces on which they differ most, a figure each, and what was changed between the two.
    assert sum("side by side about" in a["alt"] for a in page.all("img")) == 4
    assert "after against before: knowledge.enabled: false → true." in text


def test_an_ablation_says_what_was_changed_and_what_it_did(evaluations):
    assert changes(CONFIGS["before"], CONFIGS["after"]) == ["knowledge.enabled: false → true"]
    assert changes(CONFIGS["before"], None) == changes(CONFIGS["after"], CONFIGS["after"]) == []
    assert changes({"a": [{"b": 1}]}, {"a": [{"b": 1, "c": "x"}]}) == ["a.0.c: unset → x"]
    found, _ = read_inputs([evaluations / "before", evaluations / "after", evaluations / "before"], most=1)
    table = ablation_table(found)
    assert table.header[4:] == ["faces", "before", "after", "before (2)"]
    gender = next(row for row in table.rows if row[1] == "gender")
    before, after, again = (float(text.split()[0]) for text in gender[5:])
    assert gender[6].endswith(f"(+{after - before:.1f})") and gender[7].endswith("(+0.0)") and again == before
    assert table.notes[2] == "before (2) against before: no field of the config differs."


def test_faces_that_differ_most_come_first(tmp_path):
    """Both models' answers about one face, whole; a face on which they agree is not shown."""
    asked = ("Smiling", "Young", "Bald")
    truths = {"a": ("Yes", "Yes", "Yes"), "b": ("Yes", "Yes", "No"), "c": ("No", "No", "No")}

    def says(image, answers):
        return [
            Prediction(image, "celeba", "attribute", name, truth, answer)
            for name, truth, answer in zip(asked, truths[image], answers)
        ]

    write_predictions(tmp_path / "1" / "predictions.jsonl", [p for i in "abc" for p in says(i, ("Yes", "Yes", "Yes"))])
    second = [*says("a", ("Yes", "No", "No")), *says("b", ("No", "Yes", "Yes")), *says("c", ("Yes", "Yes", "Yes"))]
    write_predictions(tmp_path / "2" / "predictions.jsonl", second)
    pairs = faces_that_differ(tmp_path / "1", tmp_path / "2")
    assert [(after[0].image, len(before), len(after)) for before, after in pairs] == [("a", 3, 3), ("b", 3, 3)]
    assert len(faces_that_differ(tmp_path / "1", tmp_path / "2", most=1)) == 1


def test_pictures_are_thumbnails_when_asked_for(evaluations, tmp_path):
    assert main(["report", str(evaluations / "before"), "--out", str(tmp_path), "--pictures"]) == 0
    text = (tmp_path / "index.html").read_text()
    assert text.count("data:image/jpeg") > 3 and len(text.encode()) < 5_000_000


def test_predictions_alone_are_enough_and_nothing_is_refused(evaluations, tmp_path, capsys):
    shutil.copy(evaluations / "before" / "predictions.jsonl", tmp_path / "predictions.jsonl")
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    (tmp_path / "empty").mkdir()
    capsys.readouterr()
    for arguments, words in (
        ([str(tmp_path / "empty"), "--out", str(tmp_path / "out2")], "holds neither"),
        ([str(tmp_path / "nowhere"), "--out", str(tmp_path / "out2")], "no folder"),
        ([str(tmp_path), "--out", str(tmp_path / "predictions.jsonl")], "give a folder"),
    ):
        assert main(["report", *arguments]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
    assert not (tmp_path / "out2").exists()


def test_a_run_folder_brings_its_evaluations(evaluations, tmp_path):
    shutil.copytree(evaluations / "run", tmp_path / "run")
    shutil.copytree(evaluations / "before", tmp_path / "run" / "test")
    found, runs = read_inputs([tmp_path / "run"], most=2)
    assert [e.name for e in found] == ["run/test"] and [r.name for r in runs] == ["run"]
    assert len(runs[0].records) == 4, "a line that a kill cut short is dropped"


def test_worst_mistakes_are_the_surest_and_the_furthest():
    def gender(image, p):
        return Prediction(image, "utkface", "gender", "gender", "male", "female", {"male": 1 - p, "female": p})

    def years(image, said):
        return Prediction(image, "utkface", "age_years", "age_years", 30.0, said)

    right = Prediction("r", "utkface", "gender", "gender", "male", "male", {"male": 1.0, "female": 0.0})
    unknown = Prediction("u", "utkface", "gender", "gender", None, "male", {"male": 1.0, "female": 0.0})
    assert badness(right) is None and badness(unknown) is None
    found = worst_mistakes(
        [gender("a", 0.6), gender("b", 0.99), gender("c", 0.8), right, unknown, years("d", 31.0), years("e", 70.0)], 2
    )
    assert [p.image for p in found["utkface", "gender", "llm", False]] == ["b", "c"]
    assert [p.image for p in found["utkface", "age_years", "llm", False]] == ["e", "d"]


def test_compare_counts_flips_and_pairs_settings():
    def says(image, answer, **kwargs):
        return Prediction(image, "utkface", "gender", "gender", "male", answer, **kwargs)

    first = [says("a", "male"), says("b", "female"), says("c", "female"), says("d", "male"), says("e", "male")]
    second = [
        says("a", "male", seen=True),
        says("b", "male", seen=True),
        says("c", "female", seen=True),
        says("d", "female", seen=True),
        says("x", "male"),
    ]
    (flips,) = compare(first, second).values()
    assert (flips.both_right, flips.mended, flips.broken, flips.both_wrong) == (1, 1, 1, 1)
    assert flips.p_value == 1
    assert {before.image for before, _ in flips.examples} == {"b", "d"}
    twice = [says(i, "male", seen=s) for i in "ab" for s in (True, False)]
    assert {key[3] for key in compare(twice, twice)} == {True, False}


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_filters_work_in_a_browser(evaluations, tmp_path):
    main(["report", str(evaluations / "before"), "--out", str(tmp_path)])

    def cards(query: str) -> tuple[int, int]:
        url = (tmp_path / "index.html").as_uri() + query
        command = [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            url,
        ]
        dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
        found = [a for a in Page(dom).all("li") if "data-kind" in a]
        return sum("hidden" not in a for a in found), len(found)

    shown, total = cards("")
    assert shown == total > 0
    for query in ("?dataset=utkface", "?dataset=utkface&task=race", "?group=gender: male"):
        some, _ = cards(query.replace(" ", "%20"))
        assert 0 < some < total
    assert cards("?dataset=nothing")[0] == total


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_a_phone_shows_every_number_and_a_wide_page_two_runs_side_by_side(evaluations, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    main(["report", *(str(evaluations / name) for name in ("before", "after")), "--out", str(tmp_path)])
    with playwright.sync_playwright() as opened:
        browser = opened.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 375, "height": 800})
        page.goto((tmp_path / "index.html").as_uri())
        cut = "[...document.querySelectorAll('#tables td')].filter(e => e.getBoundingClientRect().right > innerWidth)"
        assert page.evaluate(f"{cut}.length") == 0 and page.evaluate("document.documentElement.scrollWidth") <= 375
        page.set_viewport_size({"width": 1280, "height": 900})
        tops = "[...document.querySelectorAll('#figures .row')].map(r => [...r.children].map(f => f.offsetTop))"
        rows = page.evaluate(tops)
        assert rows and all(len(row) == 2 and len(set(row)) == 1 for row in rows)
        browser.close()
