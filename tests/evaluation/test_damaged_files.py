"""Damaged results give a named error on one line, never a traceback: 200 seeded mutations of each file and reader."""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzz import MUTATIONS, bounded_memory

sys.path.insert(0, str(Path(__file__).parent))
from synthetic_answers import answers

from fi_jax.cli.main import main
from fi_jax.errors import UserError
from fi_jax.evaluation.calibration import family_temperatures
from fi_jax.evaluation.figures import curves, style
from fi_jax.evaluation.predictions import read_predictions, write_predictions
from fi_jax.evaluation.report import page
from fi_jax.evaluation.results import read_summary, write_summary
from fi_jax.evaluation.summarise import summarise

JUNK = [None, True, -1, 0.5, 1e999, 10**400, "", "x", [], {}, [None], {"x": 1}, float("nan"), [[[]]]]


def places(value, found=None) -> list[tuple]:
    """Every (container, key) within a JSON value."""
    found = [] if found is None else found
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        found.append((value, key))
        if isinstance(item, dict | list):
            places(item, found)
    return found


def mutate(text: str, rng: random.Random) -> bytes:
    """Changes a value, drops or renames a key, or damages bytes, of one line of JSON lines or of one JSON text."""
    data = bytearray(text.encode())
    if rng.random() < 0.25:
        for _ in range(rng.choice((1, 1, 20))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(data[: rng.randrange(len(data))] if rng.random() < 0.3 else data)
    lines = text.splitlines() if text.count("\n{") else [text]
    which = rng.randrange(len(lines))
    value = [json.loads(lines[which])]
    container, key = rng.choice(places(value))
    how = rng.random()
    if how < 0.7:
        container[key] = rng.choice(JUNK)
    elif how < 0.85 and isinstance(container, dict):
        del container[key]
    elif isinstance(container, dict):
        container[f"{key}x"] = container.pop(key)
    else:
        container.append(rng.choice(JUNK))
    lines[which] = json.dumps(value[0]) if value else ""
    return "\n".join(lines).encode()


def survive(file: Path, read: Callable[[], object], seed: int, times: int = MUTATIONS) -> int:
    """Runs `read` on mutations of `file`; anything but success or a `UserError` of one line fails. Counts refusals."""
    text, rng, refused = file.read_text(), random.Random(seed), 0
    for _ in range(times):
        file.write_bytes(mutate(text, rng))
        try:
            with bounded_memory():
                read()
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 600
    file.write_text(text)
    return refused


def evaluation(folder: Path, lines: list) -> Path:
    write_predictions(folder / "predictions.jsonl", lines)
    summary = summarise(lines, resamples=2, meta={"config": {"name": "x"}, "cells": []})
    write_summary(folder / "metrics.json", summary)
    return folder


@pytest.fixture(autouse=True)
def _unpainted(monkeypatch):
    """Figures are laid out and not painted; the program that paints leaves its name, by which they are replaced."""
    monkeypatch.setattr(style, "to_bytes", lambda *args, **kwargs: b"<svg><!-- Matplotlib --></svg>")


@pytest.fixture
def run_folder(tmp_path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0, "acc": 0.5}\n')
    (folder / "config.json").write_text('{"name": "run", "train": {"steps": 2}}')
    return folder


def command(*arguments) -> Callable[[], None]:
    """A command in this process; its one line on stderr becomes the error again."""

    def run() -> None:
        if main([*map(str, arguments)]) == 2:
            raise UserError("refused")

    return run


@pytest.mark.parametrize("name", ["metrics.json", "predictions.jsonl"])
def test_report_of_a_damaged_evaluation(name, tmp_path):
    folder = evaluation(tmp_path / "e", list(answers("expw", 4, 1.0)))
    run = command("report", folder, "--out", tmp_path / "out")
    run()
    assert survive(folder / name, run, seed=len(name)) > MUTATIONS / 5


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json"])
def test_report_of_a_damaged_run(name, run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "curves_figure", lambda runs: [curves.series(records) for records in runs.values()])
    run = command("report", run_folder, "--out", tmp_path / "out")
    run()
    assert survive(run_folder / name, run, seed=len(name)) > MUTATIONS / 5


def test_figures_of_damaged_results(tmp_path):
    folder = evaluation(tmp_path / "e", [*answers("celeba", 2, 1.0), *answers("utkface", 2, 1.0)])
    out = ["--out", tmp_path / "f.svg"]
    for seed, (kind, dataset, task) in enumerate(
        (("confusion", "utkface", "gender"), ("attributes", "celeba", "attribute"), ("groups", "utkface", "age_years"))
    ):
        run = command("figure", kind, folder, "--dataset", dataset, "--task", task, *out)
        run()
        survive(folder / "metrics.json", run, seed, MUTATIONS // 3)


def test_curves_of_damaged_logs(run_folder, tmp_path):
    run = command("figure", "curves", run_folder, "--out", tmp_path / "f.svg")
    run()
    survive(run_folder / "metrics.jsonl", run, 0)


def test_pack_reads_damaged_predictions(tmp_path):
    folder = evaluation(tmp_path / "e", list(answers("utkface", 2, 1.0)))

    def fit():
        return family_temperatures(list(read_predictions(folder)))

    fit()
    assert survive(folder / "predictions.jsonl", fit, 0) > MUTATIONS / 5


def test_what_is_wrong_is_named(tmp_path):
    folder = evaluation(tmp_path, list(answers("expw", 2, 1.0)))
    summary = read_summary(folder)
    for change, words in (
        (lambda s: s["entries"][0].pop("dataset"), "entries.0 is not an object with 'dataset'"),
        (lambda s: s["entries"][0].update(source="x"), "entries.0.source is not one of head, llm, free"),
        (lambda s: s["entries"][0]["tasks"]["expression"].update(faces="4"), "entries.0.tasks.expression.faces is not"),
        (lambda s: s["entries"][0]["tasks"]["expression"]["confusion"]["counts"].pop(), "no matrix of 7 classes"),
    ):
        changed = json.loads(json.dumps(summary))
        change(changed)
        (folder / "metrics.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=words):
            read_summary(folder)
