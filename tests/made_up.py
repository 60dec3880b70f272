"""A made-up study: tables with known answers, and checkpoints in the format of evaluated ones."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from analysis import ALIGN_FIELDS, LESION_FIELDS, MODULE_FIELDS
from associations import METHODS, PAIRS, UPSTREAM
from report.experiments import Results
from study import grids
from study.checkpoints import BASIC_METRICS

REPOSITORY = Path(__file__).resolve().parents[1]


def hyperparameters(experiment="mnist-base", runs=2, untrained=4):
    """A row per network of an experiment, with fewer runs than it has."""
    rows = [
        {"part": part} | spec | {"checkpoint": "best"}
        for part in grids.parts(experiment)
        for spec in grids.specs(experiment, part)
        if spec["run"] % grids.FIRST_UNTRAINED_RUN < (untrained if part == "dummy" else runs)
    ]
    table = pd.DataFrame(rows)
    table["part"] = pd.Categorical(table["part"], categories=grids.PARTS)
    return table


def results(experiment="mnist-base", layers=2, units=12, seed=0, noise=1.0, **sizes):
    """Results in which Q is 0.1 + 0.2·drop upstream and 0.1 downstream; networks with l1 > 5e-3, l2 > 3e-2 or
    drop > 0.65 fail; methods agree by 0.6 within upstream, 0.5 within downstream and 0.3 across; lesions have the value
    drop + 0.5 · layer, + 3 downstream, 0 in untrained networks. Plus noise."""
    random = np.random.default_rng(seed)
    models = hyperparameters(experiment, **sizes)
    models["pass_mark"] = 0.8
    failed = (models["l1"] > 5e-3) | (models["l2"] > 3e-2) | (models["drop"] > 0.65)
    accuracy = np.where(models["part"] == "dummy", 0.1, np.where(failed, 0.3, 0.98)) + noise * random.normal(
        0, 0.003, len(models)
    )
    for name in BASIC_METRICS:
        models[name] = accuracy if name.endswith("acc") else 10.0 + random.random(len(models))

    def crossed(**columns):
        others = pd.DataFrame(itertools.product(*columns.values()), columns=list(columns))
        return models.merge(others, how="cross")

    modules = crossed(assoc=METHODS, layer=range(layers))
    up = modules["assoc"].isin(UPSTREAM)
    for field in MODULE_FIELDS:
        modules[field] = 0.1 + 0.2 * modules["drop"] * up + noise * random.normal(0, 0.002, len(modules))
    modules["num_clusters"] = 4.0
    modules["sizes"] = [np.array([5, 4, 3])] * len(modules)
    align = crossed(pair=PAIRS, layer=range(layers)).drop(columns=list(BASIC_METRICS))
    align[["assoc_a", "assoc_b"]] = align.pop("pair").str.split(":", expand=True)
    upstream = align["assoc_a"].isin(UPSTREAM).astype(int) + align["assoc_b"].isin(UPSTREAM)
    similarity = upstream.map({2: 0.6, 0: 0.5, 1: 0.3}) + noise * random.normal(0, 0.01, len(align))
    for field in ALIGN_FIELDS:
        known = {"p": 0.5 * (upstream == 1), "null_mean": 0.25, "element_sim_expected": 0.2}
        align[field] = known.get(field, similarity)
    lesions = crossed(assoc=METHODS, layer=range(layers))
    for field in LESION_FIELDS:
        place = lesions["drop"] + 3.0 * ~lesions["assoc"].isin(UPSTREAM) + 0.5 * lesions["layer"]
        lesions[field] = place * (lesions["part"] != "dummy") + noise * random.normal(0, 0.1, len(lesions))
    lesions["draws"] = 100.0
    for table, names in ((modules, ["assoc"]), (align, ["assoc_a", "assoc_b"]), (lesions, ["assoc"])):
        table["version"] = 1.0
        for name in names:
            table[name] = pd.Categorical(table[name], categories=METHODS, ordered=True)
    return Results(models, modules, align, examples(models, layers, units, random), lesions)


def distinct(experiment="mnist-wide", seed=1):
    """Results in which every cell has a value of its own, so that a mean over anything else comes out differently.

    Accuracy falls along each grid; two of three runs fail at the strongest L1 and L2, one of three at the L1 before.
    Some p are missing.
    """
    random = np.random.default_rng(seed)
    found = results(experiment, runs=3)
    models, modules, align, _, lesions = found
    kinds = (models, BASIC_METRICS), (modules, MODULE_FIELDS), (align, ALIGN_FIELDS), (lesions, LESION_FIELDS)
    for table, fields in kinds:
        for field in sorted(set(fields) - {"sizes", "version", "draws"}):  # the same values in every process
            table[field] = random.uniform(0.1, 0.9, len(table))
    place = models.groupby("part", observed=True).cumcount() // 3
    models["test_acc"] = 0.98 - 0.02 * place - random.uniform(0, 0.005, len(models))
    failing = (models["l1"] > 5e-3) | (models["l2"] > 5e-2)
    models.loc[failing & (models["run"] < 2), "test_acc"] -= 0.5
    models.loc[np.isclose(models["l1"], 1e-3) & (models["run"] == 1), "test_acc"] -= 0.5
    models.loc[models["part"] == "dummy", "test_acc"] = random.uniform(0.05, 0.15, 4)
    for table in (modules, lesions):
        table["test_acc"] = np.repeat(models["test_acc"].to_numpy(), len(table) // len(models))
    align.loc[random.random(len(align)) < 0.2, "p"] = np.nan
    align.loc[random.random(len(align)) < 0.3, "p"] = 0.01
    return found


def examples(models, layers, units, random):
    """Matrices of an untrained, a hardly regularised and two dropped-out networks."""
    chosen = [models[models["part"] == part].iloc[[0]] for part in ("dummy", "l2")]
    drop = models[models["part"] == "drop"].iloc[[0, -1]]
    table = pd.concat([*chosen, drop]).merge(pd.DataFrame({"assoc": METHODS}), how="cross")
    table = table.merge(pd.DataFrame({"layer": range(layers)}), how="cross")
    table["assoc"] = pd.Categorical(table["assoc"], categories=METHODS, ordered=True)
    matrices = [random.random((units, units)) for _ in range(len(table))]
    table["score"] = 0.1
    table["adj"] = [((m + m.T) * (1 - np.eye(units))).astype(np.float32) for m in matrices]
    table["clusters"] = [np.eye(3, dtype=np.float32)[random.permutation(np.arange(units) % 3)] for _ in matrices]
    for kind in ("mean", "zero"):
        table[f"{kind}_effects"] = [random.normal(1, 1, (3, 10)).astype(np.float32) for _ in matrices]
        table[f"{kind}_specialization"] = random.random(len(table))
    table["classes"] = [np.arange(10)] * len(table)
    return table


def evaluated(spec, units=6, layers=2, seed=0, score=0.25):
    """An evaluated checkpoint with just what the table needs, as evaluation writes it."""
    generator = torch.Generator().manual_seed(seed)
    clusters = torch.eye(2)[torch.arange(units) % 2].clone()
    clusters[-1] = 0  # a dead unit

    def module():
        adj = torch.rand(units, units, generator=generator)
        return {
            "adj": (adj + adj.T).fill_diagonal_(0),
            "clusters": clusters,
            "score": score,
            "num_clusters": 2.0,
            "mc_score": score,
            "null_mean": 0.1,
            "null_std": 0.01,
            "z": 15.0,
            "p": 0.05,
            "rotation_z": 5.0,
            "version": 100,
        }

    def pair():
        fields = {field: 0.5 for field in ALIGN_FIELDS if field not in ("null_mean", "null_std")}
        return fields | {"null": torch.tensor([0.25, 0.75]), "transfer_AaPb": 0.1, "transfer_AbPa": 0.2, "version": 100}

    def lesion():
        effects = {f"{kind}_effects": torch.rand(2, 3, generator=generator) for kind in ("mean", "zero")}
        return {field: 0.75 for field in LESION_FIELDS} | effects | {"classes": torch.arange(3), "version": 100}

    return {
        "hyper_parameters": dict(spec),
        **{name: 0.5 for name in BASIC_METRICS},
        "lesions": {method: [lesion() for _ in range(layers)] for method in METHODS},
        "modules": {method: [module() for _ in range(layers)] for method in METHODS},
        "align": {name: [pair() for _ in range(layers)] for name in PAIRS},
    }
