"""What is declared, what a wheel holds, and that it runs away from the checkout without any extra."""

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image
from skimage import data

from fi_jax.cli.main import _EXTRAS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def imported_modules() -> set[str]:
    """Top-level names that the package imports, anywhere."""
    names = set()
    for file in (ROOT / "fi_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    configs = {file.stem for file in (ROOT / "fi_jax" / "configs").glob("*.py")}
    return names - set(sys.stdlib_module_names) - configs - {"fi_jax"}


def distribution(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-").replace(".", "-")


def test_what_is_imported_is_declared():
    extras = PROJECT["optional-dependencies"].values()
    declared = {distribution(line) for lines in (PROJECT["dependencies"], *extras) for line in lines}
    providers = importlib.metadata.packages_distributions()
    undeclared = {
        name
        for name in imported_modules()
        if not {found.lower().replace("_", "-").replace(".", "-") for found in providers.get(name, [name])} & declared
    }
    assert not undeclared


def test_every_extra_is_hinted_at_when_it_is_missing():
    core = {distribution(line) for line in PROJECT["dependencies"]}
    for module, extra in _EXTRAS.items():
        names = {distribution(line) for line in PROJECT["optional-dependencies"][extra]}
        assert module.replace("_", "-") in names, f"{module} is not in extra {extra}"
        assert module.replace("_", "-") not in core


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The wheel, installed by itself in a folder; beside it a finder that hides every extra."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True)
    hidden = sorted(set(_EXTRAS))
    (folder / "site" / "sitecustomize.py").write_text(
        f"""
import os
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {hidden}:
            raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)

if "WITH_EXTRAS" not in os.environ:
    sys.meta_path.insert(0, Hidden())
"""
    )
    return folder / "site"


def run(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "fi_jax", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)


def test_the_wheel_has_configs_bundles_and_types(installed):
    for path in (
        "configs/nano.py",
        "configs/7b.py",
        "bundled/nano/weights.safetensors",
        "py.typed",
        "demo/examples/hat.webp",
    ):
        assert (installed / "fi_jax" / path).is_file(), path


def test_ask_needs_no_extra_and_no_checkout(installed, tmp_path):
    Image.fromarray(data.astronaut()).save(tmp_path / "portrait.png")
    result = run(installed, tmp_path, "ask", "portrait.png", "Is this person smiling?", "--head")
    assert result.returncode == 0, result.stderr
    assert "%" in result.stdout


@pytest.mark.slow
def test_train_evaluate_and_plan_need_no_extra(installed, tmp_path):
    faces = ("--data.sources.0.root", "count=12", "--data.batch-size", "2")
    result = run(installed, tmp_path, "train", "tiny", *faces, "--train.steps", "1", "--train.warmup-steps", "0")
    assert result.returncode == 0, result.stderr
    result = run(installed, tmp_path, "plan", "7b", "--mesh", "data=1,fsdp=1,tensor=1", "--no-compile")
    assert result.returncode == 0, result.stderr


def test_a_missing_extra_is_one_line(installed, tmp_path):
    Image.fromarray(data.astronaut()).save(tmp_path / "portrait.png")
    result = run(installed, tmp_path, "ask", "portrait.png", "--all", "--head", "--figure", "card.png")
    assert result.returncode == 2
    assert "pip install 'fi_jax[report]'" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.slow
def test_own_faces_from_the_wheel_to_a_report(installed, tmp_path):
    """Python alone: a table with two labels that nano does not know, fine-tuned, predicted, evaluated, reported."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, str(ROOT / "benchmarks" / "own_table.py"), "own", "--count", "100", "--steps", "1"]
    result = subprocess.run(
        [*command, "--head-only"],
        cwd=tmp_path,
        env=environment | {"WITH_EXTRAS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "own" / "summary.json").read_text())
    assert summary["values"]["head mine attribute mean_accuracy"] > 0.8
    assert summary["values"]["head mine choice:backdrop accuracy"] > 0.8
    assert summary["built_in_answers"]["head"]["answers_changed"] < 0.1
    assert (tmp_path / "own" / "runs" / "mine" / "model" / "weights.safetensors").is_file()
    assert (tmp_path / "own" / "report" / "index.html").is_file()
