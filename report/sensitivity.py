"""Do an experiment's findings depend on the search for Q, on what Q is held against, or on single runs?

    python -m report.sensitivity EXPERIMENT             a table: the study's claims in rows, ways of looking in columns
    python -m report.sensitivity EXPERIMENT --compute   first clusters every matrix in the checkpoints again, twice
                                                        by each search, writing
                                                        results/searches/EXPERIMENT-SEARCH-*.parquet

The searches are the plain Monte Carlo chain (as the study's original program clustered), Leiden, and the chain refined
(as evaluation does). Computing takes about two CPU seconds a network.
"""

import itertools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from associations import METHODS
from comparison import align_modules, element_similarity
from modularity import SEARCHES, find_clusters, girvan_newman, soft_num_clusters
from report import experiments, findings
from report.agreement import GROUPS, agreement
from report.experiments import Results
from report.text import markdown, with_interval
from study import checkpoints, cli, grids
from study.evaluation import stream

AGREEMENT = ("score", "null_mean", "p", "element_sim", "element_sim_expected", "rmi_norm", "version")
FOLDER = Path("results/searches")
NULLS = {"z": "z against shuffled matrices", "rotation_z": "z against rotated matrices"}


def main(args):
    """Prints the table, computing what it needs first if asked to."""
    found = experiments.open_results(args.experiment)
    if args.compute:
        compute(args.experiment, found, args.folder)
    print(markdown(table(args.experiment, found, args.folder)))


# ---- clustering again -----------------------------------------------------------------------------------------------


def compute(name, found, folder):
    """Clusters every matrix of an experiment with each search, and saves the tables."""
    entries = itertools.chain.from_iterable(experiments.checkpoints(name, part) for part in grids.parts(name))
    paths = [(fields, path) for fields, path in entries if path.exists()]
    if not paths:
        raise cli.UserError(f"no {grids.save_dir(name, '*')} here: run ./train.sh {name} and ./eval.sh first")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cli.threads(), spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        tasks = pool.map(of_network, *zip(*paths, strict=True), chunksize=4)
        networks = list(tqdm(tasks, total=len(paths), desc="clustering again", disable=None))
    for search in SEARCHES:
        modules, align = (
            pd.DataFrame([row for network in networks for row in network[search][kind]]) for kind in (0, 1)
        )
        again = Results(found.models, modules, align, found.examples[:0])
        experiments.save_results(again, folder, f"{name}-{search}")


def of_network(fields, path):
    """{search: (rows about modules, rows about pairs)} of one network; `repeat` compares the clusters of two seeds.

    There are none of a network, or of a method, that was not evaluated.
    """
    stored = checkpoints.read(path, mmap=True).get("modules", {})
    tables = {}
    for search in SEARCHES:
        modules, align = [], []
        for layer in range(max(map(len, stored.values()), default=0)):
            matrices = {method: stored[method][layer]["adj"] for method in METHODS if method in stored}
            found = {method: of_matrix(adj, search, method, layer) for method, adj in matrices.items()}
            modules += [fields | {"assoc": m, "layer": layer, **row} for m, (_, row) in found.items() if row]
            for a, b in itertools.combinations(sorted(m for m in found if found[m][1]), 2):
                pair = align_modules(found[a][0], found[b][0], seed=stream(0, f"{a}:{b}", layer))
                pair["null_mean"] = pair["null"].mean().item()
                names = {"assoc_a": a, "assoc_b": b, "layer": layer}
                align.append(fields | names | {field: pair[field] for field in AGREEMENT})
        tables[search] = modules, align
    return tables


def of_matrix(adj, search, method, layer):
    """A matrix's modules as `align_modules` wants them, and its row of the table; None for one without weight."""
    if not adj.any() or not adj.isfinite().all():
        return None, None
    clusters, again = (find_clusters(adj, search, seed=stream(seed, method, layer)) for seed in (0, 1))
    score = girvan_newman(adj, clusters).item()
    row = {
        "score": score,
        "num_clusters": soft_num_clusters(clusters).item(),
        "repeat": element_similarity(clusters, again),
        "version": 1,
    }
    return {"adj": adj, "clusters": clusters, "score": score}, row


# ---- the claims, one a row ------------------------------------------------------------------------------------------


class Claim(NamedTuple):
    """A number that the study's findings rest on, with its 95% interval and how it is written."""

    value: float
    low: float
    high: float
    form: str

    def __str__(self):
        return with_interval({"x": self.value, "x_low": self.low, "x_high": self.high}, "x", self.form)


def table(name, found, folder=FOLDER):
    """The claims in rows, the ways of looking at them in columns: those of the searches where these were computed."""
    ways = {}
    for search, (title, *_) in SEARCHES.items():
        if (folder / f"{name}-{search}-modules.parquet").exists():
            again = experiments.load_results(folder, f"{name}-{search}")
            ways[title] = texts(claims(again)) | repeats(again)
    ways = ways or {SEARCHES["refined"].title: texts(claims(found))}
    ways |= {title: texts(effects(found, null, "+.1f")) for null, title in NULLS.items()}
    ways["single repetitions, lowest … highest"] = repetitions(found)
    return pd.DataFrame(ways).fillna("").rename_axis("claim").reset_index()


def claims(found):
    """{name: Claim}: the effects on Q, and the agreement of trained networks' clusterings."""
    rows = agreement(found)
    rows = rows[rows["condition"] == "trained"].set_index("group") if len(rows) else rows
    measures = {"agreement": "element_sim", "agreement beyond chance": "adjusted"}
    return effects(found) | {
        f"{title} {group}": claim(rows.loc[group], measure, ".3f")
        for title, measure in measures.items()
        for group in GROUPS
        if group in rows.index and not np.isnan(rows.loc[group, measure])
    }


def effects(found, value="score", form="+.3f"):
    """{name: Claim}: the change of Q, or z, from the weakest to the strongest usable regularization."""
    rows = findings.regularizer_effects(found, per_layer=False, value=value)
    return {f"{row['regularizer']}, {row['assoc']}": claim(row, "change", form) for _, row in rows.iterrows()}


def claim(row, name, form):
    """A column of a table's row, with its interval."""
    return Claim(row[name], row[f"{name}_low"], row[f"{name}_high"], form)


def texts(found):
    """Claims as text, with their intervals where there are any."""
    return {name: str(each) for name, each in found.items()}


def repeats(found):
    """How alike the clusters of two seeds are, and how often methods of the two families agree more than by chance."""
    repeat = findings.trained(findings.usable(found.modules, found.models))["repeat"].mean()
    rows = agreement(found).set_index(["condition", "group"])["significant"]
    return {"two seeds' agreement": f"{repeat:.3f}", "pairs across, p < 0.05": f"{rows['trained', 'across']:.0%}"}


def repetitions(found):
    """The range over repetitions taken alone: each has other weights, other validation images, one network a point."""
    each = {}
    for run in sorted(findings.trained(found.models.dropna(subset="test_acc"))["run"].unique()):
        kept = [rows[(rows["run"] == run) | (rows["part"] == "dummy")] for rows in found[:3]]
        for name, found_claim in claims(Results(*kept, found.examples)).items():
            each.setdefault(name, []).append(found_claim)
    return {
        name: f"{min(group).value:{group[0].form}} … {max(group).value:{group[0].form}}" for name, group in each.items()
    }


def parser():
    p = cli.Parser(description=__doc__)
    p.add_argument("experiment", help=", ".join(grids.EXPERIMENTS))
    p.add_argument("--compute", action="store_true", help="cluster again first; needs the evaluated checkpoints")
    p.add_argument("--folder", type=Path, default=FOLDER, help="where the tables are")
    return p


if __name__ == "__main__":
    with cli.one_line_errors("sensitivity.py"):
        main(parser().parse_args())
