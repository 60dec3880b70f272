"""Files of the study's original program: ours reads them, evaluates them, and writes what they hold, in their form.

The files are made up here with all that is peculiar to those: numpy's scalars under their older name, paths, numbers in
tensors without dimensions and in tuples of one, as many columns of clusters as units, three keys in untrained networks.
"""

import itertools
import zipfile
from pathlib import PosixPath

import numpy as np
import pytest
import torch
from evaluated import arguments, write_images
from torch import nn

import eval as evaluation
from analysis import load_data_as_table
from associations import METHODS
from modularity import MODULES_VERSION
from study import checkpoints
from study.checkpoints import plain

UNITS, LAYERS, STEPS, SHUFFLES = 8, 2, 5000, 5000
BASIC = {name: 0.25 + i / 16 for i, name in enumerate(evaluation.BASIC_METRICS)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Some images under the name mnist, which are not those that their program trained on."""
    return write_images(tmp_path_factory.mktemp("data") / "mnist", (1, 28, 28), train=6, test=4)


def weights():
    sizes = [784, *[UNITS] * LAYERS]
    layers = {f"fc_layers.{i}": nn.Linear(n_in, n_out) for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes))}
    layers["proj"] = nn.Linear(UNITS, 10)
    return {f"model.{name}.{key}": x for name, layer in layers.items() for key, x in layer.state_dict().items()}


def untrained():
    """Their dummy.ckpt."""
    named = {"dataset": "mnist", "task": "sup", "l2": 0.0, "l1": 0.0, "drop": 0.0, "run": 1000}
    return {
        "pytorch-lightning_version": "1.9.5",
        "hyper_parameters": named | {"model_args": {"channels": [UNITS] * LAYERS}},
        "state_dict": weights(),
    }


def trained():
    """Their best.ckpt as training leaves it."""
    stored = untrained()
    stored["hyper_parameters"] |= {"run": 0, "l2": 1e-5, "seed": 286436723, "train_val_split": np.float64(0.9)}
    stored["hyper_parameters"] |= {"workers": 2, "device": "auto", "devices": "0123", "max_epochs": 500}
    stored["hyper_parameters"] |= {"batch_size": 200, "save_dir": PosixPath("logs"), "data_dir": PosixPath("data")}
    best = {"monitor": "val_loss", "current_score": torch.tensor(0.1), "dirpath": PosixPath("logs/weights")}
    best["best_k_models"] = {"logs/weights/epoch=17-step=4860.ckpt": torch.tensor(0.1)}
    callbacks = {"EarlyStopping{'monitor': 'val_loss'}": {"wait_count": 0, "best_score": torch.tensor(0.1)}}
    stored |= {"epoch": 17, "global_step": 4860, "hparams_name": None, "lr_schedulers": [{"best": np.float64(0.1)}]}
    return stored | {"callbacks": callbacks | {"ModelCheckpoint{'monitor': 'val_loss'}": best}}


def evaluated():
    """The same after their evaluation."""

    def modules(adj):
        clusters = torch.zeros(UNITS, UNITS)
        clusters[torch.arange(UNITS - 1), torch.arange(UNITS - 1) % 3] = 1  # the last unit is in none
        curves = {f"mc_{name}": torch.rand(STEPS) for name in ("scores", "temperatures", "entropies")}
        numbers = {"score": torch.tensor(0.125), "num_clusters": torch.tensor(2.75)}
        return {"adj": adj.clone().fill_diagonal_(0), "clusters": clusters, **numbers, **curves, "version": 3}

    def alignment():
        tensors = ("score", "p", "transfer_AaPb", "transfer_AaPb_norm", "transfer_AbPa", "transfer_AbPa_norm")
        tuples = ("rmi", "vi", "rmi_norm", "vi_norm", "element_sim")
        return {
            **{"adj_spearman_r": np.float64(0.25), "adj_spearman_p": np.float64(0.5)},
            **{name: torch.tensor(0.375) for name in tensors},
            **{name: (np.float64(0.625),) for name in tuples},
            "null": torch.rand(SHUFFLES),
            "version": 8,
        }

    matrices = {method: [torch.rand(UNITS, UNITS) for _ in range(LAYERS)] for method in METHODS}
    assoc = {method: [matrix + matrix.T for matrix in layers] for method, layers in matrices.items()}
    pairs = [":".join(sorted(pair)) for pair in itertools.combinations_with_replacement(METHODS, 2)]
    return (
        trained()
        | BASIC
        | {
            "assoc": assoc,
            "modules": {method: [modules(adj) for adj in layers] for method, layers in assoc.items()},
            "align": {pair: [alignment() for _ in range(LAYERS)] for pair in pairs},
        }
    )


def write(path, stored):
    """Writes a file as their versions of torch and numpy did."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(stored, path.with_suffix(".new"))
    with zipfile.ZipFile(path.with_suffix(".new")) as new, zipfile.ZipFile(path, "w") as old:
        for member in new.infolist():
            old.writestr(member, new.read(member).replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n"))
    return path


def evaluate(path, data):
    evaluation.main(arguments("--ckpt-file", path, "--data-dir", data, "--modularity-metrics", ",".join(METHODS)))
    return checkpoints.read(path)


def shape(value):
    """Nested keys, lengths and tensor shapes, numbers of whatever kind as "number"."""
    if isinstance(value, dict):
        return {key: shape(x) for key, x in value.items()}
    if isinstance(value, list):
        return [shape(x) for x in value]
    return tuple(value.shape) if torch.is_tensor(plain(value)) else "number"


def lacks(ours, theirs, path=""):
    """The places where ours lacks what theirs has, or has it in another shape."""
    if isinstance(theirs, dict):
        lacking = [f"{path}/{key}" for key in theirs if key not in ours]
        return lacking or [m for key in theirs for m in lacks(ours[key], theirs[key], f"{path}/{key}")]
    if isinstance(theirs, list):
        return [m for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) for m in lacks(a, b, f"{path}/{i}")]
    return [] if ours == theirs or path.endswith("/clusters") else [f"{path}: {ours}, not {theirs}"]


@pytest.fixture(scope="module")
def ours(data, tmp_path_factory):
    """Ours after evaluating what they trained, in a folder of runs; the checkpoint's path."""
    path = tmp_path_factory.mktemp("ours") / "mnist_sup_l2=0.00001" / "weights" / "best.ckpt"
    evaluate(write(path, trained()), data)
    return path


def test_their_files_are_read(tmp_path):
    path = write(tmp_path / "best.ckpt", evaluated())
    assert b"numpy.core.multiarray\n" in path.read_bytes() and b"numpy._core" not in path.read_bytes()
    stored = checkpoints.read(path)
    assert stored["hyper_parameters"]["save_dir"] == PosixPath("logs")
    assert stored["align"]["backward_jac:forward_cov"][0]["rmi"] == (0.625,)


def test_ours_writes_what_theirs_holds(ours):
    theirs, results = evaluated(), ("assoc", "modules", "align", *BASIC)
    found = checkpoints.read(ours)
    assert lacks(shape({key: found[key] for key in results}), shape({key: theirs[key] for key in results})) == []


def test_their_untrained_networks_are_evaluated(data, tmp_path):
    found = evaluate(write(tmp_path / "dummy.ckpt", untrained()), data)
    theirs, results = evaluated(), ("assoc", "modules", "align", *BASIC)
    assert lacks(shape({key: found[key] for key in results}), shape({key: theirs[key] for key in results})) == []


def test_only_their_modules_and_alignments_are_stale(data, tmp_path):
    path = write(tmp_path / "best.ckpt", evaluated())
    before, after = checkpoints.read(path), evaluate(path, data)
    assert all(after[name] == before[name] for name in BASIC)
    for method, layers in before["assoc"].items():
        assert all(torch.equal(a, b) for a, b in zip(after["assoc"][method], layers, strict=True))
        for layer, adj in zip(after["modules"][method], layers, strict=True):
            assert layer["version"] == MODULES_VERSION and torch.equal(layer["adj"], adj.clone().fill_diagonal_(0))
    assert all(plain(pair["p"]) != 0.375 for layers in after["align"].values() for pair in layers)


def test_theirs_and_ours_make_the_same_table(ours, tmp_path):
    write(tmp_path / ours.parent.parent.name / "weights" / "best.ckpt", evaluated())
    metrics = ["test_acc", "modules.forward_cov.0.score", "align.backward_jac:forward_cov.1.element_sim"]
    spec = {"dataset": "mnist", "l2": 1e-5, "run": 0, "checkpoint": "best"}
    table, theirs = (load_data_as_table([spec], metrics, folder) for folder in (ours.parents[2], tmp_path))
    assert table.dtypes.equals(theirs.dtypes)
    assert table["score"].notna().sum() == table["element_sim"].notna().sum() == 1
    assert theirs["test_acc"].iloc[0] == BASIC["test_acc"]
    assert theirs["score"].dropna().tolist() == [0.125] and theirs["element_sim"].dropna().tolist() == [0.625]
