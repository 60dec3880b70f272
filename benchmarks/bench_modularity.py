"""How good the clusterings are, what their modularity means, and what all of it costs.

    python -m benchmarks.bench_modularity            # about 20 minutes on one core
    python -m benchmarks.bench_modularity --quick    # about 2 minutes: fewer matrices, runs and units

Prints the quality of the searches on the reference matrices and on generated ones, against Leiden (leidenalg), Louvain
(igraph) and proven optima; z and p of Q on the reference checkpoint and where the truth is known; the cost beside plain
recomputation; and how cost and quality grow with the number of units. Seconds are process CPU seconds on one thread,
after compilation. Reference matrices: tests/reference.
"""

import argparse
import json
import multiprocessing
import platform
import random
import resource
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from modularity import (
    DEFAULT_NULL_DRAWS,
    SEARCHES,
    find_clusters,
    find_modules,
    girvan_newman,
    monte_carlo_modularity,
    refine_modularity,
    spectral_modularity,
)
from numerics.leiden import graph_of, leiden_labels
from numerics.searches import BRIEF_ROUNDS

REFERENCE = Path(__file__).parent.parent / "tests" / "reference"
ROUNDING = 1e-9


def reference_matrices():
    """Best known Q and matrix of the 16 real matrices and of the 20 graphs, by name."""
    best = json.loads((REFERENCE / "best_known_q.json").read_text())
    real = np.load(REFERENCE / "assoc_evaluated.npz")
    graphs = np.load(REFERENCE / "modularity.npz")
    names = [f"{i:02d}_{name}" for i, name in enumerate(graphs["names"])]
    return (
        {key: (best[f"checkpoints/evaluated/best.ckpt {key}"], torch.from_numpy(real[key])) for key in real},
        {name: (best[name], torch.from_numpy(graphs[f"{name[:2]}__adj"])) for name in names},
    )


def cpu(function, repeats=1):
    """CPU seconds that one call takes, after one to warm up, and its result."""
    result = function()
    start = time.process_time()
    for _ in range(repeats):
        function()
    return (time.process_time() - start) / repeats, result


def table(title, head, rows):
    print(f"\n{title}\n")
    rows = [head, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    for i, row in enumerate(rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), flush=True)
        if i == 0:
            print("  ".join("-" * width for width in widths))


# ---- other programs: imported late, as comparison.py is, so that they do not count as memory of a search ------------


def igraph_leiden(A, seed):
    random.seed(seed)
    found = graph_of(A.numpy()).community_leiden(objective_function="modularity", weights="weight", n_iterations=-1)
    return found.membership


def louvain(A, seed):
    random.seed(seed)
    graph = graph_of(A.numpy())
    graph = graph.permute_vertices(order := random.sample(range(graph.vcount()), graph.vcount()))
    return np.array(graph.community_multilevel(weights="weight").membership)[np.argsort(order)]


# ---- quality --------------------------------------------------------------------------------------------------------


def quality(matrices, title, runs):
    """How often single runs, and the best of them, reach the best known Q, and how alike the runs' clusters are."""

    from comparison import element_similarity

    methods = {"spectral": (1, lambda A, seed: spectral_modularity(A))}
    for name, search in SEARCHES.items():
        count = 5 if search.further else runs
        methods[search.title] = count, lambda A, seed, name=name: find_clusters(A, name, seed=seed)
    methods["Louvain"] = runs, louvain
    rows = []
    for name, (count, method) in methods.items():
        reached, best_reached, shortfall, alike = [], [], [], []
        for best, A in matrices.values():
            found = [method(A, seed) for seed in range(count)]
            q = np.array([girvan_newman(A, P).item() for P in found])
            live = A.sum(1) > 1e-9 * A.sum(1).max()
            reached += list(q >= best - ROUNDING)
            best_reached.append(q.max() >= best - ROUNDING)
            shortfall.append((best - q.min()) / best)
            alike += [element_similarity(P[live], R[live]) for P, R in combinations(found[:5], 2)]
        rows.append([
            name, count, f"{np.mean(reached):.0%}", f"{sum(best_reached)}/{len(matrices)}", f"{max(shortfall):.1%}",
            f"{np.mean(alike):.3f}" if alike else "-", f"{min(alike):.3f}" if alike else "-",
        ])  # fmt: skip
    head = ["method", "runs", "runs at best", "matrices, best run", "worst shortfall", "similarity", "lowest"]
    table(f"{title}: reaching the best known Q", head, rows)


def generated(n, kind, seed):
    """A random matrix: noise, planted blocks, correlations through common factors, log-normal weights, sparse graph."""
    rng = np.random.default_rng((seed, n))
    if kind == "noise":
        A = np.abs(np.corrcoef(rng.normal(size=(n, 300))))
    elif kind == "factors":
        Z = rng.normal(size=(n, 5)) * (rng.random((n, 5)) < 0.4) @ rng.normal(size=(5, 400))
        A = np.abs(np.corrcoef(Z + 0.7 * rng.normal(size=(n, 400))))
    elif kind == "blocks":
        labels = rng.integers(0, rng.integers(2, 10), n)
        A = rng.random((n, n)) * ((labels[:, None] == labels) + rng.uniform(0.2, 1.2))
    elif kind == "log-normal":
        A = np.exp(1.5 * rng.normal(size=(n, n)))
    else:
        A = (rng.random((n, n)) < rng.uniform(1.5, 3) / n).astype(float)
    A = torch.from_numpy(A + A.T).fill_diagonal_(0)
    return A


def against_leiden(count, runs):
    """Generated matrices of 12–256 units: one refinement against the best of many Leiden runs."""
    kinds, sizes = ("noise", "factors", "blocks", "log-normal", "sparse"), (12, 20, 33, 48, 64, 90, 128, 160, 200, 256)
    results = {kind: [] for kind in kinds}
    for i in range(count):
        kind, n = kinds[i % 5], sizes[(i // 5) % 10]
        A = generated(n, kind, i)
        start = time.process_time()
        q = girvan_newman(A, refine_modularity(A, seed=0)).item()
        middle = time.process_time()
        rival = max(girvan_newman(A, leiden_labels(A.numpy(), seed)).item() for seed in range(runs))
        results[kind].append((q - rival, middle - start, time.process_time() - middle, n))
    rows = []
    for kind, values in results.items():
        d, ours, theirs, _ = np.array(values).T
        rows.append([kind, len(d), (d > ROUNDING).sum(), (abs(d) <= ROUNDING).sum(), (d < -ROUNDING).sum(),
                     f"{d.min():+.1e}", f"{d.max():+.1e}", f"{ours.sum():.1f}", f"{theirs.sum():.1f}"])  # fmt: skip
    head = ["kind", "matrices", "above", "equal", "below", "lowest", "highest difference", "s", f"s, {runs} Leiden"]
    table(f"one refinement against the best of {runs} Leiden runs, 12–256 units", head, rows)


def against_proof(count):
    """Generated matrices of up to 20 units: 5 seeds each against the optimum that integer programming proves."""
    from tests.made_up_graphs import proven_optimum

    rows = []
    for kind, n in [("blocks", 20), ("noise", 14), ("log-normal", 18), ("sparse", 20), ("factors", 16)][:count]:
        short = []
        for i in range(2):
            A = generated(n, kind, 1000 + i)
            A = A[A.any(1)][:, A.any(1)]
            optimum = proven_optimum(A)
            short += [optimum - girvan_newman(A, refine_modularity(A, seed=seed)).item() for seed in range(5)]
        rows.append([kind, n, 2, sum(s < ROUNDING for s in short), len(short)])
    table("runs at the proven optimum", ["kind", "units", "matrices", "runs at it", "runs"], rows)


# ---- significance ---------------------------------------------------------------------------------------------------


def significance(real, draws):
    rows = []
    for key, (_, A) in real.items():
        m = find_modules(A, null_draws=draws)
        values = [f"{m[k]:.4f}" for k in ("score", "null_mean", "null_std")]
        rows.append([key, *values, f"{m['z']:+.1f}", f"{m['p']:.3f}"])
    head = ["matrix", "Q", "null mean", "null std", "z", "p"]
    table(f"Q against {draws} strength-preserving draws, reference checkpoint", head, rows)


def known_truth(draws, repeats):
    """z where the truth is known: |correlation| of 64 units over 500 samples."""
    rows = []
    for name, factors, groups in (("independent", 0, 0), ("5 common factors", 5, 0), ("4 planted groups", 0, 4)):
        zs = []
        for seed in range(repeats):
            rng = np.random.default_rng(seed)
            weights = 0.7 * np.eye(4)[np.arange(64) % 4] if groups else rng.normal(size=(64, factors))
            Z = weights @ rng.normal(size=(weights.shape[1], 500)) + rng.normal(size=(64, 500))
            C = torch.from_numpy(np.corrcoef(Z))
            m = find_modules(C.abs(), sign=C.sign().to(torch.int8), null_draws=draws)
            zs.append((m["z"], m["rotation_z"]))
        for null, z in zip(("strengths", "rotation"), np.array(zs).T, strict=True):
            rows.append([name, null, f"{z.mean():+.1f}", f"{z.min():+.1f} … {z.max():+.1f}", repeats])
    table("z where the truth is known, 64 units", ["units are", "null", "mean z", "range", "matrices"], rows)


# ---- cost -----------------------------------------------------------------------------------------------------------


def plain_q(adj, clusters):
    e = clusters.T @ adj @ clusters / adj.sum()
    return torch.trace(e) - (e.sum(1) ** 2).sum()


def plain_chain(adj, steps, target=0.15):
    """The Monte Carlo chain with Q recomputed for every candidate and T found by bisection."""
    n, generator = len(adj), torch.Generator().manual_seed(0)
    P = torch.nn.functional.one_hot(spectral_modularity(adj).argmax(1), n).to(adj.dtype)
    for _ in range(steps):
        u = torch.randint(n, (1,), generator=generator).item()
        used = P.any(0).nonzero().flatten().tolist()
        alone = P[:, P[u].argmax()].sum() == 1
        homes = used if alone else [*used, (~P.any(0)).nonzero()[0].item()]
        scores = []
        for c in homes:
            P[u] = 0
            P[u, c] = 1
            scores.append(plain_q(adj, P))
        scores = torch.stack(scores)
        low, high = -14.0, 14.0  # ln T
        while high - low > 1e-3:
            p = torch.softmax(scores / np.exp((low + high) / 2), 0)
            entropy = torch.special.entr(p).sum()
            low, high = (low, (low + high) / 2) if entropy > target else ((low + high) / 2, high)
        P[u] = 0
        P[u, homes[torch.multinomial(p, 1, generator=generator).item()]] = 1


def plain_alignment(P1, P2):
    overlap, counts = 0.0, P1.T @ P2
    for _ in range(min(counts.shape)):
        i, j = np.unravel_index(counts.argmax().item(), counts.shape)
        overlap += counts[i, j].item()
        counts[i] = counts[:, j] = -1
    return overlap / min(P1.sum(), P2.sum()).item()


def plain_null(P1, P2, shuffles):
    return [plain_alignment(P1, P2[torch.randperm(len(P2))]) for _ in range(shuffles)]


def cost(real, quick):
    from comparison import align_modules, alignment_null

    A = real["backward_jac/0"][1]
    A = A[A.any(1)][:, A.any(1)]
    start = spectral_modularity(A)
    chain, _ = cpu(lambda: monte_carlo_modularity(A, start, seed=0), 20)
    overhead, _ = cpu(lambda: monte_carlo_modularity(A, start, steps=0, seed=0), 20)
    steps, shuffles = (20, 50) if quick else (200, 500)
    slow_chain = cpu(lambda: plain_chain(A.double(), steps))[0] * 5000 / steps
    a, b = (find_modules(real[key][1], null_draws=0)["clusters"] for key in ("backward_jac/0", "forward_cov/0"))
    null, _ = cpu(lambda: alignment_null(a, b, 5000), 20)
    slow_null = cpu(lambda: plain_null(a, b, shuffles))[0] * 5000 / shuffles
    wide_a, wide_b = (torch.nn.functional.pad(P, (0, 64 - P.shape[1])) for P in (a, b))
    wide_null = cpu(lambda: plain_null(wide_a, wide_b, shuffles))[0] * 5000 / shuffles
    spectral, _ = cpu(lambda: spectral_modularity(A), 20)
    refine, _ = cpu(lambda: refine_modularity(A, start, seed=0), 20)
    draws, _ = cpu(lambda: find_modules(A, null_draws=100))
    alone, _ = cpu(lambda: find_modules(A, null_draws=0), 5)
    table("cost of one matrix or pair, 64 units", ["", "ms", "plain, ms", "ratio"], [
        ["spectral", f"{spectral * 1e3:.2f}", "", ""],
        ["chain, 5,000 steps", f"{(chain - overhead) * 1e3:.2f}", f"{slow_chain * 1e3:.0f}",
         f"{slow_chain / (chain - overhead):.0f}"],
        ["refinement, 1,000 rounds", f"{refine * 1e3:.1f}", "", ""],
        ["alignment, 5,000 shuffles", f"{null * 1e3:.2f}", f"{slow_null * 1e3:.0f}", f"{slow_null / null:.0f}"],
        ["    plain on n × n clusters", "", f"{wide_null * 1e3:.0f}", f"{wide_null / null:.0f}"],
        [f"100 null draws ({BRIEF_ROUNDS} rounds each)", f"{(draws - alone) * 1e3:.0f}", "", ""],
    ])  # fmt: skip

    def everything(draws, sign):
        def modules(key):
            matrix = real[key][1] + torch.eye(64) * real[key][1].max()
            return find_modules(matrix, sign=torch.ones(64, 64, dtype=torch.int8) if sign else None, null_draws=draws)

        found = {key: modules(key) for key in real}
        for layer in "01":
            same = sorted(key for key in found if key.endswith(layer))
            for i, key in enumerate(same):
                for other in same[i:]:
                    align_modules(found[key], found[other])

    kinds = [("no null", 0, False), (f"{DEFAULT_NULL_DRAWS} draws", DEFAULT_NULL_DRAWS, False)]
    kinds.append((f"{DEFAULT_NULL_DRAWS} draws of each null", DEFAULT_NULL_DRAWS, True))
    rows = [[name, f"{cpu(lambda d=draws, s=sign: everything(d, s))[0]:.2f}"] for name, draws, sign in kinds]
    table("cost of one checkpoint: 16 matrices, 72 alignments with 5,000 shuffles", ["", "s"], rows)


# ---- growth ---------------------------------------------------------------------------------------------------------


def large_matrix(n, groups):
    """|correlation| of n units over 600 samples: independent, or in 8 groups and with 5 common factors."""
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(n, 600))
    if groups:
        Z += 0.35 * rng.normal(size=(8, 600))[np.arange(n) % 8]
        Z += 0.15 * rng.normal(size=(n, 5)) @ rng.normal(size=(5, 600))
    return torch.from_numpy(np.abs(np.corrcoef(Z)).astype(np.float32)).fill_diagonal_(0)


def one_search(n, groups, queue):
    """Seconds, Q, peak memory of this process, and the memory it had before the search."""
    torch.set_num_threads(1)
    find_modules(large_matrix(160, groups), null_draws=0)  # compiles
    A = large_matrix(n, groups)
    Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
    before = memory("VmRSS")
    start = time.process_time()
    modules = find_modules(A, null_draws=0)
    queue.put((time.process_time() - start, modules["mc_score"], modules["score"], memory("VmHWM"), before))


def memory(field):
    """MB, a field of /proc/self/status; the peak so far where there is none."""
    if not Path("/proc/self/status").exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 2**10 for line in lines if line.startswith(field))


def growth(sizes):
    rows, spawn = [], multiprocessing.get_context("spawn")
    for groups in (True, False):
        for n in sizes:
            queue = spawn.Queue()
            process = spawn.Process(target=one_search, args=(n, groups, queue))
            process.start()
            seconds, chain, q, peak, before = queue.get()
            process.join()
            A = large_matrix(n, groups)
            others = []
            for method in (igraph_leiden, lambda A, seed, n=n: leiden_labels(A.numpy(), seed, -1 if n < 4096 else 2)):
                start = time.process_time()
                others += [girvan_newman(A, method(A, 0)).item(), time.process_time() - start]
            rows.append(["8 groups" if groups else "noise", n, f"{seconds:.2f}", f"{peak:.0f} ({peak - before:.0f})",
                         f"{chain:.6f}", f"{q:.6f}", *(f"{x:.6f}" if i % 2 == 0 else f"{x:.1f}"
                                                       for i, x in enumerate(others))])  # fmt: skip
            print("   ", *rows[-1], flush=True)
    head = ["kind", "units", "s", "peak MB (of it, search)", "Q chain", "Q refined"]
    head += ["igraph Leiden", "s", "leidenalg", "s"]
    table("growth (spectral, chain and refinement; leidenalg: until stable, at 4096 two iterations)", head, rows)


def main(quick):
    torch.set_num_threads(1)
    print(platform.processor() or platform.machine(), "Python", platform.python_version(), "torch", torch.__version__)
    real, graphs = reference_matrices()
    cost(real, quick)
    quality(real, "16 matrices of the reference checkpoint", 5 if quick else 100)
    quality(graphs, "20 graphs", 5 if quick else 50)
    against_proof(2 if quick else 5)
    against_leiden(10 if quick else 100, 5 if quick else 50)
    significance(real, DEFAULT_NULL_DRAWS if quick else 100)
    known_truth(DEFAULT_NULL_DRAWS, 2 if quick else 10)
    growth((64, 256) if quick else (64, 256, 1024, 4096))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer matrices, runs and units")
    main(**vars(parser.parse_args()))
