"""The control with shuffled weights keeps what it says it keeps, and loses what it says it loses."""

import argparse

import numpy as np
import pandas as pd
import pytest
import torch
from evaluated import network_of, write_images, write_network
from torch import nn

from associations import FAMILIES, PAPER_METHODS, associations
from examples import shuffled_weights
from modularity import find_modules
from study import checkpoints
from study.datasets import Split


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "tiny", (1, 6, 5), train=20, test=10)


def convolutional():
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 2), nn.Flatten(), nn.Linear(6, 5)
    return nn.Sequential(*layers).eval()


def kernels(weight):
    """The kernels of each unit, in an order that does not depend on theirs: (outputs, inputs, …)."""
    rows = weight.flatten(2) if weight.ndim > 2 else weight[..., None]
    return torch.stack([row[row[:, 0].argsort()] for row in rows])


@pytest.mark.parametrize("kind", shuffled_weights.KINDS)
def test_shuffling_keeps_each_units_kernels_or_the_layers(kind):
    model = convolutional()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    shuffled_weights.shuffle_weights(model, kind, torch.Generator().manual_seed(1))
    after = model.state_dict()
    for name in before:
        assert torch.equal(before[name], after[name]) == (name not in ("3.weight", "5.weight")), name
    for name in ("3.weight", "5.weight"):
        old, new = kernels(before[name]), kernels(after[name])
        assert torch.equal(old, new) == (kind == "inputs")
        all_old, all_new = (kernels(each.flatten(0, 1)[None])[0] for each in (old, new))
        assert torch.equal(all_old, all_new)


def test_every_unit_is_shuffled_in_its_own_order():
    model = nn.Sequential(nn.Linear(2, 30), nn.Linear(30, 4)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.arange(30.0).repeat(4, 1))
    shuffled_weights.shuffle_weights(model, "inputs", torch.Generator().manual_seed(0))
    assert len({tuple(row) for row in model[1].weight.tolist()} | {tuple(range(30))}) == 5


def test_batch_statistics_are_means_over_the_batches():
    model, random = convolutional(), torch.Generator().manual_seed(0)
    images = torch.randint(256, (120, 3, 4, 4), dtype=torch.uint8, generator=random)
    split = Split(images, torch.zeros(120, dtype=torch.int64), torch.arange(120))
    shuffled_weights.renew_batch_statistics(model, split)
    with torch.no_grad():
        h = [model[0](batch.float() / 255) for batch in images.split(50)]
    for ours, slow in (
        (model[1].running_mean, [x.double().mean((0, 2, 3)) for x in h]),
        (model[1].running_var, [x.double().transpose(0, 1).flatten(1).var(1) for x in h]),
    ):
        assert torch.allclose(ours.double(), torch.stack(slow).mean(0), atol=1e-6)
    assert not any(module.training for module in model.modules())


def test_the_table_holds_q_trained_and_shuffled(tmp_path, data, capsys):
    path = write_network(tmp_path / "best.ckpt", data=data)
    table = shuffled_weights.compare(path, images=20, shuffles=3, data_dir=data)
    stored = checkpoints.read(path)
    _, _, test = shuffled_weights.splits_of(stored, argparse.Namespace(data_dir=data, device="cpu"))
    x, y = next(test.batches(20))
    found = associations(network_of(stored), [(x.double(), y)], methods=PAPER_METHODS)
    assert list(table.index) == [(layer, family) for layer in (0, 1) for family in FAMILIES]
    for layer, family in table.index:
        scores = [find_modules(found.assoc[m][layer], seed=0, null_draws=0)["score"] for m in FAMILIES[family]]
        assert table.loc[(layer, family), "trained"] == pytest.approx(np.mean(scores), abs=1e-4)
    first = table.loc[(0, "upstream")]  # below the weights that are shuffled
    assert first["inputs"] == first["all"] == pytest.approx(first["trained"]) and first["all_sd"] < 1e-12
    others = table.drop(index=(0, "upstream"))
    assert (others[["inputs_sd", "all_sd"]] > 0).all(axis=None)
    one = shuffled_weights.compare(path, images=20, shuffles=1, data_dir=data)
    assert one["all_sd"].isna().all() and one["trained"].equals(table["trained"])
    args = {"checkpoint": [path], "images": 20, "shuffles": 3, "data_dir": data}
    shuffled_weights.main(argparse.Namespace(**args))
    printed = capsys.readouterr().out
    assert printed.startswith(f"{path}\n") and all(f"{q:.3f}" in printed for q in table["inputs"])


def test_mistakes_are_told_in_a_line(tmp_path, data, program):
    script = "examples/shuffled_weights.py"
    status, _, said = program(script, tmp_path / "no.ckpt")
    assert status == 1 and said == f"shuffled_weights: {tmp_path / 'no.ckpt'}: no such file\n"
    path = write_network(tmp_path / "best.ckpt", data=data)
    status, _, said = program(script, path, "--shuffles", "0")
    assert status == 1 and said == "shuffled_weights: --images and --shuffles must be 1 or more\n"


def test_averages_over_shuffles(monkeypatch, tmp_path, data):
    """The columns of a kind are the mean and standard deviation over its own shuffles, each with new statistics."""
    path, given = write_network(tmp_path / "best.ckpt", data=data), iter([1.0, 2.0, 3.0, 5.0, 9.0, 7.0, 11.0])
    index = pd.MultiIndex.from_tuples([(0, "upstream")], names=["layer", "family"])
    renewed = []
    monkeypatch.setattr(shuffled_weights, "renew_batch_statistics", lambda _, split: renewed.append(len(split.images)))
    monkeypatch.setattr(shuffled_weights, "modularity_by_layer", lambda *_: pd.Series([next(given)], index))
    (row,) = shuffled_weights.compare(path, images=5, shuffles=3, data_dir=data).to_dict("records")
    assert row == {"trained": 1.0, "inputs": 10 / 3, "inputs_sd": np.std([2, 3, 5], ddof=1), "all": 9.0, "all_sd": 2.0}
    assert renewed == 6 * [60]  # training images
