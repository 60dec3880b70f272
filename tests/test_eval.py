"""eval.py as a user runs it: results in the checkpoint, mistakes told in one line."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.nn import functional as F

import eval as evaluation
import models
import train
from models import norms
from study import checkpoints, grids
from study.cli import UserError

ROOT = Path(__file__).parent.parent


def script(*words):
    """Runs one of the scripts in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)


def train_args(*words):
    return train.parser().parse_args(["--device", "cpu", *words])


def eval_args(*words):
    return evaluation.parser().parse_args(["--device", "cpu", "--null-draws", "2", *words])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Tiny image-folder trees under the names mnist (28×28, grey) and cifar10 (32×32): noise around a class pattern."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name, shape in (("mnist", (28, 28)), ("cifar10", (32, 32, 3))):
        patterns = rng.integers(0, 256, (10, *shape))
        for part, n in (("train", 20), ("test", 6)):
            for label, pattern in enumerate(patterns):
                place = folder / name / part / str(label)
                place.mkdir(parents=True)
                for i in range(n):
                    noisy = np.clip(pattern + rng.normal(0, 60, shape), 0, 255).astype(np.uint8)
                    Image.fromarray(noisy).save(place / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A run directory: two epochs of a small dense network, through the command line."""
    folder = tmp_path_factory.mktemp("logs")
    words = ["--dataset", "mnist", "--drop", "0.1", "--max-epochs", "2", "--batch-size", "50", "--data-dir", data]
    words += ["--save-dir", folder, "--device", "cpu", "--model-args", '{"channels": [12, 10]}']
    result = script("train.py", *map(str, words))
    assert result.returncode == 0, result.stderr
    return folder / "mnist_sup_l2=0.00001_drop=0.10000"


@pytest.fixture(scope="module")
def evaluated(trained, data):
    """The same run after `eval.py --run-dir`, through the command line."""
    words = ["--run-dir", trained, "--data-dir", data, "--device", "cpu", "--null-draws", "3"]
    result = script("eval.py", *map(str, words))
    assert result.returncode == 0, result.stderr
    return trained


def test_evaluation_stores_everything_where_the_specification_says(evaluated):
    stored = checkpoints.read(evaluated / "weights" / "best.ckpt")
    assert all(isinstance(stored[name], float) for name in evaluation.BASIC_METRICS)
    assert stored["assoc"].keys() == stored["modules"].keys() == set(evaluation.METHODS)
    for method, layers in stored["modules"].items():
        for assoc, modules, units in zip(stored["assoc"][method], layers, (12, 10), strict=True):
            assert assoc.shape == modules["adj"].shape == (units, units)
            assert (modules["adj"].diagonal() == 0).all() and len(modules["clusters"]) == units
            fields = {"score", "num_clusters", "mc_score", "mc_clusters", "mc_scores", "mc_temperatures"}
            assert modules.keys() >= fields | {"mc_entropies", "null_mean", "null_std", "z", "p", "version"}
    assert len(stored["align"]) == 36
    assert all(a <= b for a, b in (pair.split(":") for pair in stored["align"]))
    fields = {"score", "null", "p", "rmi", "rmi_norm", "vi", "vi_norm", "element_sim", "adj_spearman_r"}
    transfers = {f"transfer_{which}{norm}" for which in ("AaPb", "AbPa") for norm in ("", "_norm")}
    fields |= transfers | {"adj_spearman_p", "version"}
    assert stored["align"]["backward_jac:forward_cov"][1].keys() >= fields


def test_stored_metrics_are_those_of_a_plain_loop(evaluated, data):
    stored = checkpoints.read(evaluated / "weights" / "best.ckpt")
    model = models.build("mnist", 0.1, {"channels": [12, 10]}).eval()
    model.load_state_dict({k.removeprefix("model."): v for k, v in stored["state_dict"].items()})
    from study.datasets import splits

    for name, split in zip(("train", "val", "test"), splits("mnist", data, grids.BASE_SEED), strict=True):
        losses, hits = [], []
        for i in split.index:
            logits = model(split.images[i][None] / 255)[1]
            losses.append(F.cross_entropy(logits, split.labels[i][None]).item())
            hits.append(logits.argmax().item() == split.labels[i].item())
        assert stored[f"{name}_loss"] == pytest.approx(np.mean(losses), abs=1e-5)
        assert stored[f"{name}_acc"] == np.mean(hits)
    assert stored["l2_norm"] == pytest.approx(norms.l2_norm(model).item())


def test_best_is_the_checkpoint_with_the_lowest_val_loss(evaluated):
    losses = {path.name: checkpoints.read(path)["val_loss"] for path in (evaluated / "weights").glob("epoch*.ckpt")}
    assert os.readlink(evaluated / "weights" / "best.ckpt") == min(losses, key=losses.get)


def test_a_second_evaluation_changes_nothing(evaluated, data):
    path = evaluated / "weights" / "best.ckpt"
    before = path.read_bytes()
    evaluation.main(eval_args("--ckpt-file", str(path), "--data-dir", str(data)))
    assert path.read_bytes() == before


def test_only_what_is_stale_is_computed_again(evaluated, data):
    path = evaluated / "weights" / "best.ckpt"
    stored = checkpoints.read(path)
    stored["modules"]["forward_cov"][0]["version"] = 3
    kept, remade = stored["align"]["backward_jac:forward_jac"], stored["align"]["backward_jac:forward_cov"]
    kept[0]["marker"] = remade[0]["marker"] = 1.0
    checkpoints.write(path, stored)
    evaluation.main(eval_args("--ckpt-file", str(path), "--data-dir", str(data)))
    stored = checkpoints.read(path)
    assert stored["modules"]["forward_cov"][0]["version"] == evaluation.MODULES_VERSION
    assert "marker" in stored["align"]["backward_jac:forward_jac"][0]
    assert "marker" not in stored["align"]["backward_jac:forward_cov"][0]


def test_combined_matrices_get_modules_of_their_own(evaluated, data):
    path = evaluated / "weights" / "epoch=0-step=4.ckpt"
    words = ["--ckpt-file", str(path), "--data-dir", str(data), "--modularity-metrics", "forward_cov,backward_jac"]
    evaluation.main(eval_args(*words, "--modularity-combined"))
    stored = checkpoints.read(path)
    assert stored["assoc"]["forward_cov_combined"].shape == (22, 22)
    assert len(stored["modules"]["forward_cov_combined"][0]["clusters"]) == 22
    assert "backward_jac_combined:forward_cov_combined" in stored["align"]
    assert "backward_jac:forward_cov_combined" not in stored["align"]


def test_a_convolutional_network_is_trained_and_evaluated(data, tmp_path):
    words = ["--dataset", "cifar10", "--max-epochs", "1", "--batch-size", "60", "--data-dir", str(data)]
    words += ["--save-dir", str(tmp_path), "--model-args", '{"channels": [8, 8, 8, 8]}', "--no-progress"]
    train.main(train_args(*words))
    evaluation.main(eval_args("--run-dir", *map(str, tmp_path.glob("cifar10_*")), "--data-dir", str(data)))
    (path,) = tmp_path.glob("*/weights/best.ckpt")
    stored = checkpoints.read(path)
    assert [len(matrix) for matrix in stored["assoc"]["backward_hess"]] == [8, 8, 8, 8, 8, 16]
    assert stored["assoc_stderr"]["forward_jac"][0].max() > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval.py", "--ckpt-file", "README.md"], "not a checkpoint"),
        (["eval.py", "--ckpt-file", "nothing.ckpt"], "no such file"),
        (["eval.py", "--run-dir", "tests"], "no checkpoint in it"),
        (["eval.py", "--ckpt-file", "x.ckpt", "--metrics", "nonsense"], "unknown metric 'nonsense'"),
        (["eval.py", "--ckpt-file", "x.ckpt", "--device", "cuda:7"], "cuda:7"),
    ],
)
def test_mistakes_get_one_clear_line(words, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError) as error:
        evaluation.main(evaluation.parser().parse_args(words[1:]))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_mistake_on_the_command_line_ends_with_one_line_and_status_1():
    result = script("eval.py", "--ckpt-file", "nothing.ckpt")
    assert result.returncode == 1 and result.stderr == "eval.py: nothing.ckpt: no such file\n"
