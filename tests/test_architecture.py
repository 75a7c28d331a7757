"""The floor plan of docs/architecture.md, read from the imports: who may know whom, how long a file is, what it says."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "fi_jax"
FILES = sorted(ROOT.rglob("*.py"))

# Modules at the top, beside the rooms: open to all. They import nothing of ours but each other.
OPEN = {"config", "config_model", "config_tree", "errors", "files", "tables", "trees", "progress"}

# Room → rooms that it may import.
ALLOWED: dict[str, set[str]] = {
    "labels": set(),
    "pictures": set(),
    "parallel": set(),
    "knowledge": {"labels"},
    "models": {"labels", "knowledge"},
    "prompting": {"labels", "knowledge", "models"},
    "weights": {"labels", "knowledge", "models", "prompting", "parallel"},
    "faces": {"labels", "pictures", "models", "weights"},
    "data": {"labels", "pictures", "knowledge", "faces"},
    "training": {"labels", "knowledge", "models", "prompting", "parallel", "weights", "faces", "data"},
    "inference": {"labels", "pictures", "knowledge", "models", "prompting", "parallel", "weights", "faces"},
    "evaluation": {"labels", "pictures", "knowledge", "prompting", "faces", "data", "inference"},
    # Trains and judges many models for one table.
    "experiments": {
        "labels",
        "pictures",
        "knowledge",
        "models",
        "prompting",
        "parallel",
        "weights",
        "faces",
        "data",
        "training",
        "inference",
        "evaluation",
    },
    "demo": {"labels", "pictures", "prompting", "faces", "inference", "evaluation"},
    "benchmarks": {"labels", "knowledge", "models", "prompting", "parallel", "weights", "training", "inference"},
    # `import fi_jax`: the Python door, and what is behind it.
    "": {"api", "experiments"},
    "api": {"labels", "pictures", "faces", "weights", "inference"},
    "__main__": {"cli"},
}


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_of(file) for file in FILES}


def resolve(name: str) -> str:
    """The module of ours behind `fi_jax.a.b.symbol`, without the leading `fi_jax`."""
    inner = name.removeprefix("fi_jax").lstrip(".")
    while inner and inner not in MODULES:
        inner = inner.rpartition(".")[0]
    return inner


def imported(body) -> set[str]:
    found = set()
    for node in body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fi_jax":
            found |= {resolve(f"{node.module}.{alias.name}") for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {resolve(alias.name) for alias in node.names if alias.name.split(".")[0] == "fi_jax"}
    return found - {""}


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def imports() -> list[tuple[str, str]]:
    """Every (module, module it imports), imports inside functions included."""
    return [(module_of(file), target) for file in FILES for target in sorted(imported(ast.walk(tree_of(file))))]


def room(module: str) -> str:
    return module.split(".")[0]


def test_rooms_know_only_the_rooms_below():
    strays = [
        f"{module} imports {target}"
        for module, target in imports()
        if room(module) not in (room(target), "cli") and room(target) not in OPEN | ALLOWED.get(room(module), set())
    ]
    assert not strays, "\n".join(strays)


def test_every_room_is_in_the_plan():
    rooms = {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()}
    assert rooms - {"cli"} <= set(ALLOWED)


def test_nobody_imports_the_command_line():
    outside = [
        module for module, target in imports() if room(target) == "cli" and room(module) not in ("cli", "__main__")
    ]
    assert not outside


def test_no_module_needs_itself():
    """No circle among imports at the top of modules."""
    edges = {module_of(file): imported(tree_of(file).body) - {module_of(file)} for file in FILES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " → ".join((*path, module))
        if module not in done:
            for target in edges.get(module, ()):
                visit(target, (*path, module))
            done.add(module)

    for module in edges:
        visit(module, ())


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_every_file_says_its_job_and_is_short(file):
    assert ast.get_docstring(tree_of(file)), "no docstring"
    assert len(file.read_text().splitlines()) <= 450
    assert file.stem not in ("utils", "helpers", "misc", "common")


def test_torch_is_never_needed():
    """torch and peft are extras: no import at the top but in the modules that are about torch."""
    needing = set()
    for file in FILES:
        for node in tree_of(file).body:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if {name.split(".")[0] for name in names} & {"torch", "peft", "transformers"}:
                needing.add(module_of(file))
    assert {module for module in needing if not module.startswith("weights.torch_")} == set()


def test_the_graph_of_rooms_is_checked_against_planted_faults():
    """The check itself sees an import wherever it stands."""
    planted = ast.parse("def f():\n    from fi_jax.training.step import forward\n    import fi_jax.cli.main\n")
    assert imported(ast.walk(planted)) == {"training.step", "cli.main"}
    assert imported(planted.body) == set()
