"""Data: splits, flips, batches, image folders, and what happens when there is none."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from study import datasets
from study.cli import UserError


def ramp(n):
    """n images of 2×2 whose pixels tell which image and place they come from."""
    return torch.arange(4 * n, dtype=torch.uint8).view(n, 1, 2, 2)


@pytest.fixture
def folder(tmp_path):
    """An image-folder tree named cifar10, with 6 training and 4 test images of two classes."""
    rng = np.random.default_rng(0)
    for part, n in (("train", 3), ("test", 2)):
        for name in ("cat", "dog"):
            (tmp_path / "cifar10" / part / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "cifar10" / part / name / f"{i}.png")
    return tmp_path


def test_split_is_random_split_by_seed(folder):
    train, val, test = datasets.splits("cifar10", folder, seed=3, train_val_split=0.5)
    expected = torch.utils.data.random_split(range(6), [3, 3], torch.Generator().manual_seed(3))
    assert train.index.tolist() == expected[0].indices and val.index.tolist() == expected[1].indices
    assert test.index.tolist() == [0, 1, 2, 3]
    other, _, _ = datasets.splits("cifar10", folder, seed=4, train_val_split=0.5)
    assert train.index.tolist() != other.index.tolist()


def test_only_the_training_images_of_cifar_flip(folder):
    assert [split.flip for split in datasets.splits("cifar10", folder)] == [True, False, False]


def test_batches_are_the_images_in_order_scaled_to_one():
    split = datasets.Split(ramp(5), torch.arange(5), torch.tensor([4, 1, 3]))
    batches = list(split.batches(2))
    assert [len(x) for x, _ in batches] == [2, 1]
    x = torch.cat([x for x, _ in batches])
    torch.testing.assert_close(x * 255, ramp(5)[[4, 1, 3]].float())
    assert torch.cat([y for _, y in batches]).tolist() == [4, 1, 3]


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


def test_image_folders_are_decoded_once_and_mapped_after(folder, monkeypatch):
    images, labels, test_images, _ = datasets.load("cifar10", folder)
    assert images.shape == (6, 3, 32, 32) and images.dtype == torch.uint8 and labels.tolist() == [0, 0, 0, 1, 1, 1]
    pixels = np.asarray(Image.open(folder / "cifar10" / "test" / "dog" / "1.png"))
    assert np.array_equal(test_images[3].permute(1, 2, 0).numpy(), pixels)
    monkeypatch.setattr(datasets, "_checked", None)
    assert torch.equal(datasets.load("cifar10", folder)[0], images)


def test_fingerprint_tells_the_contents_and_nothing_else(folder, tmp_path):
    first = datasets.fingerprint("cifar10", folder)
    shutil.copytree(folder / "cifar10", tmp_path / "copy" / "cifar10", ignore=shutil.ignore_patterns("arrays-*"))
    assert datasets.fingerprint("cifar10", folder) == datasets.fingerprint("cifar10", tmp_path / "copy") == first
    (folder / "cifar10" / "test" / "cat" / "1.png").rename(folder / "cifar10" / "test" / "dog" / "7.png")
    assert datasets.fingerprint("cifar10", folder) != first


def test_new_files_are_noticed(folder):
    datasets.load("cifar10", folder)
    Image.new("RGB", (32, 32)).save(folder / "cifar10" / "train" / "cat" / "new.png")
    assert len(datasets.load("cifar10", folder)[0]) == 7


def test_unknown_and_unusable_data_are_refused(tmp_path, folder):
    with pytest.raises(UserError, match="unknown dataset 'imagenet'"):
        datasets.load("imagenet", tmp_path)
    (folder / "cifar10").rename(folder / "mnist")
    with pytest.raises(UserError, match=r"images are \(1, 32, 32\)"):
        datasets.load("mnist", folder)
    Image.new("RGB", (8, 8)).save(folder / "mnist" / "train" / "cat" / "small.png")
    with pytest.raises(UserError, match="same-sized"):
        datasets.load("mnist", folder)
