"""What find_modules records of a matrix."""

import math
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from made_up_graphs import BEST_KNOWN, GRAPHS, REAL, REFERENCE, one_hot, q_of, random_graph, sparse_graph

import modularity
from modularity import (
    MODULES_VERSION,
    SEARCHES,
    Search,
    find_clusters,
    find_modules,
    monte_carlo_modularity,
    refine_modularity,
    soft_num_clusters,
)
from numerics import jit, searches

KEYS = {
    *("adj", "clusters", "score", "num_clusters", "mc_score", "mc_clusters", "mc_scores", "mc_temperatures"),
    *("mc_entropies", "null_mean", "null_std", "z", "p", "null_problem", "null_effort_score"),
    *("search", "seed", "steps", "target_entropy", "null_draws", "version"),
}
ROTATION = {"rotation_null_mean", "rotation_null_std", "rotation_z", "rotation_p"}


def test_modules_hold_what_they_say_and_load_as_plain_data(tmp_path):
    diagonal = torch.diag(torch.arange(64.0))
    A = REAL["forward_cov/1"]
    modules = find_modules(A + diagonal, null_draws=3)
    torch.save(modules, tmp_path / "modules.pt")
    modules = torch.load(tmp_path / "modules.pt", weights_only=True)
    assert set(modules) == KEYS and modules["version"] == MODULES_VERSION and modules["null_draws"] == 3
    assert torch.equal(modules["adj"], A)
    P = modules["clusters"]
    assert P.any(0).all() and torch.equal(P.any(1), A.sum(1) > 1e-9 * A.sum(1).max())
    assert abs(modules["score"] - q_of(A, P)) < 1e-12
    assert abs(modules["mc_score"] - q_of(A, modules["mc_clusters"])) < 1e-12
    assert modules["mc_score"] <= modules["null_effort_score"] + 1e-12 <= modules["score"] + 2e-12
    assert modules["num_clusters"] == soft_num_clusters(P).item()
    made = {key: modules[key] for key in ("search", "seed", "steps", "target_entropy", "null_draws")}
    assert made == {"search": "refined", "seed": 0, "steps": 5000, "target_entropy": 0.15, "null_draws": 3}
    assert abs(modules["z"] - (modules["null_effort_score"] - modules["null_mean"]) / modules["null_std"]) < 1e-9
    for key in ("mc_scores", "mc_temperatures", "mc_entropies"):
        assert modules[key].shape == (5000,) and modules[key].dtype == torch.float32


def test_z_is_that_of_the_score_of_equal_effort():
    A = sparse_graph(64, 5)  # on which the search is not done after the effort that each draw gets
    modules = find_modules(A + torch.eye(64), sign=torch.ones(64, 64), null_draws=6)
    score = modules["null_effort_score"]
    assert modules["score"] - score > 1e-4
    for prefix in ("", "rotation_"):
        mean, std = modules[f"{prefix}null_mean"], modules[f"{prefix}null_std"]
        assert abs(modules[f"{prefix}z"] - (score - mean) / std) < 1e-9
        assert abs(modules[f"{prefix}z"] - (modules["score"] - mean) / std) > 1e-3


def test_the_search_for_the_score_is_deep_enough_for_the_best_known_q():
    missed = 0
    for graph in (5, 7):
        A = sparse_graph(64, graph)
        best = max(q_of(A, refine_modularity(A, rounds=3000, seed=seed)) for seed in range(3))
        for seed in range(4):
            modules = find_modules(A, seed=seed, null_draws=0)
            assert modules["score"] >= best - 1e-9
            missed += modules["null_effort_score"] < best - 1e-9
    assert missed  # or this would say nothing


@pytest.mark.parametrize("key", [*REAL, *GRAPHS])
def test_the_best_known_q_is_found(key):
    A = (REAL | GRAPHS)[key]
    best = BEST_KNOWN[f"checkpoints/evaluated/best.ckpt {key}" if key in REAL else key]
    assert abs(find_modules(A, null_draws=0)["score"] - best) < 1e-9


def test_draws_get_the_effort_of_the_score_that_they_are_held_against(monkeypatch):
    rounds, steps = [], []
    refinement, chain = searches.iterated_local_search, searches.run_chain
    monkeypatch.setattr(searches, "iterated_local_search", lambda *a: rounds.append(a[3]) or refinement(*a))
    monkeypatch.setattr(searches, "run_chain", lambda *a: steps.append(a[3:5]) or chain(*a))
    find_modules(
        random_graph(0, 20) + torch.eye(20), sign=torch.ones(20, 20), steps=70, target_entropy=0.3, null_draws=2
    )
    assert rounds == [250, 1000, *[250] * 4]
    assert steps == [(70, 0.3)] * 6


def test_draws_of_either_null_differ_from_each_other_and_between_seeds():
    A = random_graph(1, 24, 3) + torch.eye(24)
    first, again, other = (find_modules(A, sign=A.sign(), seed=seed, null_draws=4, steps=50) for seed in (0, 0, 1))
    for key in ("null_mean", "rotation_null_mean"):
        assert first[key] == again[key] != other[key]
    assert first["null_std"] > 1e-6 and first["rotation_null_std"] > 1e-6


def test_options_are_seen_in_the_result():
    A = random_graph(0, 20)
    modules = find_modules(A, seed=np.int64(3), steps=np.int32(400), target_entropy=0.5, null_draws=2)
    assert {key: type(modules[key]) for key in ("seed", "steps", "null_draws")} == dict.fromkeys(
        ("seed", "steps", "null_draws"), int
    )
    assert len(modules["mc_scores"]) == 400 and abs(modules["mc_entropies"].median() - 0.5) < 0.01
    chain, scores, *_ = monte_carlo_modularity(A, steps=400, target_entropy=0.5, seed=3)
    assert torch.equal(modules["mc_clusters"], chain) and torch.equal(modules["mc_scores"], scores.float())
    fresh = [find_modules(A, seed=None, steps=10, null_draws=0)["seed"] for _ in range(2)]
    assert fresh[0] != fresh[1]
    again = find_modules(A, seed=fresh[0], steps=10, null_draws=0)
    assert torch.equal(again["mc_scores"], find_modules(A, seed=fresh[0], steps=10, null_draws=0)["mc_scores"])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("seed", value) for value in (-1, 1.0, "0", True)),
        *(("steps", value) for value in (-1, 2.5, None)),
        *(("null_draws", value) for value in (-1, 1.5)),
        *(("target_entropy", value) for value in (0, -0.1, math.nan, math.inf)),
        ("search", "louvain"),
    ],
)
def test_bad_options_are_refused_by_name(option, value):
    with pytest.raises(ValueError, match=option):
        find_modules(torch.ones(3, 3), **{option: value})


@pytest.mark.parametrize("search", SEARCHES)
def test_clusters_and_draws_are_those_of_the_search_asked_for(search):
    A = sparse_graph(64, 7)
    modules = find_modules(A, search=search, seed=2, null_draws=3)
    assert torch.equal(modules["clusters"], find_clusters(A, search, seed=2)) and modules["search"] == search
    assert modules["mc_score"] == find_modules(A, seed=2, null_draws=0)["mc_score"]
    refined = find_modules(A, seed=2, null_draws=3)
    if search != "refined":
        assert modules["score"] == modules["null_effort_score"] < refined["score"]
        assert modules["null_mean"] < refined["null_mean"]


def test_a_search_put_into_the_table_can_be_asked_for(monkeypatch):
    seen = []

    def pairs(problem, seed, steps, target_entropy):
        seen.append((seed, steps, target_entropy))
        return np.arange(len(problem.B)) // 2

    monkeypatch.setitem(SEARCHES, "pairs", Search("two by two", pairs))
    A = random_graph(0, 9)
    A[4] = A[:, 4] = 0  # a dead unit
    expected = one_hot([0, 0, 1, 1, -1, 2, 2, 3, 3])
    assert torch.equal(find_clusters(A, "pairs").double(), expected)
    modules = find_modules(A, search="pairs", seed=5, steps=7, null_draws=2)
    assert torch.equal(modules["clusters"].double(), expected) and abs(modules["score"] - q_of(A, expected)) < 1e-12
    assert seen[1] == (5, 7, 0.15) and len({seed for seed, *_ in seen}) == 4  # each draw has its own


@pytest.mark.parametrize("factor", [1e-300, 1e-44, 1e-20, 1.0, 1e39, 1e300])
def test_the_scale_of_a_matrix_does_not_matter(factor):
    A, diagonal = random_graph(2, 16, 3), torch.diag(torch.arange(1.0, 17))
    options = {"sign": torch.ones(16, 16), "null_draws": 2, "steps": 100}
    expected, modules = (find_modules((A + diagonal) * x, **options) for x in (1, factor))
    assert torch.equal(modules["clusters"], expected["clusters"])
    for key in ("score", "mc_score", "null_mean", "z", "rotation_null_mean", "rotation_z"):
        assert abs(modules[key] - expected[key]) < 1e-8 * max(1, abs(expected[key]))
    stored = modules["adj"]
    assert stored.dtype == (torch.float32 if 1e-30 < factor < 1e30 else torch.float64)
    assert ((stored.double() - A * factor).abs() <= 1e-7 * A * factor).all()
    assert abs(q_of(stored, modules["clusters"]) - modules["score"]) < 1e-6


def test_seeds_give_the_same_modules_in_any_process_with_any_number_of_threads(tmp_path):
    def digest(threads):
        code = f"""
import sys; sys.path.insert(0, {str(Path(modularity.__file__).parent)!r})
import hashlib, numpy, torch
torch.set_num_threads({threads})
from modularity import find_modules
A = torch.from_numpy(numpy.load({str(REFERENCE / "assoc_evaluated.npz")!r})["forward_jac/0"])
modules = find_modules(A + torch.eye(64) * A.max(), sign=torch.ones(64, 64, dtype=torch.int8), seed=0, null_draws=2)
tensors = [value.numpy().tobytes() for value in modules.values() if isinstance(value, torch.Tensor)]
print(hashlib.sha256(b"".join(tensors)).hexdigest(), [v for v in modules.values() if isinstance(v, float)])
"""
        environment = {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads), "PATH": ""}
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        return run.stdout

    assert digest(1) == digest(2)


def test_another_seed_gives_another_chain():
    A = REAL["forward_cov/0"]
    histories = [monte_carlo_modularity(A, steps=200, seed=seed)[1] for seed in (0, 0, 1)]
    assert torch.equal(histories[0], histories[1]) and not torch.equal(histories[0], histories[2])
    unseeded = [monte_carlo_modularity(A, steps=200)[1] for _ in range(2)]
    assert not torch.equal(*unseeded)


@pytest.mark.parametrize(
    "A",
    [torch.zeros(4, 4), torch.full((4, 4), math.nan), torch.ones(1, 1), torch.eye(3), torch.full((2, 2), math.inf)],
)
def test_a_matrix_without_modules_is_recorded_as_such(A):
    modules = find_modules(A, sign=torch.ones(A.shape, dtype=torch.int8))
    assert set(modules) == KEYS | ROTATION
    assert modules["clusters"].shape == (len(A), 0) and modules["num_clusters"] == 0
    assert modules["version"] == MODULES_VERSION
    assert all(math.isnan(modules[key]) for key in ("score", "mc_score", "z", "p", "rotation_z"))


def test_modules_of_an_invalid_matrix_are_refused():
    with pytest.raises(ValueError, match="negative"):
        find_modules(torch.tensor([[0, -1.0], [-1, 0]]))
    with pytest.raises(ValueError, match="not symmetric"):
        find_modules(torch.tensor([[0, 1.0], [2, 0]]))
    with pytest.raises(ValueError, match="not square"):
        find_modules(torch.ones(2, 3))
    with pytest.raises(ValueError, match="empty"):
        find_modules(torch.ones(0, 0))
    with pytest.raises(ValueError, match="signs"):
        find_modules(torch.ones(2, 2), sign=torch.ones(3, 3))


def test_two_units_have_one_cluster_and_a_null_that_does_not_vary():
    modules = find_modules(torch.ones(2, 2), null_draws=3)
    assert modules["score"] == 0 and modules["num_clusters"] == 1 and modules["p"] == 1 and math.isnan(modules["z"])


def test_without_a_place_to_keep_it_the_compiled_code_is_made_anew(monkeypatch):
    plain = numba.njit

    def njit(*args, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return plain(*args, **options)

    monkeypatch.setattr(numba, "njit", njit)
    assert jit.jit(lambda x: x + 1)(1) == 2
