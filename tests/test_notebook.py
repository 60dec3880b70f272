"""The notebook runs from top to bottom on small tables, and what is committed is what such a run leaves."""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys

import made_up
import pandas as pd
import pytest

from report import (
    agreement,
    agreement_figures,
    effect_figures,
    experiments,
    findings,
    lesion_figures,
    matrix_figures,
    module_figures,
    style,
    training_figures,
)
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


FIGURES = agreement_figures, effect_figures, lesion_figures, matrix_figures, module_figures, training_figures
CALLS = {  # what each file shows
    "accuracy": "accuracy_vs_regularization(models)",
    "failures": "failures_vs_regularization(models)",
    "norms": "norms_vs_regularization(models)",
    "matrices": "sorted_matrices(weakest)",
    "orders": "matrices_in_each_order(weakest)",
    "null": "null_distributions(all)",
    "q": "modules_vs_regularization(all, score)",
    "clusters": "modules_vs_regularization(all, num_clusters)",
    "z": "modules_vs_regularization(all, z)",
    "z-rotation": "modules_vs_regularization(all, rotation_z)",
    "q-depth": "modules_vs_depth(all, score)",
    "clusters-depth": "modules_vs_depth(all, num_clusters)",
    "dropout": "matrices_vs_dropout(examples, 0)",
    "effects": "effects(effects)",
    "equal-accuracy": "modularity_at_accuracy(all, score)",
    "agreement-matrices": "alignment_matrices({untrained: untrained, trained: trained}, element_sim, True)",
    "agreement-matrices-regularizers": (
        "alignment_matrices({dropout: drop, L1 weight: l1, L2 weight: l2}, element_sim, False)"
    ),
    "agreement-matrices-layers": "alignment_matrices({layer 0: layer 0, layer 1: layer 1}, element_sim, False)",
    "agreement": "agreement(agreement, original agreement)",
    "measures": f"measure_correlations(trained, {' '.join(agreement_figures.MEASURES)})",
    "specialization-families": "family_differences(all)",
    "accuracy-modularity": "modularity_vs_accuracy(all, correlations)",
    "original": (
        "alignment_matrices({this experiment: without, original program, MNIST: original align}, element_sim, False)"
    ),
}
for name in ("drop", "l1", "l2"):
    CALLS[f"q-layers-{name}"] = f"modules_by_layer(all, {name}, score, original modules)"
    CALLS[f"clusters-layers-{name}"] = f"modules_by_layer(all, {name}, num_clusters, original modules)"
    CALLS[f"specialization-layers-{name}"] = f"specialization_by_layer(all, {name}, mean)"
for kind in ("mean", "zero"):
    CALLS[f"lesions-{kind}"] = f"effects_side_by_side(examples, forward_jac backward_jac, {kind})"
    CALLS[f"specialization-{kind}"] = f"conditions(all, {kind})"
    CALLS[f"specialization-regularizers-{kind}"] = f"specialization_vs_regularization(all, {kind})"


def test_each_figure_of_the_notebook_shows_what_its_name_says(committed, tmp_path, monkeypatch):
    """Its cells run with figures that say with what they were called, defaults included."""
    found, original, kept = made_up.results(), made_up.results("demo", layers=1, seed=1), {}
    usable = findings.usable(found.align, found.models)
    trained = usable[usable["part"] != "dummy"]
    known = {
        **{"all": found, "models": found.models, "examples": found.examples},
        "weakest": found.examples[(found.examples["part"] == "l2") & (found.examples["layer"] == 0)],
        **{"trained": trained, "untrained": usable[usable["part"] == "dummy"]},
        **{name: trained[trained["part"] == name] for name in ("drop", "l1", "l2")},
        **{f"layer {layer}": trained[trained["layer"] == layer] for layer in (0, 1)},
        "without": found.align[(found.align["part"] == "l2") & (found.align["l2"] == 1e-5)].assign(strength=0.0),
        "effects": findings.regularizer_effects(found, per_layer=False),
        "correlations": findings.accuracy_correlations(found),
        **{"agreement": agreement.agreement(found), "original agreement": agreement.agreement(original)},
        **{"original modules": original.modules, "original align": original.align},
    }

    def described(x):
        if isinstance(x, dict):
            return f"{{{', '.join(f'{title}: {described(table)}' for title, table in x.items())}}}"
        if isinstance(x, pd.DataFrame):
            same = [name for name, table in known.items() if name != "all" and same_rows(table, x)]
            return same[0] if len(same) == 1 else f"an unknown table {same}"
        return "all" if x is found else " ".join(x) if isinstance(x, tuple) else str(x)

    def recorder(function):
        def record(*args, **kwargs):
            bound = inspect.signature(function).bind(*args, **kwargs)
            bound.apply_defaults()
            return f"{function.__name__}({', '.join(map(described, bound.args))})"

        return record

    for module in FIGURES:
        for name, function in vars(module).copy().items():
            if inspect.isfunction(function) and hasattr(function, "__wrapped__"):
                monkeypatch.setattr(module, name, recorder(function))
    monkeypatch.setattr(experiments, "open_results", lambda name: found)
    monkeypatch.setattr(experiments, "original_program", lambda: original)
    monkeypatch.setattr(style, "keep", lambda drawn, name, folder: kept.update({name: drawn}))
    monkeypatch.setattr("IPython.display.display", lambda _: None)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.chdir(tmp_path)
    cells = ["".join(cell["source"]) for cell in code_cells(committed)]
    ready = next(i for i, cell in enumerate(cells) if "keep = partial" in cell)
    drawing = [cell for cell in cells[ready + 1 :] if "keep(" in cell or "accuracy = " in cell]
    exec("\n".join([*cells[: ready + 1], *drawing]), {})
    assert kept == CALLS


def same_rows(a, b):
    """Whether two tables have the same columns, and the same values where these are no arrays."""
    if list(a) != list(b) or len(a) != len(b):
        return False
    return all(a[name].astype(str).tolist() == b[name].astype(str).tolist() for name in a if name not in ARRAYS)


ARRAYS = ("adj", "clusters", "sizes", "classes", "mean_effects", "zero_effects")


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


def test_the_committed_notebook_is_small():
    assert (made_up.REPOSITORY / NAME).stat().st_size < 2_500_000


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
