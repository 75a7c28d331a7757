"""The documentation: the site builds without a warning and without the network, every link leads somewhere."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(([^)#\s]+)")


def test_the_site_builds_strictly_and_asks_nobody_for_anything(tmp_path):
    for name in ("material", "mkdocstrings", "mkdocs_jupyter"):
        pytest.importorskip(name, reason="the docs extra is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    # A proxy that is not there: what asked for the network would fail.
    offline = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
    environment = {**os.environ, **offline, "NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert built.returncode == 0, built.stderr
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=\"?((?:https?:)?//[^\">\s]+)", page.read_text()
        )
        assert not loaded, f"{page.name} loads {loaded}"
    assert "Answers one question in words about a face" in (tmp_path / "python.html").read_text()


def test_links_between_files_lead_somewhere():
    broken = []
    for page in (ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in LINK.findall(page.read_text()):
            there = (page.parent / target).exists() or target.startswith(("http://", "https://"))
            broken += [] if there else [f"{page.relative_to(ROOT)}: {target}"]
    assert not broken


def test_the_notebooks_outputs_are_those_of_its_code():
    nbformat = pytest.importorskip("nbformat", reason="the docs extra is not installed")
    notebook = nbformat.read(ROOT / "docs" / "tour.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    code = "\n\n".join(cell.source for cell in cells)
    assert notebook.metadata["executed_code"] == hashlib.sha256(code.encode()).hexdigest(), "python docs/run_tour.py"
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs and not any(output.output_type == "error" for output in outputs)
    assert len(json.dumps(notebook)) < 600_000, "small outputs"
