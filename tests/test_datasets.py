"""Data sets: the table, splits, batches, and what is checked whatever the source."""

import shutil

import numpy as np
import pytest
import torch
from made_up_data import data_set_arrays, data_set_row, save_image

import eval as evaluation
import models
import train
from study import datasets, raw_files
from study import evaluation as steps
from study.cli import UserError


def ramp(n):
    """n images of 2×2 whose pixels tell which image and place they come from."""
    return torch.arange(4 * n, dtype=torch.uint8).view(n, 1, 2, 2)


# Splits and batches


def test_split_is_random_split_by_seed(folder):
    train_split, val, test = datasets.splits("cifar10", folder, seed=3, train_val_split=0.5)
    expected = torch.utils.data.random_split(range(6), [3, 3], torch.Generator().manual_seed(3))
    assert train_split.index.tolist() == expected[0].indices and val.index.tolist() == expected[1].indices
    assert test.index.tolist() == [0, 1, 2, 3]
    assert torch.equal(test.images, datasets.load("cifar10", folder)[2])
    other, _, _ = datasets.splits("cifar10", folder, seed=4, train_val_split=0.5)
    assert train_split.index.tolist() != other.index.tolist()


@pytest.mark.parametrize("share", [0, 1, -0.5, 1.5, float("nan"), 0.01, 0.99])
def test_splits_without_training_or_validation_images_are_refused(folder, share):
    with pytest.raises(UserError, match=r"train_val_split.*6 images"):
        datasets.splits("cifar10", folder, train_val_split=share)


def test_only_the_training_images_of_cifar_flip(folder):
    assert [split.flip for split in datasets.splits("cifar10", folder)] == [True, False, False]
    assert [name for name, row in datasets.DATASETS.items() if row.flip] == ["cifar10"]
    (folder / "cifar10").rename(folder / "other")
    assert [split.flip for split in datasets.splits("other", folder)] == [False, False, False]


def test_batches_are_the_images_in_order_scaled_to_one():
    split = datasets.Split(ramp(5), torch.arange(5), torch.tensor([4, 1, 3]))
    batches = list(split.batches(2))
    assert [len(x) for x, _ in batches] == [2, 1]
    x = torch.cat([x for x, _ in batches])
    torch.testing.assert_close(x * 255, ramp(5)[[4, 1, 3]].float())
    assert torch.cat([y for _, y in batches]).tolist() == [4, 1, 3]


@pytest.mark.parametrize("flip", [True, False])
def test_labels_and_flips_follow_images_onto_a_device(flip):
    split = datasets.Split(ramp(5), 10 * torch.arange(5), torch.tensor([4, 1, 3]), flip)
    moved = split.to("cpu:0")
    assert len(moved.images) == 3 and len(moved) == 3 and moved.flip is flip
    for ours, theirs in zip(moved.batches(2), split.batches(2), strict=True):
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
    assert split.to("cpu") is split


def test_each_epoch_holds_every_image_once_in_an_order_of_its_own():
    split = datasets.Split(ramp(60), torch.arange(60), torch.arange(60))
    orders = [torch.cat([y for _, y in split.batches(7, torch.Generator().manual_seed(s))]).tolist() for s in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[2]) == list(range(60))


def test_images_flip_left_to_right_one_by_one_with_probability_one_half():
    images = torch.tensor([0, 255], dtype=torch.uint8).expand(2000, 1, 3, 2).contiguous()  # dark left, bright right
    split = datasets.Split(images, torch.zeros(2000, dtype=torch.int64), torch.arange(2000), flip=True)
    flipped = torch.cat([x[:, 0, :, 0] for x, _ in split.batches(100, torch.Generator().manual_seed(0))])
    assert ((flipped == 0).all(1) | (flipped == 1).all(1)).all()
    share = flipped[:, 0].mean().item()
    assert abs(share - 0.5) < 5 * 0.5 / 2000**0.5
    per_batch = flipped[:, 0].view(20, 100).mean(1)
    assert ((per_batch > 0) & (per_batch < 1)).all()
    assert all((x == split.images[:1] / 255).all() for x, _ in split.batches(100))


# The table


def arguments(tmp_path, *options):
    return train.parser().parse_args(
        [*options, "--save-dir", str(tmp_path), "--data-dir", str(tmp_path), "--device", "cpu"]
    )


def evaluated(path, tmp_path):
    args = evaluation.parser().parse_args(["--ckpt-file", str(path), "--data-dir", str(tmp_path), "--device", "cpu"])
    stored = evaluation.checkpoints.read(path)
    return steps.network(stored, args.device), steps.splits_of(stored, args)


def test_a_data_set_is_one_row_of_the_table(tmp_path, monkeypatch):
    monkeypatch.setitem(datasets.DATASETS, "blobs", data_set_row(flip=True, note="made up"))
    help_of_dataset = next(a.help for a in train.parser()._actions if a.dest == "dataset")
    assert "blobs (made up)" in help_of_dataset and all(
        name in help_of_dataset for name in ("mnist", "mnist5k", "cifar10")
    )
    with pytest.raises(UserError, match="expected one of mnist, mnist5k, cifar10, blobs"):
        datasets.load("nothing", tmp_path)
    for tensor, array in zip(datasets.load("blobs", tmp_path), data_set_arrays(), strict=True):
        assert np.array_equal(tensor, array)
    assert [split.flip for split in datasets.splits("blobs", tmp_path)] == [True, False, False]
    train.main(arguments(tmp_path, "--dataset", "blobs", "--max-epochs", "0", "--l2", "0"))
    model, splits = evaluated(tmp_path / "blobs_sup" / "dummy.ckpt", tmp_path)
    assert (model.fc_layers[0].in_features, model.proj.out_features) == (15, 4)
    assert [len(split) for split in splits] == [7, 1, 6]
    assert models.LitWrapper("blobs").model.proj.out_features == 4


def test_the_studys_own_data_sets_are_as_specified():
    rows = {name: (row.shape, row.classes, row.network) for name, row in datasets.DATASETS.items()}
    assert rows == {
        "mnist": ((1, 28, 28), 10, "MnistSupervised"),
        "mnist5k": ((1, 28, 28), 10, "MnistSupervised"),
        "cifar10": ((3, 32, 32), 10, "Cifar10Fast"),
    }


@pytest.mark.parametrize(("channels", "network"), [(1, "MnistSupervised"), (3, "Cifar10Fast")])
def test_image_folders_of_any_name_are_trained_and_evaluated(tmp_path, channels, network):
    shape = (9, 12) if channels == 1 else (9, 12, 3)
    for i in range(12):
        save_image(tmp_path / "shapes" / ("train" if i < 8 else "test") / f"{'abcd'[i % 4]}" / f"{i}.png", i, shape)
    options = ["--dataset", "shapes", "--max-epochs", "0", "--l2", "0"]
    options += ["--model-args", '{"channels": [4, 4, 4, 4]}']
    train.main(arguments(tmp_path, *options))
    path = tmp_path / "shapes_sup" / "dummy.ckpt"
    stored = evaluation.checkpoints.read(path)
    assert stored["hyper_parameters"]["model_args"] == {
        "input_shape": [channels, 9, 12], "num_classes": 4, "channels": [4, 4, 4, 4]
    }  # fmt: skip
    model, (_, _, test) = evaluated(path, tmp_path)
    assert type(model).__name__ == network
    x, y = next(test.batches(4))
    hidden, logits = model(x)
    assert logits.shape == (4, 4) and y.tolist() == [0, 1, 2, 3] and hidden[0].shape[:2] == (4, 4)
    wrapper = models.LitWrapper("shapes", model_args={"channels": [4, 4, 4, 4]}, data_dir=tmp_path)
    assert wrapper.hparams.model_args == stored["hyper_parameters"]["model_args"]
    for part in ("train", "test"):
        save_image(tmp_path / "shapes" / part / "e" / "0.png", 0, shape)
    with pytest.raises(UserError, match="trained on other data"):
        evaluated(path, tmp_path)
    evaluation.checkpoints.write(path, {key: value for key, value in stored.items() if key != "data"})
    with pytest.raises(UserError, match="num_classes is 4, but shapes has 5"):
        evaluated(path, tmp_path)
    shutil.rmtree(tmp_path / "shapes")
    again = models.build("shapes", 0.0, stored["hyper_parameters"]["model_args"])  # a checkpoint alone is enough
    again.load_state_dict({name.removeprefix("model."): value for name, value in stored["state_dict"].items()})


def test_large_grey_images_get_the_convolutional_network():
    assert datasets.network_for((1, 64, 64)) == "MnistSupervised" and datasets.network_for((1, 64, 65)) == "Cifar10Fast"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"input_shape": [1, 5, 3]}, "input_shape is .1, 5, 3., but blobs has .1, 3, 5."),
        ({"num_classes": 3}, "num_classes"),
    ],
)
def test_model_args_that_do_not_fit_the_images_are_refused(tmp_path, monkeypatch, given, said):
    monkeypatch.setitem(datasets.DATASETS, "blobs", data_set_row())
    with pytest.raises(UserError, match=said):
        datasets.model_args("blobs", given, tmp_path)
    assert datasets.model_args("blobs", {"channels": [3]}, tmp_path) == {"channels": [3]}


@pytest.mark.parametrize("name", ["", ".", "..", "../cifar10", "/cifar10", "a/b", ".hidden"])
def test_names_that_are_paths_are_refused(folder, name):
    with pytest.raises(UserError, match="expected the name of a folder"):
        datasets.load(name, folder)


# Checks, whatever the source


WRONG = {
    "more labels": (lambda a: [a[0][:5], *a[1:]], "5 train images and 8 labels"),
    "more images": (lambda a: [*a[:3], a[3][:5]], "6 test images and 5 labels"),
    "nothing to train on": (lambda a: [a[0][:0], a[1][:0], *a[2:]], "0 train images and 0 labels"),
    "nothing to test on": (lambda a: [*a[:2], a[2][:0], a[3][:0]], "0 test images and 0 labels"),
    "height and width exchanged": (lambda a: [a[0].transpose(0, 1, 3, 2), *a[1:]], r"train images are \(1, 5, 3\)"),
    "other images to test on": (lambda a: [*a[:2], a[2][..., :4], a[3]], r"test images are \(1, 3, 4\).*\(1, 3, 5\)"),
    "no channels": (lambda a: [a[0][:, 0], *a[1:]], r"train images are \(3, 5\)"),
    "a label too high": (lambda a: [a[0], a[1] + 1, *a[2:]], "a train image has the label 4, expected 0 to 3"),
    "a negative label": (lambda a: [*a[:3], a[3] - 1], "a test image has the label -1"),
    "fractions for labels": (lambda a: [a[0], a[1] / 2, *a[2:]], "labels float64"),
    "columns of labels": (lambda a: [a[0], a[1][:, None], *a[2:]], r"labels int64 \(8, 1\)"),
    "fractions for pixels": (lambda a: [a[0] / 255, *a[1:]], "images are float64"),
    "sixteen bits": (lambda a: [*a[:2], a[2].astype(np.uint16), a[3]], "test images are uint16"),
}


@pytest.mark.parametrize("case", WRONG)
def test_arrays_are_checked_and_nothing_is_kept_of_wrong_ones(tmp_path, monkeypatch, case):
    spoil, said = WRONG[case]
    monkeypatch.setitem(datasets.DATASETS, "blobs", data_set_row(read=lambda root: spoil(data_set_arrays())))
    with pytest.raises(UserError, match=said):
        datasets.load("blobs", tmp_path)
    assert not list(tmp_path.rglob("*.npy"))


def test_images_and_raw_files_of_one_name_in_one_folder_are_refused(folder):
    (folder / "cifar10" / "cifar-10-batches-py").mkdir()
    for name in raw_files.CIFAR_FILES:
        (folder / "cifar10" / "cifar-10-batches-py" / name).touch()
    with pytest.raises(UserError, match=r"cifar10 holds images in folders, and .*data_batch_1: which are meant"):
        datasets.load("cifar10", folder)


def test_known_data_sets_in_folders_have_their_own_shape_and_classes(folder):
    (folder / "cifar10").rename(folder / "mnist")
    with pytest.raises(UserError, match=r"images are \(1, 32, 32\)"):
        datasets.load("mnist", folder)
    (folder / "mnist").rename(folder / "cifar10")
    for part in ("train", "test"):
        for i in range(9):
            save_image(folder / "cifar10" / part / f"more{i}" / "0.png", i)
    with pytest.raises(UserError, match="label 10, expected 0 to 9"):
        datasets.load("cifar10", folder)
