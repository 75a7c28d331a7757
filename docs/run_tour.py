"""Executes docs/tour.ipynb from top to bottom and keeps its outputs, with the hash of the code that they belong to.

python docs/run_tour.py
"""

import hashlib
import os
import re
from pathlib import Path

import nbformat
from nbconvert.preprocessors import ExecutePreprocessor

NOTEBOOK = Path(__file__).parent / "tour.ipynb"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def code_hash(notebook: nbformat.NotebookNode) -> str:
    """Of all code cells, in order."""
    code = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()


def as_left(text: str) -> str:
    """What a terminal shows in the end: without colours, and without the progress bars that were wiped away."""
    lines: list[str] = []
    for line in text.split("\n"):
        if ups := line.count("\x1b[1A"):
            del lines[-ups:]
        lines.append(ESCAPES.sub("", line.rstrip("\r").split("\r")[-1]))
    return "\n".join(lines)


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Joins the pieces of every printed output; drops when each cell ran, and whose home it was."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        joined: list[nbformat.NotebookNode] = []
        for output in cell.get("outputs", ()):
            if joined and output.output_type == "stream" and output.get("name") == joined[-1].get("name"):
                joined[-1].text += output.text
            else:
                joined.append(output)
        for output in joined:
            if output.output_type == "stream":
                output.text = as_left(output.text).replace(str(Path.home()), "~")
        if cell.cell_type == "code":
            cell.outputs = joined


if __name__ == "__main__":
    # `!` forks a process that has threads, which Python warns of.
    os.environ["PYTHONWARNINGS"] = "ignore::RuntimeWarning"
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    ExecutePreprocessor(timeout=3600).preprocess(notebook, {"metadata": {"path": str(NOTEBOOK.parent)}})
    tidy(notebook)
    notebook.metadata["executed_code"] = code_hash(notebook)
    nbformat.write(notebook, NOTEBOOK)
