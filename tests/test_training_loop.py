"""train.py trains as the specification says: as a plain loop does, step by step, from the same random numbers."""

import json

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional as F

import train
from models import LitWrapper, build, lightning_wrapper
from study import checkpoints, grids

BATCH, SPLIT = 30, 0.75
CASES = {
    "two epochs of everything": ("mnist", {"channels": [12, 10]}, {"l1": 1e-3, "l2": 2e-2, "drop": 0.3}, 2),
    "flips": ("cifar10", {"channels": [3, 4, 4, 5]}, {"l1": 1e-3, "l2": 1e-2, "drop": 0.2}, 2),
    "to early stopping": ("mnist", {"channels": [24]}, {"l1": 0.0, "l2": 1e-5, "drop": 0.0}, 60),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Images without anything to learn: memorizing them soon raises the loss on others, which drops the rate and stops.

    A few values stand for each channel and place, so that an image and its mirror image are far apart.
    """
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name, shape in (("mnist", (28, 28)), ("cifar10", (32, 32, 3))):
        for part, n in (("train", 16), ("test", 2)):
            for label in range(10):
                place = folder / name / part / str(label)
                place.mkdir(parents=True)
                for i in range(n):
                    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(place / f"{i}.png")
    return folder


def images_of(folder, shape):
    """Images (N, C, H, W) in [0, 1] and labels, in ImageFolder's order, read one by one."""
    files = sorted((path for path in folder.glob("*/*.png")), key=lambda path: (path.parent.name, path.name))
    pixels = np.stack([np.asarray(Image.open(path)).reshape(*shape[1:], shape[0]) for path in files])
    x = torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).float().div(255).double()
    return x, torch.tensor([int(path.parent.name) for path in files])


def plain_training(folder, dataset, model_args, l1, l2, drop, max_epochs):
    """The specification's training as a loop: everything that train.py must leave behind."""
    seed = 286436723
    x, y = images_of(folder / dataset / "train", (1, 28, 28) if dataset == "mnist" else (3, 32, 32))
    n_train = round(len(x) * SPLIT)
    order = torch.utils.data.random_split(
        range(len(x)), [n_train, len(x) - n_train], torch.Generator().manual_seed(seed)
    )
    x_train, y_train, x_val, y_val = (a[list(part)] for part in order for a in (x, y))
    torch.manual_seed(seed)
    model = build(dataset, drop, model_args).double()
    weights = [p for p in model.parameters() if p.ndim >= 2]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    best, bad, since_drop, epochs = np.inf, 0, 0, []
    for epoch in range(max_epochs):
        epoch_seed = (
            1_000_003 * (epoch + 1) + seed
        )  # batches, flips and dropout follow from the seed and the epoch alone
        torch.manual_seed(epoch_seed)
        random = torch.Generator().manual_seed(epoch_seed)
        model.train()
        total, right = 0.0, 0
        for index in torch.randperm(n_train, generator=random).split(BATCH):
            batch = x_train[index]
            if dataset == "cifar10":
                flipped = torch.rand(len(batch), generator=random) < 0.5
                batch = torch.stack([a.flip(-1) if f else a for a, f in zip(batch, flipped, strict=True)])
            optimizer.zero_grad()
            logits = model(batch)[1]
            loss = F.cross_entropy(logits, y_train[index])
            (loss + l1 * sum(w.abs().sum() for w in weights) + l2 * sum((w**2).sum() for w in weights)).backward()
            optimizer.step()
            total += loss.item() * len(index)
            right += (logits.argmax(1) == y_train[index]).sum().item()
        model.eval()
        with torch.no_grad():
            logits = model(x_val)[1]
            val_loss = F.cross_entropy(logits, y_val).item()
        epochs.append(
            {
                "train_loss": total / n_train,
                "train_acc": right / n_train,
                "val_loss": val_loss,
                "val_acc": (logits.argmax(1) == y_val).float().mean().item(),
                "l1_norm": sum(w.abs().sum() for w in weights).item(),
                "l2_norm": sum((w**2).sum() for w in weights).item(),
                "learning_rate": optimizer.param_groups[0]["lr"],
            }
        )
        improved = val_loss < best
        best, bad, since_drop = min(best, val_loss), 0 if improved else bad + 1, 0 if improved else since_drop + 1
        if since_drop > 3:
            optimizer.param_groups[0]["lr"] *= 0.25
            since_drop = 0
        if bad == 6:
            break
    return model, optimizer, epochs


@pytest.fixture(scope="module", params=CASES)
def both(request, data, tmp_path_factory):
    """What train.py left in a run's directory, and what the loop found."""
    dataset, model_args, penalties, max_epochs = CASES[request.param]
    folder = tmp_path_factory.mktemp("logs")
    words = ["--dataset", dataset, "--model-args", json.dumps(model_args), "--max-epochs", str(max_epochs)]
    words += [word for name, value in penalties.items() for word in (f"--{name}", str(value))]
    words += ["--batch-size", str(BATCH), "--train-val-split", str(SPLIT), "--data-dir", str(data)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lightning_wrapper, "STEPS_AT_A_TIME", 3)  # an epoch is handed over in several parts
        trainer = pl.Trainer  # in float64: in float32, rounding may decide where a ReLU or maximum sends its gradient
        patch.setattr(pl, "Trainer", lambda **options: trainer(**(options | {"precision": "64-true"})))
        train.main(train.parser().parse_args([*words, "--save-dir", str(folder), "--device", "cpu", "--no-progress"]))
    plain = plain_training(data, dataset, model_args, **penalties, max_epochs=max_epochs)
    return folder / grids.uid(dataset, **penalties), *plain


def test_weights_and_optimizer_are_those_of_the_loop(both):
    run_dir, model, optimizer, _ = both
    stored = checkpoints.read(run_dir / "weights" / "last.ckpt")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(stored["state_dict"][f"model.{name}"], value, rtol=0, atol=1e-12)
    (state,) = stored["optimizer_states"]
    moments = optimizer.state_dict()["state"]
    for key, power in (("exp_avg", 1), ("exp_avg_sq", 0.5)):  # the mean gradient, and the root of its mean square
        for i, moment in moments.items():
            torch.testing.assert_close(state["state"][i][key] ** power, moment[key] ** power, rtol=0, atol=1e-12)
    assert all(state["state"][i]["step"] == moment["step"] for i, moment in moments.items())
    assert state["param_groups"][0]["lr"] == optimizer.param_groups[0]["lr"]


def test_every_logged_scalar_is_that_of_the_loop(both):
    run_dir, _, _, epochs = both
    events = EventAccumulator(str(run_dir)).Reload()
    for name in epochs[0]:
        logged = [event.value for event in events.Scalars(name)]
        assert np.allclose(logged, [epoch[name] for epoch in epochs], rtol=1e-4, atol=1e-5), name


def test_the_best_checkpoints_and_the_end_are_those_of_the_loop(both):
    run_dir, _, _, epochs = both
    losses = [epoch["val_loss"] for epoch in epochs]
    kept = {path.name for path in (run_dir / "weights").glob("epoch=*.ckpt")}
    steps = -(-round(160 * SPLIT) // BATCH)
    assert kept == {f"epoch={i}-step={steps * (i + 1)}.ckpt" for i in np.argsort(losses)[:3]}
    best = checkpoints.read(run_dir / "weights" / "best.ckpt")
    assert best["epoch"] == np.argmin(losses)
    record = json.loads((run_dir / "run.json").read_text())
    assert record["epochs"] == len(epochs) and abs(record["best_val_loss"] - min(losses)) < 1e-5
    assert record["early_stopped"] == (len(epochs) > 2)


def test_the_long_training_has_a_drop_of_the_rate_and_an_early_stop(data):
    dataset, model_args, penalties, max_epochs = CASES["to early stopping"]
    _, optimizer, epochs = plain_training(data, dataset, model_args, **penalties, max_epochs=max_epochs)
    assert len(epochs) < max_epochs and optimizer.param_groups[0]["lr"] == 2.5e-4


def test_the_defaults_are_those_of_the_specification():
    args = train.parser().parse_args(["--dataset", "mnist"])
    assert (args.l2, args.l1, args.drop, list(args.run), args.seed) == (1e-5, 0.0, 0.0, [0], None)
    assert (args.max_epochs, args.batch_size, args.train_val_split, args.model_args) == (500, 200, 0.9, {})
    assert (args.precision, args.task, args.save_dir, args.data_dir) == ("32", "sup", "logs", "data")
    assert (args.device, args.progress) == ("auto", True)


@pytest.mark.parametrize(("channels", "last"), [((8, 16, 16, 8), True), ((3, 4, 4, 5), False), ((8, 8, 12, 8), False)])
def test_convolutions_of_whole_vectors_are_laid_out_channels_last_with_the_same_loss(channels, last):
    wrapper = LitWrapper("cifar10", model_args={"channels": channels}).train()
    x, y = torch.rand(4, 3, 32, 32), torch.arange(4)
    seen = []
    wrapper.model.layer2.register_forward_hook(lambda m, inputs, output: seen.append(output))
    loss = F.cross_entropy(wrapper(x)[1], y)
    loss.backward()
    assert seen[0].is_contiguous(memory_format=torch.channels_last) == last
    torch.manual_seed(286436723)
    plain = build("cifar10", model_args={"channels": channels}).double().train()
    expected = F.cross_entropy(plain(x.double())[1], y)
    expected.backward()
    assert abs(loss.item() - expected.item()) < 1e-5
    ours, right = (torch.cat([p.grad.flatten() for p in m.parameters()]).double() for m in (wrapper.model, plain))
    assert (ours - right).norm() < 0.1 * right.norm()  # rounding moves units across the kinks of their ReLUs
