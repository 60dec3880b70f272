"""The notebook runs from top to bottom on small tables, and what is committed is what such a run leaves."""

import json
import os
import re
import shutil
import subprocess
import sys

import made_up
import pytest

from report import experiments
from study.cli import UserError

NAME = "notebooks/analysis_sandbox.ipynb"


@pytest.fixture
def committed():
    return json.loads((made_up.REPOSITORY / NAME).read_text())


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_runs_on_a_small_results_table(tmp_path):
    (tmp_path / "notebooks").mkdir()
    shutil.copy(made_up.REPOSITORY / NAME, tmp_path / NAME)
    experiments.save_results(made_up.results("demo", layers=1), tmp_path / "results", "mnist-wide")
    for path in (made_up.REPOSITORY / "results").glob("original-program-*"):
        shutil.copy(path, tmp_path / "results")
    environment = os.environ | {"EXPERIMENT": "mnist-wide", "PYTHONPATH": str(made_up.REPOSITORY)}
    words = [sys.executable, "-m", "jupyter", "nbconvert", "--execute", "--to", "notebook", "--output", "done", NAME]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    executed = json.loads((tmp_path / "notebooks" / "done.ipynb").read_text())
    assert "mnist-wide: " in json.dumps(executed) and not has_errors(executed)
    names = {path.stem for path in (tmp_path / "figures" / "mnist-wide").glob("*.svg")}
    named = re.findall(r'keep\(.*, "([\w-]+)"\)', "\n".join("".join(cell["source"]) for cell in code_cells(executed)))
    assert len(named) > 15 and set(named) | {"q-layers-drop", "clusters-layers-drop"} <= names


def test_a_mistyped_experiment_is_one_line_in_the_notebook(committed, tmp_path, monkeypatch):
    opening = [cell for cell in code_cells(committed) if "open_results" in "".join(cell["source"])]
    assert len(opening) == 1  # nothing is drawn before
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        experiments.open_results("mnist-bass")
    (line,) = error.value._render_traceback_()  # what IPython shows
    assert line.startswith("UserError: unknown experiment 'mnist-bass'") and "\n" not in line


def has_errors(notebook):
    return any(
        output["output_type"] == "error" or output.get("name") == "stderr"
        for cell in code_cells(notebook)
        for output in cell["outputs"]
    )


def test_the_committed_notebook_was_run_from_top_to_bottom(committed):
    counts = [cell["execution_count"] for cell in code_cells(committed)]
    run = [count for count in counts if count]  # a new cell need not wait for all outputs to be made again
    assert run == sorted(set(run)) and len(run) > 0.7 * len(counts)
    assert not has_errors(committed)
    assert (
        sum("image/png" in output.get("data", {}) for cell in code_cells(committed) for output in cell["outputs"]) > 20
    )


def test_the_committed_outputs_name_no_machine(committed):
    text = "\n".join(
        line
        for cell in code_cells(committed)
        for output in cell["outputs"]
        for line in json.dumps(
            {k: v for k, v in output.get("data", {}).items() if k != "image/png"} | {"text": output.get("text", "")}
        ).splitlines()
    )
    assert not re.search(r"/(home|root|work|tmp|Users)/", text)


def test_cells_are_thin(committed):
    assert max(len(cell["source"]) for cell in code_cells(committed)) <= 20
    assert all(len(line.rstrip("\n")) <= 120 for cell in code_cells(committed) for line in cell["source"])
