"""Other searches for Q, other nulls and single repetitions, on cases with known answers."""

import made_up
import numpy as np
import pytest
import scipy.stats
import torch
from test_analysis import write

from associations import METHODS
from comparison import element_similarity
from modularity import SEARCHES, find_clusters, girvan_newman
from report import agreement, experiments, findings, sensitivity
from report.text import with_interval
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


@pytest.mark.parametrize("search", SEARCHES)
def test_every_search_finds_planted_groups_and_leaves_dead_units_out(planted, search):
    adj = planted[1]["modules"]["forward_cov"][0]["adj"]
    for seed in range(3):
        clusters = find_clusters(adj, search, seed=seed)
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


@pytest.mark.parametrize("search", SEARCHES)
def test_two_seeds_of_the_same_search_are_compared(planted, search, monkeypatch):
    adj, asked = planted[1]["modules"]["forward_cov"][0]["adj"], []
    effective = np.exp(scipy.stats.entropy([6, 5, 5, 5]))
    clusterings = [torch.eye(k)[torch.arange(21) % k] for k in (4, 3)]

    def find(adj, search, seed):
        asked.append((search, seed))
        return clusterings[len(asked) - 1]

    monkeypatch.setattr(sensitivity, "find_clusters", find)
    modules, row = sensitivity.of_matrix(adj, search, "forward_cov", 0)
    assert [name for name, _ in asked] == [search] * 2 and asked[0][1] != asked[1][1]
    assert row["repeat"] == element_similarity(*clusterings) < 1
    assert torch.equal(modules["clusters"], clusterings[0])
    assert row["num_clusters"] == pytest.approx(effective, rel=1e-6)
    assert row["score"] == modules["score"] == girvan_newman(adj, clusterings[0]).item()


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
    few = grids.EXPERIMENTS["demo"]._replace(values={"l2": [1e-5], "drop": [0.6]}, untrained=2)
    monkeypatch.setitem(grids.EXPERIMENTS, "demo", few)
    for part in ("l2", "drop", "dummy"):
        for spec in grids.specs("demo", part):
            content = planted[1] | {"hyper_parameters": spec, "test_acc": 0.9}
            name = "dummy.ckpt" if part == "dummy" else "weights/best.ckpt"
            write(tmp_path / grids.save_dir("demo", part), spec, content, name)
    words = ["demo", "--compute", "--folder", "tables"]
    sensitivity.main(sensitivity.parser().parse_args(words))
    head, _, *lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert len(head) == 1 + len(SEARCHES) + len(sensitivity.NULLS) + 1
    cells = {line[0].lstrip("| "): [cell.strip(" |") for cell in line[1:]] for line in lines}
    assert cells["drop, forward_jac"][:3] == ["+0.000 [+0.000, +0.000]"] * 3
    assert cells["agreement across"][:3] == ["1.000 [1.000, 1.000]"] * 3
    assert cells["two seeds' agreement"][:3] == ["1.000"] * 3
    assert cells["pairs across, p < 0.05"][:3] == ["100%"] * 3
    assert len(experiments.load_results("tables", "demo-leiden").modules) == 6 * 16


# ---- the table ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Distinct results, and those of each search with values of their own, saved; {title: results}."""
    folder = tmp_path_factory.mktemp("searches")
    searches = {}
    for seed, search in enumerate(SEARCHES, 2):
        found = made_up.distinct(seed=seed)
        found.modules["repeat"] = np.random.default_rng(seed).uniform(size=len(found.modules))
        experiments.save_results(found, folder, f"mnist-wide-{search}")
        searches[SEARCHES[search].title] = found
    return made_up.distinct(), searches, folder


def test_titles_name_the_searches():
    assert {name: search.title for name, search in SEARCHES.items()} == {
        "refined": "chain, refined (default)",
        "chain": "plain chain",
        "leiden": "Leiden, one run",
    }


def test_every_cell_of_the_table_is_that_finding_seen_that_way(saved):
    found, searches, folder = saved
    rows = sensitivity.table("mnist-wide", found, folder).set_index("claim")
    assert list(rows.columns) == [
        *("chain, refined (default)", "plain chain", "Leiden, one run"),
        *("z against shuffled matrices", "z against rotated matrices", "single repetitions, lowest … highest"),
    ]
    ways = {title: (each, "score", "+.3f") for title, each in searches.items()}
    ways |= {
        f"z against {how} matrices": (found, z, "+.1f") for how, z in (("shuffled", "z"), ("rotated", "rotation_z"))
    }
    for title, (each, value, form) in ways.items():
        for _, row in findings.regularizer_effects(each, False, value).iterrows():
            expected = with_interval(row, "change", form)
            assert rows.loc[f"{row['regularizer']}, {row['assoc']}", title] == expected
    for title, each in searches.items():
        agreed = agreement.agreement(each).set_index(["condition", "group"])
        for group in agreement.GROUPS:
            row = agreed.loc["trained", group]
            assert rows.loc[f"agreement {group}", title] == with_interval(row, "element_sim", ".3f")
            assert rows.loc[f"agreement beyond chance {group}", title] == with_interval(row, "adjusted", ".3f")
        assert rows.loc["pairs across, p < 0.05", title] == f"{agreed.loc[('trained', 'across'), 'significant']:.0%}"
        usable = findings.usable(each.modules, each.models)
        repeat = usable.loc[usable["part"] != "dummy", "repeat"].mean()
        assert rows.loc["two seeds' agreement", title] == f"{repeat:.3f}"
    assert not rows.loc["agreement across", ["z against shuffled matrices", "z against rotated matrices"]].any()


def test_without_searches_the_table_has_the_experiments_own(saved, tmp_path):
    rows = sensitivity.table("mnist-wide", saved[0], tmp_path).set_index("claim")
    own = findings.regularizer_effects(saved[0], False).set_index(["regularizer", "assoc"]).loc["drop", "forward_jac"]
    assert rows.loc["drop, forward_jac", "chain, refined (default)"] == with_interval(own, "change", "+.3f")


def test_a_method_that_was_not_evaluated_is_left_out(saved, tmp_path):
    found = saved[0]
    kept = found._replace(
        modules=found.modules[found.modules["assoc"] != "backward_hess"],
        align=found.align[(found.align["assoc_a"] != "backward_hess") & (found.align["assoc_b"] != "backward_hess")],
    )
    claims = sensitivity.table("mnist-wide", kept, tmp_path)["claim"]
    assert "drop, backward_hess_norm" in set(claims) and "drop, backward_hess" not in set(claims)


def test_single_repetitions_range_from_the_lowest_to_the_highest():
    found = made_up.results(noise=0.0, runs=3)
    for run, extra in enumerate((0.0, 0.1, 0.04)):
        rows = (found.modules["run"] == run) & np.isclose(found.modules["drop"], 0.65)
        found.modules.loc[rows, "score"] += extra
        pairs = (found.align["run"] == run) & (found.align["part"] != "dummy")
        found.align.loc[pairs, "element_sim"] += extra
    ranges = sensitivity.repetitions(found)
    assert ranges["drop, forward_cov"] == "+0.130 … +0.230" and ranges["agreement across"] == "0.300 … 0.400"
