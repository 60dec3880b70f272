"""eval.py: every number in a checkpoint against a plain computation, every option seen in the result, every guard."""

import contextlib
import inspect
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluated import (
    CHANNELS,
    CLASSES,
    COLOURED,
    METHODS,
    SHAPE,
    arguments,
    evaluate,
    images_of,
    network_of,
    write_images,
    write_network,
    write_run,
)
from torch.nn import functional as F

import analysis
import associations
import eval as evaluation
import modularity
from comparison import ALIGN_VERSION, align_modules, alignment_null
from modularity import MODULES_VERSION, find_modules
from study import checkpoints, datasets, files, grids, networks
from study import evaluation as steps
from study.cli import UserError

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Sixty training and 27 test images, grey, higher than wide; and a few coloured ones."""
    folder = tmp_path_factory.mktemp("data")
    write_images(folder / "tiny", SHAPE, train=20, test=9)
    return write_images(folder / "coloured", COLOURED, train=4, test=4)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Every split is several batches, the last of them shorter."""
    monkeypatch.setattr(steps, "BATCH_SIZE", 7)
    monkeypatch.setattr(steps, "CONVOLUTIONAL_BATCH_SIZE", 5)


@pytest.fixture
def path(tmp_path, data):
    """A checkpoint that is not evaluated; its second and fifth unit never fire."""
    return write_network(tmp_path / "best.ckpt", data, silent=[1, 4])


@pytest.fixture(scope="module")
def complete(tmp_path_factory, data):
    """The bytes of the same checkpoint after a whole evaluation, combined matrices included."""
    path = write_network(tmp_path_factory.mktemp("complete") / "best.ckpt", data, silent=[1, 4])
    all_methods = ("--modularity-metrics", ",".join(associations.METHODS))
    evaluate(path, data, *all_methods, "--modularity-combined")
    return path.read_bytes()


@pytest.fixture
def stored(complete, tmp_path):
    (tmp_path / "complete.ckpt").write_bytes(complete)
    return checkpoints.read(tmp_path / "complete.ckpt")


def close(a, b, relative=1e-5):
    """Equal up to float32 rounding, relative to the largest entry."""
    assert a.shape == b.shape
    assert (a.double() - b).abs().max() <= relative * b.abs().max()


# ---- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [None, 0, 5])
def test_losses_and_accuracies_are_those_of_a_plain_loop_over_each_split(tmp_path, data, seed):
    """Seed 0 is a seed: only without one does the run's number decide which images are for validation."""
    path = write_network(tmp_path / "a.ckpt", seed=seed, run=3)
    stored = evaluate(path, data, "--skip-modularity")
    model, used = network_of(stored), grids.BASE_SEED + 3 if seed is None else seed
    for name, (images, labels) in images_of(data, seed=used).items():
        assert len(images) % 7 and len(images) > 7
        logits = [model(image[None])[1] for image in images]
        losses = [F.cross_entropy(y, label[None]).item() for y, label in zip(logits, labels, strict=True)]
        hits = [y.argmax().item() == label.item() for y, label in zip(logits, labels, strict=True)]
        assert stored[f"{name}_loss"] == pytest.approx(np.mean(losses), rel=1e-6)
        assert stored[f"{name}_acc"] == np.mean(hits)


def test_norms_are_those_of_the_weights(path, data):
    stored = evaluate(path, data, "--skip-modularity")
    weights = [w.double().numpy() for w in stored["state_dict"].values() if w.ndim >= 2]
    assert stored["l1_norm"] == pytest.approx(sum(np.abs(w).sum() for w in weights), rel=1e-6)
    assert stored["l2_norm"] == pytest.approx(sum((w**2).sum() for w in weights), rel=1e-6)
    assert stored["nuc_norm"] == pytest.approx(sum(np.linalg.svd(w)[1].sum() for w in weights), rel=1e-5)
    small, n = sum((np.abs(w) < 1e-3).sum() for w in weights), sum(w.size for w in weights)
    assert stored["sparsity"] == pytest.approx(small / n)


def plain_associations(model, images, labels):
    """{base method: [(d, d) signed, one a layer]}, one derivative of one example at a time."""
    sums = {method: [0.0, 0.0] for method in associations.BASE_METHODS}
    activations = [[], []]
    for image, label in zip(images, labels, strict=True):
        x = image[None].clone().requires_grad_()
        hidden, logits = model(x)
        loss = F.cross_entropy(logits, label[None])
        for layer, h in enumerate(hidden):
            activations[layer].append(h[0].detach())
            rows = torch.stack([torch.autograd.grad(unit, x, retain_graph=True)[0].flatten() for unit in h[0]])
            sums["forward_jac"][layer] = sums["forward_jac"][layer] + rows @ rows.T
            rows = torch.stack([torch.autograd.grad(y, h, retain_graph=True)[0][0] for y in logits[0]])
            sums["backward_jac"][layer] = sums["backward_jac"][layer] + rows.T @ rows
            (gradient,) = torch.autograd.grad(loss, h, create_graph=True)
            rows = torch.stack([torch.autograd.grad(g, h, retain_graph=True)[0][0] for g in gradient[0]])
            sums["backward_hess"][layer] = sums["backward_hess"][layer] + rows
    signed = {method: [total / len(images) for total in layers] for method, layers in sums.items()}
    covariances = [np.cov(torch.stack(h).T.numpy(), bias=True) for h in activations]
    return signed | {"forward_cov": [torch.from_numpy(matrix) for matrix in covariances]}


def test_associations_are_those_of_the_test_images(stored, data):
    for method, layers in plain_associations(network_of(stored), *images_of(data)["test"]).items():
        for layer, signed in enumerate(layers):
            close(stored["assoc"][method][layer], signed.abs())
            sure = signed.abs() > 1e-6 * signed.abs().max()
            assert torch.equal(stored["assoc_sign"][method][layer][sure].double(), signed.sign()[sure])
            root = signed.diagonal().clamp(min=1e-12).sqrt()
            close(stored["assoc"][f"{method}_norm"][layer], (signed / root[:, None] / root).abs())
    assert stored["assoc"].keys() >= set(associations.METHODS)


def test_combined_matrices_hold_those_of_the_layers(stored):
    for method in associations.METHODS:
        whole, (first, second) = stored["assoc"][f"{method}_combined"], stored["assoc"][method]
        assert whole.shape == (sum(CHANNELS), sum(CHANNELS)) and whole[:9, 9:].any()
        close(whole[:9, :9], first.double())
        close(whole[9:, 9:], second.double())
        assert len(stored["modules"][f"{method}_combined"]) == 1
    assert "backward_jac_combined:forward_cov_combined" in stored["align"]
    assert "backward_jac:forward_cov_combined" not in stored["align"]


def test_silent_units_are_zero_for_every_test_image(stored, data):
    images, _ = images_of(data)["test"]
    expected = [(h == 0).all(0) for h in network_of(stored)(images)[0]]
    assert [units.tolist() for units in stored["silent"]] == [units.tolist() for units in expected]
    assert stored["silent"][0].nonzero().flatten().tolist() == [1, 4]


def test_units_that_never_fire_are_those_dead_upstream(stored):
    """So that tables tell how many there are: `dead` of forward_cov."""
    for silent, modules in zip(stored["silent"], stored["modules"]["forward_cov"], strict=True):
        assert (modules["clusters"].sum(1) == 0).tolist() == silent.tolist()


def test_each_column_of_the_tables_is_filled_by_what_evaluation_stores(complete, tmp_path):
    (tmp_path / "complete.ckpt").write_bytes(complete)
    metrics = [
        *analysis.module_metrics(analysis.MODULE_FIELDS, layers="*"),
        *analysis.align_metrics(analysis.ALIGN_FIELDS, layers="*"),
        *analysis.lesion_metrics(analysis.LESION_FIELDS, layers="*"),
    ]
    table = analysis.table_of([({}, tmp_path / "complete.ckpt")], metrics)
    assert [name for name in table if table[name].isna().all()] == []


def test_a_channel_is_silent_where_it_is_zero_everywhere():
    """One that fires in a single image, at a single location, does not count as silent."""

    class Model(torch.nn.Module):
        def forward(self, x):
            h = torch.zeros(len(x), 3, 2, 2)
            h[:, 1, 1, 0] = (x[:, 0, 0, 0] > 0.9).float()
            h[:, 2] = -x[:, 0]
            return [h], None

    images = torch.zeros(20, 1, 2, 2, dtype=torch.uint8)
    images[12] = 255
    split = datasets.Split(images, torch.zeros(20, dtype=torch.int64), torch.arange(20))
    assert [units.tolist() for units in steps.silent_units(Model(), split)] == [[True, False, False]]


def same_modules(a, b):
    assert a.keys() >= b.keys()
    for key, value in b.items():
        assert torch.equal(a[key], value) if torch.is_tensor(value) else a[key] == value or math.isnan(value), key


@pytest.mark.parametrize("method", ["forward_cov", "backward_jac_norm", "forward_jac_combined"])
def test_modules_are_those_of_each_matrix_with_a_seed_of_its_own(stored, method):
    matrices = steps.in_layers(stored["assoc"][method])
    signs = steps.in_layers(stored["assoc_sign"][method.replace("_norm", "")])
    for layer, (adj, sign) in enumerate(zip(matrices, signs, strict=True)):
        found = find_modules(adj, sign=sign, seed=steps.stream(0, method, layer), null_draws=2)
        same_modules(stored["modules"][method][layer], found)


def test_every_matrix_is_held_against_both_nulls(stored):
    """Raw, normalized and combined ones alike."""
    assert len(stored["modules"]) == 2 * len(associations.METHODS)
    for layers in stored["modules"].values():
        for layer in layers:
            assert math.isfinite(layer["null_mean"]) and math.isfinite(layer["rotation_null_mean"])
            assert layer["p"] > 0 and layer["rotation_p"] > 0 and layer["version"] == MODULES_VERSION


def test_seeds_differ_by_matrix_and_stay_what_they_are():
    assert steps.stream(0, "forward_cov", 1) == 2661700267
    assert len({steps.stream(*words) for words in ((0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1))}) == 4


def test_scores_without_silent_units_are_those_of_the_smaller_matrix(stored):
    for method, layers in stored["modules"].items():
        for layer, modules in enumerate(layers):
            found = modules["score_without_silent"]
            if method.startswith("forward"):
                assert math.isnan(found)
                continue
            silent = torch.cat(stored["silent"]) if method.endswith("combined") else stored["silent"][layer]
            live = (~silent).nonzero().flatten()
            smaller = steps.in_layers(stored["assoc"][method])[layer][live][:, live]
            options = {"seed": steps.stream(0, method, layer), "null_draws": 0}
            assert found == find_modules(smaller, **options)["score"]
    assert (
        stored["modules"]["backward_jac_norm"][0]["score_without_silent"]
        != stored["modules"]["backward_jac_norm"][0]["score"]
    )


def test_where_no_unit_fires_there_is_no_score_of_those_that_do():
    assert math.isnan(steps.score_without(torch.ones(3, dtype=torch.bool), torch.eye(3), 0.5, {}))
    assert steps.score_without(torch.zeros(3, dtype=torch.bool), torch.eye(3), 0.5, {}) == 0.5


def test_hyperparameters_that_a_file_lacks_are_those_of_the_specification():
    found = networks.hyperparameters({"hyper_parameters": {"dataset": "mnist", "run": 3, "model_args": None}})
    assert found == {
        "dataset": "mnist", "task": "sup", "run": 3, "seed": 286436726, "drop": 0.0, "train_val_split": 0.9,
        "model_args": {},
    }  # fmt: skip


def test_alignments_are_those_of_the_modules(stored):
    assert len(stored["align"]) == 2 * len(associations.PAIRS)
    for pair in ("backward_jac:forward_cov", "forward_cov:forward_cov_norm"):
        a, b = pair.split(":")
        for layer, found in enumerate(stored["align"][pair]):
            seed = steps.stream(0, pair, layer)
            same_modules(found, align_modules(stored["modules"][a][layer], stored["modules"][b][layer], seed=seed))


def test_convolutional_networks_are_evaluated_in_their_own_batches(tmp_path, data):
    args = {"channels": [8] * 4, "input_shape": list(COLOURED), "num_classes": CLASSES}
    path = write_network(tmp_path / "a.ckpt", data, dataset="coloured", model_args=args, train_val_split=0.5)
    stored = evaluate(path, data, "--modularity-metrics", "forward_cov,forward_jac", "--jac-directions", "2")
    images, _ = images_of(data, "coloured")["test"]
    h = network_of(stored)(images)[0][2].detach()  # (n, 8, 16, 16)
    centred = h - h.mean(0)
    close(stored["assoc"]["forward_cov"][2], (torch.einsum("nixy,njxy->ij", centred, centred) / h[:, 0].numel()).abs())
    assert [len(matrix) for matrix in stored["assoc"]["forward_cov"]] == [8, 8, 8, 8, 8, 16]
    assert stored["assoc_stderr"]["forward_jac"][0].max() > 0 == stored["assoc_stderr"]["forward_jac"][5].max()
    assert not any(units.any() for units in stored["silent"][1:5])  # no ReLU of their own

    made, before = stored["assoc_made_with"], stored["assoc"]
    assert made["forward_jac"] == {"version": associations.ASSOC_VERSION, "jac_directions": 2, "seed": 0}
    stored = evaluate(path, data, "--modularity-metrics", "forward_cov", "--jac-directions", "4")
    assert stored["assoc_made_with"] == made
    for words, record in (
        (["--jac-directions", "4"], {"jac_directions": 4, "seed": 0}),
        (["--seed", "1"], {"seed": 1}),
    ):
        stored = evaluate(path, data, "--modularity-metrics", "forward_cov,forward_jac", "--skip-alignment", *words)
        assert stored["assoc_made_with"]["forward_jac"].items() >= record.items()
        assert not torch.equal(stored["assoc"]["forward_jac"][0], before["forward_jac"][0])
        assert torch.equal(stored["assoc"]["forward_cov"][0], before["forward_cov"][0])
        assert torch.equal(
            stored["modules"]["forward_jac"][0]["adj"].bool(),
            stored["assoc"]["forward_jac"][0].bool() ^ torch.eye(8).bool(),
        )
        before = stored["assoc"]


# ---- options --------------------------------------------------------------------------------------------------------


def marked(path, kind, name):
    """Marks a stored result, so that making it again is seen."""
    stored = checkpoints.read(path)
    stored[kind][name][0]["marker"] = 1.0
    checkpoints.write(path, stored)


def is_marked(stored, kind, name):
    return "marker" in stored[kind][name][0]


def test_a_second_evaluation_changes_nothing_and_says_so(path, data, capsys):
    evaluate(path, data)
    before, _ = path.read_bytes(), capsys.readouterr()
    evaluate(path, data)
    assert path.read_bytes() == before
    assert capsys.readouterr().out == f"{path}: complete; nothing to do\n"


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--null-draws", "3"], "null_draws", 3),
        (["--target-entropy", "0.4"], "target_entropy", 0.4),
        (["--search", "leiden"], "search", "leiden"),
        (["--seed", "7"], "seed", steps.stream(7, "forward_cov", 0)),
    ],
)
def test_an_option_given_later_makes_the_modules_again(path, data, words, field, value):
    before = evaluate(path, data)["modules"]["forward_cov"][0]
    marked(path, "align", "backward_jac:forward_cov")
    after = evaluate(path, data, *words)
    found = after["modules"]["forward_cov"][0]
    assert found[field] == value != before[field]
    options = {"seed": steps.stream(0, "forward_cov", 0), "null_draws": 2, field: value}
    same_modules(
        found, find_modules(after["assoc"]["forward_cov"][0], sign=after["assoc_sign"]["forward_cov"][0], **options)
    )
    assert not is_marked(after, "align", "backward_jac:forward_cov")
    changed = {"null_draws": "null_std", "search": "score"}.get(field, "mc_scores")
    assert not torch.equal(torch.as_tensor(found[changed]), torch.as_tensor(before[changed])) or field == "search"


def test_null_draws_given_later_give_z(path, data):
    assert math.isnan(evaluate(path, data, "--null-draws", "0")["modules"]["forward_cov"][0]["z"])
    assert math.isfinite(evaluate(path, data, "--null-draws", "2")["modules"]["forward_cov"][0]["z"])


def test_a_seed_given_later_makes_the_alignments_again(path, data):
    before = evaluate(path, data)["align"]["backward_jac:forward_cov"][0]
    after = evaluate(path, data, "--seed", "1")["align"]["backward_jac:forward_cov"][0]
    assert before["seed"] == steps.stream(0, "backward_jac:forward_cov", 0)
    assert after["seed"] == steps.stream(1, "backward_jac:forward_cov", 0)
    assert not torch.equal(before["null"], after["null"])


@pytest.mark.parametrize("words", [["--seed", "3"], ["--jac-directions", "4"]])
def test_exact_associations_stay_whatever_the_directions(path, data, words):
    evaluate(path, data, "--skip-alignment", "--modularity-metrics", "forward_jac")
    stored = checkpoints.read(path)
    stored["assoc"]["forward_jac"][0][0, 0] += 1
    checkpoints.write(path, stored)
    after = evaluate(path, data, "--skip-alignment", "--modularity-metrics", "forward_jac", *words)
    assert torch.equal(after["assoc"]["forward_jac"][0], stored["assoc"]["forward_jac"][0])


def test_methods_that_share_random_directions_are_made_again_together():
    """Whichever are asked for: they share their signs."""
    both = ["forward_jac", "forward_jac_norm"]
    made = {"version": associations.ASSOC_VERSION, "jac_directions": 8, "seed": 0}
    stored = {kind: {method: [torch.eye(2)] for method in both} for kind in ("assoc", "assoc_stderr")}
    stored["assoc_made_with"] = {method: made for method in both}
    for directions, missing in (("4", set(both)), ("8", set())):
        args = arguments("--modularity-metrics", "forward_jac_norm", "--jac-directions", directions)
        assert set(steps.missing_associations(stored, args)) == missing


def test_some_methods_first_and_all_later(path, data):
    first = evaluate(path, data, "--modularity-metrics", "forward_cov")
    assert first["assoc"].keys() == first["modules"].keys() == {"forward_cov"} and len(first["align"]) == 1
    marked(path, "modules", "forward_cov")
    marked(path, "align", "forward_cov:forward_cov")
    later = evaluate(path, data)
    assert later["assoc"].keys() == later["modules"].keys() == set(METHODS)
    assert torch.equal(later["assoc"]["forward_cov"][0], first["assoc"]["forward_cov"][0])
    assert later["assoc_sign"].keys() == set(METHODS)
    assert is_marked(later, "modules", "forward_cov") and is_marked(later, "align", "forward_cov:forward_cov")
    assert len(later["align"]) == 3


def test_combined_matrices_given_later_leave_the_layers_alone(path, data):
    first = evaluate(path, data)
    marked(path, "modules", "forward_cov")
    later = evaluate(path, data, "--modularity-combined")
    assert is_marked(later, "modules", "forward_cov") and "forward_cov_combined" in later["modules"]
    assert all(
        torch.equal(a, b) for a, b in zip(first["assoc"]["forward_cov"], later["assoc"]["forward_cov"], strict=True)
    )


def test_what_is_skipped_is_not_there(path, data):
    basics = evaluate(path, data, "--skip-modularity")
    assert basics.keys() & {"assoc", "modules", "align", "silent"} == set()
    some = evaluate(path, data, "--skip-alignment")
    assert some["modules"] and not some.get("align")
    assert evaluate(path, data)["align"]


def test_a_quantity_is_one_step_more_and_any_table_has_it(path, data, monkeypatch):
    def missing(stored, args):
        return [] if "widest" in stored else ["widest"]

    def add(stored, args, names):
        stored["widest"] = max(CHANNELS)

    monkeypatch.setattr(evaluation, "steps_of", lambda args: [*steps.steps_of(args), ("width", missing, add)])
    evaluate(path, data, "--skip-modularity")
    table = analysis.load_checkpoints([path], ["widest"])
    assert table["widest"].tolist() == [max(CHANNELS)]


def test_only_the_metrics_asked_for_are_computed(path, data):
    stored = evaluate(path, data, "--skip-modularity", "--metrics", "l1_norm,test_acc")
    assert stored.keys() & set(evaluation.BASIC_METRICS) == {"l1_norm", "test_acc", "test_loss"}


@pytest.mark.parametrize(
    ("kind", "name", "version"),
    [("modules", "forward_cov", MODULES_VERSION), ("align", "backward_jac:forward_cov", ALIGN_VERSION)],
)
def test_older_versions_are_made_again_and_newer_ones_kept(path, data, kind, name, version):
    evaluate(path, data)
    for other, kept in ((version - 1, False), (3, False), (version + 1, True)):
        stored = checkpoints.read(path)
        stored[kind][name][0] |= {"version": other, "marker": 1.0}
        checkpoints.write(path, stored)
        assert is_marked(evaluate(path, data), kind, name) == kept


def test_older_associations_take_their_modules_with_them(path, data):
    evaluate(path, data)
    stored = checkpoints.read(path)
    stored["assoc_made_with"]["forward_cov"]["version"] -= 1
    stored["assoc"]["forward_cov"] = [2 * matrix for matrix in stored["assoc"]["forward_cov"]]
    checkpoints.write(path, stored)
    marked(path, "modules", "forward_cov")
    marked(path, "modules", "backward_jac")
    after = evaluate(path, data)
    assert not torch.equal(after["assoc"]["forward_cov"][0], stored["assoc"]["forward_cov"][0])
    assert not is_marked(after, "modules", "forward_cov") and is_marked(after, "modules", "backward_jac")


@pytest.mark.parametrize("kind", ["modules", "lesions"])
def test_a_layer_that_lacks_them_gets_them(path, data, kind):
    evaluate(path, data)
    stored = checkpoints.read(path)
    del stored[kind]["forward_cov"][1]
    checkpoints.write(path, stored)
    assert len(evaluate(path, data)[kind]["forward_cov"]) == 2


@pytest.mark.parametrize("kind", ["modules", "align", "assoc", "silent", "lesions", "test_loss"])
def test_results_that_are_none_are_made(path, data, kind):
    expected = evaluate(path, data)
    checkpoints.write(path, expected | {kind: None})
    after = evaluate(path, data)
    assert type(after[kind]) is type(expected[kind]) and after[kind]


@pytest.mark.parametrize(
    "words",
    [
        ["--null-draws", "-1"],
        ["--null-draws", "x"],
        ["--target-entropy", "nan"],
        ["--target-entropy", "0"],
        ["--target-entropy", "inf"],
        ["--jac-directions", "3"],
        ["--jac-directions", "0"],
        ["--seed", "-1"],
        ["--seed", str(2**62)],
        ["--null-draws", "9" * 20],
        ["--lesion-images", "9" * 20],
        ["--search", "nonsense"],
        ["--metrics", "nonsense"],
        ["--metrics", ","],
        ["--modularity-metrics", "forward"],
    ],
)
def test_options_without_a_meaning_are_refused_in_one_line(words, capsys):
    with pytest.raises(SystemExit) as error:
        evaluation.parser().parse_args(["--ckpt-file", "x", *words])
    assert error.value.code == 2 and words[0] in capsys.readouterr().err.splitlines()[-1]


# ---- guards ---------------------------------------------------------------------------------------------------------


def refusal(*words):
    """The one line with which an evaluation is refused."""
    with pytest.raises(UserError) as error:
        evaluation.main(arguments(*words))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_other_data_than_trained_on_is_refused(path, tmp_path, data):
    other = write_images(tmp_path / "other" / "tiny", SHAPE, train=20, test=9, seed=1)
    before = path.read_bytes()
    told = refusal("--ckpt-file", path, "--data-dir", other)
    assert str(path) in told and str(other) in told and "trained on other data" in told
    assert path.read_bytes() == before
    evaluate(path, data)
    evaluate(path, other, "--null-draws", "3", "--skip-lesions")  # clusters stored matrices again: needs no data


def test_a_copy_of_the_data_is_the_same_data(path, tmp_path):
    copy = write_images(tmp_path / "copy" / "tiny", SHAPE, train=20, test=9)
    assert evaluate(path, copy, "--skip-modularity")["test_acc"] >= 0


@pytest.mark.parametrize(("factor", "fine"), [(1.001, True), (1.05, False), (0.9, False)])
def test_a_val_loss_other_than_in_training_is_refused(path, tmp_path, data, factor, fine):
    loss = evaluate(path, data, "--skip-modularity")["val_loss"]
    again = write_network(tmp_path / "again.ckpt", silent=[1, 4], trained_val_loss=loss * factor)
    if fine:
        assert evaluate(again, data)["val_loss"] == loss
        return
    told = refusal("--ckpt-file", again, "--data-dir", data)
    assert str(again) in told and f"{loss * factor:.6g} in training" in told
    assert "val_loss" not in checkpoints.read(again)


def test_files_of_other_programs_may_have_split_otherwise(tmp_path, data):
    path = write_network(tmp_path / "a.ckpt", trained_val_loss=9.0, workers=2)
    assert evaluate(path, data, "--skip-modularity")["val_loss"] > 0


def test_a_run_that_is_being_trained_is_refused(tmp_path, data):
    run = write_run(tmp_path / "run", data=data)
    link = tmp_path / "link.ckpt"
    link.symlink_to(run / "weights" / "last.ckpt")
    with files.locked(run):
        assert "being trained" in refusal("--run-dir", run, "--data-dir", data)
        assert "being trained" in refusal("--ckpt-file", link, "--data-dir", data)
        assert "being trained" in refusal("--ckpt-file", run / "weights" / "last.ckpt", "--data-dir", data)
    evaluation.main(arguments("--run-dir", run, "--data-dir", data, "--skip-modularity"))


def test_what_another_process_wrote_while_this_one_waited_for_its_lock_is_kept(path, data, monkeypatch):
    @contextlib.contextmanager
    def locked(folder):
        assert folder == path.parent
        checkpoints.write(path, checkpoints.read(path) | {"l1_norm": 3.0})
        yield True

    monkeypatch.setattr(evaluation, "locked", locked)
    stored = evaluate(path, data, "--skip-modularity")
    assert stored["l1_norm"] == 3.0 and stored["l2_norm"] > 0


def test_what_was_computed_before_a_failure_is_kept(path, data, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(steps, "add_modules", broken)
    refusal("--ckpt-file", path, "--data-dir", data)
    stored = checkpoints.read(path)
    assert stored["test_loss"] > 0 and stored["assoc"].keys() == set(METHODS) and "modules" not in stored


def test_a_run_without_a_record_is_evaluated(tmp_path, data):
    """As other programs leave them."""
    run = write_run(tmp_path / "run", data=data)
    (run / "run.json").unlink()
    evaluation.main(arguments("--run-dir", run, "--data-dir", data, "--skip-modularity"))
    assert checkpoints.read(run / "weights" / "best.ckpt")["test_loss"] > 0


def test_an_unfinished_run_is_refused(tmp_path, data):
    run = write_run(tmp_path / "run", finished=False, data=data)
    told = refusal("--run-dir", run, "--data-dir", data)
    assert "not finished" in told and str(run) in told
    assert "test_loss" not in checkpoints.read(run / "weights" / "last.ckpt")


@pytest.mark.parametrize("changed", [{"l2": 0.1}, {"seed": 1}, {"model_args": {}}, {"data": "another"}, {"epoch": 9}])
def test_a_checkpoint_of_another_run_is_refused(tmp_path, data, changed):
    run = write_run(tmp_path / "run", data=data)
    path = run / "weights" / "last.ckpt"
    stored = checkpoints.read(path)
    for name, value in changed.items():
        (stored if name in ("data", "epoch") else stored["hyper_parameters"])[name] = value
    checkpoints.write(path, stored)
    if "data" in changed:
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(record | {"data": datasets.fingerprint("tiny", data)}))
    assert "another run" in (told := refusal("--run-dir", run, "--data-dir", data)) and str(path) in told
    assert "val_loss" not in checkpoints.read(run / "weights" / "epoch=0-step=9.ckpt")


def test_an_untrained_network_of_another_run_is_refused(tmp_path, data):
    path = write_network(tmp_path / "run" / "dummy.ckpt", data, run=1000)
    h = checkpoints.read(path)["hyper_parameters"] | {"untrained": True}
    record = {"hyperparameters": h, "finished": True, "epochs": 0, "early_stopped": False}
    (path.parent / "run.json").write_text(json.dumps(record))
    words = ["--run-dir", path.parent, "--data-dir", data, "--skip-modularity"]
    write_network(path, data, run=1001)
    assert f"{path} belongs to another run (run 1001, not 1000)" in refusal(*words)
    write_network(path, data, run=1000)
    evaluation.main(arguments(*words))
    assert checkpoints.read(path)["test_loss"] > 0


@pytest.mark.parametrize("record", ["[]", "null", "{", '{"finished": true}'])
def test_a_record_of_another_form_is_one_line(tmp_path, data, record):
    run = write_run(tmp_path / "run", data=data)
    (run / "run.json").write_text(record)
    assert str(run / "run.json") in refusal("--run-dir", run, "--data-dir", data)


INVALID = {
    "drop": (math.nan, -0.1, 1.0, "much"),
    "seed": (-1, 2**70, 0.5, "x", True),
    "train_val_split": (0, 1.0, math.nan, "half"),
    "run": (-1, 1.5, "first"),
    "dataset": (3, "nowhere"),
    "model_args": ([], {"channels": [10**12]}, {"depth": 3}),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in INVALID.items() for value in values])
def test_an_invalid_hyperparameter_in_a_file_is_one_line(path, data, name, value):
    stored = checkpoints.read(path)
    stored["hyper_parameters"][name] = value
    checkpoints.write(path, stored)
    told = refusal("--ckpt-file", path, "--data-dir", data)
    assert str(path) in told and "line" not in told and len(told) < 400


@pytest.mark.parametrize("lacking", ["hyper_parameters", "state_dict"])
@pytest.mark.parametrize("value", [None, [], {}])
def test_a_file_without_what_it_must_have_is_one_line(path, data, lacking, value):
    stored = checkpoints.read(path) | {lacking: value}
    if value is None:
        del stored[lacking]
    checkpoints.write(path, stored)
    assert str(path) in refusal("--ckpt-file", path, "--data-dir", data)


def test_weights_that_are_no_numbers_are_refused(path, data):
    stored = checkpoints.read(path)
    stored["state_dict"]["model.proj.weight"][0, 0] = math.nan
    checkpoints.write(path, stored)
    assert "proj.weight" in refusal("--ckpt-file", path, "--data-dir", data)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ckpt-file", "README.md"], "README.md: damaged, or not a checkpoint"),
        (["--ckpt-file", "nothing.ckpt"], "nothing.ckpt: no such file"),
        (["--run-dir", "tests"], "tests: no checkpoint in it"),
        (["--run-dir", "nowhere"], "nowhere: no such folder"),
        ([], "nothing to evaluate"),
    ],
)
def test_mistakes_get_one_clear_line(words, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert message in refusal(*words)


def test_a_mistake_on_the_command_line_ends_with_one_line_and_status_1(program):
    assert program("eval.py", "--ckpt-file", "nothing.ckpt") == (1, "", "eval.py: nothing.ckpt: no such file\n")


METRICS = ["train_acc", "val_acc", "test_acc", "train_loss", "val_loss", "test_loss"]
METRICS += ["l1_norm", "l2_norm", "nuc_norm", "sparsity"]
EIGHT = {"forward_cov", "forward_cov_norm", "forward_jac", "forward_jac_norm"}
EIGHT |= {"backward_jac", "backward_jac_norm", "backward_hess", "backward_hess_norm"}
CHAIN = {"steps": 5000, "target_entropy": 0.15}


def test_the_defaults_of_the_options_are_those_of_the_specification():
    options = vars(evaluation.parser().parse_args([]))
    device, methods = options.pop("device"), options.pop("methods")
    assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert set(methods) == EIGHT and len(methods) == 8
    assert options == {
        "run_dir": [], "ckpt_file": [], "data_dir": "data", "metrics": METRICS, "skip_modularity": False,
        "modularity_combined": False, "search": "refined", "skip_alignment": False, "target_entropy": 0.15,
        "null_draws": 20, "jac_directions": 8, "skip_lesions": False, "lesion_images": None, "lesion_draws": None,
        "seed": 0, "progress": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (modularity.find_modules, CHAIN | {"sign": None, "search": "refined", "seed": 0, "null_draws": 20}),
        (modularity.find_clusters, CHAIN | {"search": "refined", "seed": 0}),
        (modularity.monte_carlo_modularity, CHAIN | {"clusters": None, "max_clusters": None, "seed": None}),
        (alignment_null, {"shuffles": 5000, "seed": 0}),
        (align_modules, {"shuffles": 5000, "seed": 0}),
    ],
)
def test_the_defaults_of_the_library_are_those_of_the_specification(function, expected):
    parameters = inspect.signature(function).parameters.items()
    assert {name: p.default for name, p in parameters if p.default is not inspect.Parameter.empty} == expected


# ---- runs and batches -----------------------------------------------------------------------------------------------


def test_the_best_checkpoint_of_a_run_is_evaluated_fully_and_the_others_briefly(tmp_path, data):
    """`last` is never the best one, however low its loss."""
    names = [f"epoch={i}-step={i}" for i in range(4)] + ["last"]
    run = write_run(tmp_path / "run", names, data=data)
    last = run / "weights" / "last.ckpt"
    checkpoints.write(last, checkpoints.read(last) | {"val_loss": 0.001, "val_acc": 1.0})
    evaluation.main(arguments("--run-dir", run, "--data-dir", data))
    stored = {name: checkpoints.read(run / "weights" / f"{name}.ckpt") for name in names}
    best = min(names[:-1], key=lambda name: stored[name]["val_loss"])
    assert best != names[0] and os.readlink(run / "weights" / "best.ckpt") == f"{best}.ckpt"
    assert [name for name in names if "modules" in stored[name]] == [best]
    assert all(set(evaluation.BASIC_METRICS) <= stored[name].keys() for name in names)


def test_a_loss_that_is_no_number_is_never_the_best(tmp_path, data):
    run = write_run(tmp_path / "run", data=data)
    path = run / "weights" / "epoch=0-step=9.ckpt"
    checkpoints.write(path, checkpoints.read(path) | {"val_loss": math.nan, "val_acc": 0.5})
    evaluation.main(arguments("--run-dir", run, "--data-dir", data, "--skip-modularity"))
    assert os.readlink(run / "weights" / "best.ckpt") == "epoch=1-step=18.ckpt"


def test_a_run_needs_its_val_losses_whatever_the_metrics(tmp_path, data):
    run = write_run(tmp_path / "run", data=data)
    evaluation.main(arguments("--run-dir", run, "--data-dir", data, "--metrics", "l1_norm", "--skip-modularity"))
    stored = checkpoints.read(run / "weights" / "best.ckpt")
    assert stored["l1_norm"] > 0 and stored["val_loss"] > 0 and "test_loss" not in stored


def test_an_untrained_network_is_evaluated_fully(tmp_path, data):
    write_network(tmp_path / "run" / "dummy.ckpt", data, run=1000)
    evaluation.main(arguments("--run-dir", tmp_path / "run", "--data-dir", data))
    assert checkpoints.read(tmp_path / "run" / "dummy.ckpt")["align"]


def test_a_dangling_best_is_repaired(tmp_path, data):
    run = write_run(tmp_path / "run", data=data)
    (run / "weights" / "best.ckpt").symlink_to("gone.ckpt")
    evaluation.main(arguments("--ckpt-file", run / "weights" / "best.ckpt", "--data-dir", data, "--skip-modularity"))
    assert "test_loss" in checkpoints.read(run / "weights" / "best.ckpt")


def test_one_bad_run_does_not_end_a_batch(tmp_path, data, monkeypatch, capsys):
    """Neither a damaged file, nor diverged weights, nor a fault in the program; each is named with its file."""
    paths = [write_network(tmp_path / f"{i}.ckpt", data, weights=i) for i in range(6)]
    paths[1].write_bytes(paths[1].read_bytes()[:-100])
    stored = checkpoints.read(paths[2])
    stored["state_dict"]["model.proj.bias"][0] = math.inf
    checkpoints.write(paths[2], stored)
    add_basics, faults = steps.add_basics, {3: ZeroDivisionError("by\nnought"), 4: MemoryError()}

    def faulty(stored, args, missing):
        for i, error in faults.items():
            if torch.equal(
                stored["state_dict"]["model.proj.bias"], checkpoints.read(paths[i])["state_dict"]["model.proj.bias"]
            ):
                raise error
        add_basics(stored, args, missing)

    monkeypatch.setattr(steps, "add_basics", faulty)
    told = refusal("--ckpt-file", *paths, "--data-dir", data, "--skip-modularity")
    assert told == "4 of 6 could not be evaluated"
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].strip() for line in lines] == [str(paths[i]) for i in (1, 2, 3, 4)]
    assert "ZeroDivisionError: by nought (test_eval.py, line" in lines[2]
    assert all("test_loss" in checkpoints.read(paths[i]) for i in (0, 5))


def test_errors_about_data_name_the_checkpoint_too(path, tmp_path):
    told = refusal("--ckpt-file", path, "--data-dir", tmp_path / "empty")
    assert str(path) in told and str(tmp_path / "empty") in told


def test_other_things_among_the_runs_are_passed_over(tmp_path, data, capsys):
    run = write_run(tmp_path / "run", data=data)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "then-eval-1.out").write_text("")
    words = ["--data-dir", data, "--skip-modularity"]
    evaluation.main(arguments("--run-dir", *sorted(tmp_path.iterdir()), *words))
    assert "test_loss" in checkpoints.read(run / "weights" / "best.ckpt")
    assert f"{tmp_path / 'jobs'}: not a run; passed over" in capsys.readouterr().out
    assert "1 of 2" in refusal("--run-dir", run, tmp_path / "missing", *words)


def test_a_folder_that_may_not_be_read_is_one_line(tmp_path, data, monkeypatch):
    run = write_run(tmp_path / "run", data=data)

    def denied(self):
        raise PermissionError(13, "Permission denied", str(run))

    monkeypatch.setattr(Path, "exists", denied)
    assert refusal("--run-dir", run, "--data-dir", data) == f"{run}: Permission denied"


def test_the_data_set_is_held_once_whatever_the_seeds(tmp_path, data, monkeypatch):
    """On a GPU each would be a copy; and data that has changed is read again."""
    made, real = [], datasets.splits
    monkeypatch.setattr(datasets, "splits", lambda *words: made.append(words[2]) or real(*words))
    networks._splits.cache_clear()
    for run in (0, 1, 2):
        evaluate(write_network(tmp_path / f"{run}.ckpt", run=run, seed=None), data)
    assert made == [grids.BASE_SEED + run for run in (0, 1, 2)]
    assert networks._splits.cache_info().currsize == 1
    folder = write_images(tmp_path / "changing" / "tiny", SHAPE, train=20, test=9)
    first = evaluate(write_network(tmp_path / "a.ckpt"), folder, "--skip-modularity")
    write_images(tmp_path / "changing" / "tiny", SHAPE, train=20, test=9, seed=2)
    assert evaluate(write_network(tmp_path / "b.ckpt"), folder, "--skip-modularity")["test_loss"] != first["test_loss"]


def test_a_record_of_a_run_in_json_is_left_alone(tmp_path, data):
    run = write_run(tmp_path / "run", data=data)
    before = json.loads((run / "run.json").read_text())
    evaluation.main(arguments("--run-dir", run, "--data-dir", data, "--skip-modularity"))
    assert json.loads((run / "run.json").read_text()) == before
