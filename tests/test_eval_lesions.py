"""eval.py's lesions: what is stored, of which images, with which options, and when it is made again."""

import math

import pytest
import torch
from evaluated import CLASSES, COLOURED, SHAPE, arguments, evaluate, images_of, network_of, write_images, write_network

import eval as evaluation
from lesions import LESIONS_VERSION, find_lesions, lesion_effects
from study import checkpoints
from study import evaluation as steps

METHODS = ("backward_jac", "forward_cov")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_images(folder / "tiny", SHAPE, train=20, test=9)
    return write_images(folder / "coloured", COLOURED, train=4, test=4)


@pytest.fixture
def path(tmp_path, data):
    return write_network(tmp_path / "best.ckpt", data, silent=[1, 4])


def same(a, b):
    assert a.keys() == b.keys()
    for key, value in a.items():
        if isinstance(value, torch.Tensor):
            assert torch.allclose(value, b[key], atol=1e-5), key
        elif isinstance(value, float):
            assert value == pytest.approx(b[key], abs=1e-3, nan_ok=True), key
        else:
            assert value == b[key], key


def test_lesions_are_those_of_the_modules_over_the_first_test_images_of_each_class(path, data):
    stored = evaluate(path, data, "--lesion-images", "4", "--lesion-draws", "3")
    images, labels = images_of(data)["test"]
    first = torch.cat([(labels == k).nonzero()[:4, 0] for k in range(CLASSES)])
    assert stored["lesions"].keys() == set(METHODS)
    for layer in range(2):
        clusterings = {method: stored["modules"][method][layer]["clusters"] for method in METHODS}
        seed = steps.stream(0, "lesions", layer)
        found = find_lesions(
            network_of(stored), images[first], labels[first], clusterings, layer=layer, draws=3, seed=seed
        )
        made_with = {"images": 4, "draws": 3, "seed": seed}
        for method in METHODS:
            same(stored["lesions"][method][layer], found[method] | made_with)
            assert stored["lesions"][method][layer]["version"] == LESIONS_VERSION
    clusters = stored["modules"]["forward_cov"][1]["clusters"]
    slow = lesion_effects(network_of(stored), images[first], labels[first], clusters, layer=1)
    assert torch.allclose(stored["lesions"]["forward_cov"][1]["zero_effects"], slow["zero"].float(), atol=1e-5)


def test_a_class_with_fewer_images_than_asked_for_gives_all_it_has(path, data):
    found = evaluate(path, data)["lesions"]["forward_cov"][0]
    assert found["images"] == 200 and found["images_per_class"].tolist() == [9] * CLASSES


def test_defaults_are_as_many_as_their_time_allows(path, data):
    args = evaluation.parser().parse_args(["--ckpt-file", str(path)])
    stored = {"modules": {"forward_cov": [{}, {}]}, "state_dict": {"w": torch.zeros(2, 2)}}
    dense = {"images": 200, "draws": 100}
    assert [o | {"seed": 0} for o in steps.lesion_options(stored, args, "forward_cov")] == [dense | {"seed": 0}] * 2
    stored["state_dict"]["w"] = torch.zeros(2, 2, 3, 3)
    (first, second) = steps.lesion_options(stored, args, "forward_cov")
    assert (first["images"], first["draws"]) == (10, 10)
    assert first["seed"] == steps.stream(0, "lesions", 0) != second["seed"]


def test_convolutional_networks_have_lesions_of_their_channels(tmp_path, data):
    args = {"channels": [4] * 4, "input_shape": list(COLOURED), "num_classes": CLASSES}
    path = write_network(tmp_path / "a.ckpt", data, dataset="coloured", model_args=args, train_val_split=0.5)
    stored = evaluate(path, data, "--modularity-metrics", "forward_cov")
    images, labels = images_of(data, "coloured")["test"]
    for layer in (0, 4):
        clusters = stored["modules"]["forward_cov"][layer]["clusters"]
        effects = lesion_effects(network_of(stored), images, labels, clusters, layer=layer)
        found = stored["lesions"]["forward_cov"][layer]
        assert torch.allclose(found["mean_effects"], effects["mean"].float(), atol=1e-5)
        assert len(stored["lesions"]["forward_cov"]) == 6


# ---- when they are made ---------------------------------------------------------------------------------------------


def marked(path, method):
    stored = checkpoints.read(path)
    stored["lesions"][method][0]["marker"] = 1.0
    checkpoints.write(path, stored)


def is_marked(stored, method):
    return "marker" in stored["lesions"][method][0]


def test_nothing_is_done_twice(path, data):
    evaluate(path, data)
    before = path.read_bytes()
    evaluate(path, data)
    assert path.read_bytes() == before


def test_they_may_be_skipped_and_come_later(path, data):
    assert "lesions" not in evaluate(path, data, "--skip-lesions")
    assert evaluate(path, data)["lesions"].keys() == set(METHODS)
    assert evaluate(path, data, "--skip-lesions")["lesions"].keys() == set(METHODS)


def test_some_methods_first_and_all_later_give_what_all_at_once_would(path, tmp_path, data):
    first = evaluate(path, data, "--modularity-metrics", "forward_cov")
    assert first["lesions"].keys() == {"forward_cov"}
    marked(path, "forward_cov")
    later = evaluate(path, data)
    assert is_marked(later, "forward_cov")
    together = evaluate(write_network(tmp_path / "other.ckpt", data, silent=[1, 4]), data)
    same(later["lesions"]["backward_jac"][1], together["lesions"]["backward_jac"][1])


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--lesion-draws", "3"], "draws", 3),
        (["--lesion-images", "2"], "images", 2),
        (["--seed", "7"], "seed", steps.stream(7, "lesions", 0)),
    ],
)
def test_an_option_given_later_makes_them_again(path, data, words, field, value):
    before = evaluate(path, data)["lesions"]["forward_cov"][0]
    after = evaluate(path, data, *words)["lesions"]["forward_cov"][0]
    assert after[field] == value != before[field]
    assert after["mean_importance_null_mean"] != before["mean_importance_null_mean"]
    assert torch.equal(after["mean_effects"], before["mean_effects"]) == (field != "images")


def test_older_versions_are_made_again_and_newer_ones_kept(path, data):
    evaluate(path, data)
    for version, kept in ((LESIONS_VERSION - 1, False), (LESIONS_VERSION + 1, True)):
        stored = checkpoints.read(path)
        stored["lesions"]["forward_cov"][0] |= {"version": version, "marker": 1.0}
        checkpoints.write(path, stored)
        assert is_marked(evaluate(path, data), "forward_cov") == kept


def test_clusters_that_are_replaced_take_their_lesions_with_them(path, data):
    evaluate(path, data)
    stored = checkpoints.read(path)
    stored["modules"]["forward_cov"][0]["version"] = 3
    checkpoints.write(path, stored)
    marked(path, "forward_cov")
    marked(path, "backward_jac")
    assert "forward_cov" not in evaluate(path, data, "--skip-lesions")["lesions"]
    after = evaluate(path, data)
    assert not is_marked(after, "forward_cov") and is_marked(after, "backward_jac")


def test_associations_that_are_replaced_take_them_too(path, data):
    evaluate(path, data)
    stored = checkpoints.read(path)
    stored["assoc_made_with"]["forward_cov"]["version"] -= 1
    checkpoints.write(path, stored)
    assert evaluate(path, data, "--skip-lesions")["lesions"].keys() == {"backward_jac"}


def test_combined_clusterings_have_none(path, data):
    stored = evaluate(path, data, "--modularity-combined")
    assert "forward_cov_combined" in stored["modules"] and stored["lesions"].keys() == set(METHODS)


def test_no_draws_give_no_null(path, data):
    found = evaluate(path, data, "--lesion-draws", "0")["lesions"]["forward_cov"][0]
    assert math.isfinite(found["mean_importance"]) and math.isnan(found["mean_importance_z"])


@pytest.mark.parametrize("words", [["--lesion-draws", "-1"], ["--lesion-images", "0"]])
def test_options_without_a_meaning_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        arguments("--ckpt-file", "x", *words)
    assert words[0] in capsys.readouterr().err.splitlines()[-1]
