"""Other searches for Q, other nulls and single repetitions, on cases with known answers."""

import made_up
import numpy as np
import pytest
import torch
from test_analysis import write

from associations import METHODS, UPSTREAM
from modularity import girvan_newman
from report import experiments, sensitivity
from study import grids
from study.cli import UserError


@pytest.fixture
def planted():
    """An evaluated checkpoint whose every matrix has the same four groups of five units, and a unit without weight."""
    spec = grids.specs("demo", "drop")[0]
    content = made_up.evaluated(spec)
    same = torch.arange(21)[:, None] % 4 == torch.arange(21) % 4
    for modules in content["modules"].values():
        for module in modules:
            adj = torch.where(same, 1.0, 0.1).fill_diagonal_(0)
            adj[20] = adj[:, 20] = torch.where(adj[20] > 0, 1e-17, 0)
            module["adj"] = adj
    return spec, content


@pytest.mark.parametrize("search", sensitivity.SEARCHES)
def test_every_search_finds_planted_groups_and_leaves_dead_units_out(planted, search):
    adj = planted[1]["modules"]["forward_cov"][0]["adj"]
    for seed in range(3):
        clusters = sensitivity.SEARCHES[search](adj, seed)
        assert not clusters[20].any()
        live = clusters[:20]
        assert (live.sum(1) == 1).all() and live.shape[1] == 4
        assert torch.equal(live @ live.T, (torch.arange(20)[:, None] % 4 == torch.arange(20) % 4).float())


def test_a_network_gives_a_row_for_each_matrix_and_each_pair_by_each_search(planted, tmp_path):
    spec, content = planted
    content["modules"]["backward_hess"][1]["adj"] *= 0
    found = sensitivity.of_network({"part": "drop"} | spec, write(tmp_path, spec, content))
    adj, groups = content["modules"]["forward_cov"][0]["adj"], torch.eye(4)[torch.arange(20) % 4]
    expected = girvan_newman(adj, torch.cat([groups, torch.zeros(1, 4)])).item()
    for modules, align in found.values():
        assert len(modules) == 16 - 1 and len(align) == 28 + 21  # one matrix has no weight
        assert all(row["score"] == pytest.approx(expected, abs=1e-12) and row["repeat"] == 1 for row in modules)
        assert all(row["element_sim"] == row["score"] == 1 and row["p"] < 0.001 for row in align)
        assert {row["assoc"] for row in modules} == set(METHODS) and modules[0]["part"] == "drop"


def test_what_was_not_evaluated_is_left_out(planted, tmp_path, monkeypatch):
    spec, content = planted
    del content["modules"]["forward_cov"]
    assert len(sensitivity.of_network({}, write(tmp_path, spec, content))["chain"][0]) == 14
    del content["modules"]
    assert sensitivity.of_network({}, write(tmp_path, spec, content))["chain"] == ([], [])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"run ./train.sh demo and ./eval.sh first"):
        sensitivity.compute("demo", made_up.results("demo"), tmp_path)


def test_computing_saves_tables_that_the_table_of_claims_reads(planted, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(made_up.REPOSITORY))
    for part in ("l2", "drop", "dummy"):
        for spec in grids.specs("demo", part):
            content = planted[1] | {"hyper_parameters": spec, "test_acc": 0.9}
            name = "dummy.ckpt" if part == "dummy" else "weights/best.ckpt"
            write(tmp_path / grids.save_dir("demo", part), spec, content, name)
    words = ["demo", "--compute", "--folder", "tables"]
    sensitivity.main(sensitivity.parser().parse_args(words))
    head, _, *lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert len(head) == 1 + len(sensitivity.SEARCHES) + len(sensitivity.NULLS) + 1
    cells = {line[0].lstrip("| "): [cell.strip(" |") for cell in line[1:]] for line in lines}
    assert cells["drop, forward_jac"][:3] == ["+0.000 [+0.000, +0.000]"] * 3
    assert cells["agreement across"][:3] == ["1.000 [1.000, 1.000]"] * 3
    assert cells["two seeds' agreement"][:3] == ["1.000"] * 3
    assert cells["pairs across, p < 0.05"][:3] == ["100%"] * 3
    assert len(experiments.load_results("tables", "demo-leiden").modules) == 20 * 16


def test_the_claims_are_those_of_the_findings():
    found = made_up.results(noise=0.0)
    claims = sensitivity.claims(found)
    for method in METHODS:
        value, low, high = claims[f"drop, {method}"]
        assert low <= value <= high and value == pytest.approx(0.13 if method in UPSTREAM else 0, abs=1e-12)
    assert [claims[f"agreement {group}"][0] for group in ("within upstream", "within downstream", "across")] == (
        pytest.approx([0.6, 0.5, 0.3])
    )


def test_single_repetitions_range_from_the_lowest_to_the_highest():
    found = made_up.results(noise=0.0, runs=3)
    for run, extra in enumerate((0.0, 0.1, 0.04)):
        rows = (found.modules["run"] == run) & np.isclose(found.modules["drop"], 0.65)
        found.modules.loc[rows, "score"] += extra
    assert sensitivity.repetitions(found)["drop, forward_cov"] == "+0.130 … +0.230"
