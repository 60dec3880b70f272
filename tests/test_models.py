"""The networks against their specification, and the norms of their weights against closed forms."""

import math
import sys

import pytest
import torch
from torch import nn

import models
from models import Cifar10Fast, LitWrapper, MnistSupervised, norms
from models.lightning_wrapper import EpochBatches
from study import datasets


def test_mnist_network_has_the_specified_shapes_and_names():
    model = MnistSupervised(channels=(20, 30)).eval()
    hidden, logits = model(torch.rand(5, 1, 28, 28))
    assert [tuple(h.shape) for h in hidden] == [(5, 20), (5, 30)] and logits.shape == (5, 10)
    assert {name: tuple(p.shape) for name, p in model.state_dict().items()} == {
        "fc_layers.0.weight": (20, 784), "fc_layers.0.bias": (20,),
        "fc_layers.1.weight": (30, 20), "fc_layers.1.bias": (30,),
        "proj.weight": (10, 30), "proj.bias": (10,),
    }  # fmt: skip


def test_mnist_network_is_a_chain_of_linear_and_relu():
    model = MnistSupervised(channels=(4,)).double().eval()
    x = torch.rand(3, 1, 28, 28, dtype=torch.float64)
    w, b = model.fc_layers[0].weight, model.fc_layers[0].bias
    h = (x.reshape(3, 784) @ w.T + b).clamp(min=0)
    hidden, logits = model(x)
    torch.testing.assert_close(hidden[0], h)
    torch.testing.assert_close(logits, h @ model.proj.weight.T + model.proj.bias)


@pytest.mark.parametrize(("concat", "width"), [(True, 16), (False, 8)])
def test_cifar_network_has_the_specified_shapes(concat, width):
    hidden, logits = Cifar10Fast(channels=(4, 6, 8, 8), concat_pool=concat).eval()(torch.rand(2, 3, 32, 32))
    assert [tuple(h.shape[1:]) for h in hidden] == [
        (4, 32, 32), (4, 32, 32), (6, 16, 16), (8, 8, 8), (8, 4, 4), (width, 1, 1),
    ]  # fmt: skip
    assert logits.shape == (2, 10)


def test_cifar_network_reproduces_the_reference_activations(reference):
    data = reference("conv.npz")
    model = Cifar10Fast(channels=(4, 6, 8, 8)).eval()
    model.load_state_dict({k.removeprefix("w__"): torch.from_numpy(data[k]) for k in data.files if k.startswith("w__")})
    with torch.no_grad():
        hidden, logits = model(torch.from_numpy(data["inputs"]))
    for i, h in enumerate(hidden):
        torch.testing.assert_close(h, torch.from_numpy(data[f"hidden__{i}"]).view_as(h), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits, torch.from_numpy(data["logits"]), rtol=1e-4, atol=1e-4)


def test_dropout_silences_units_in_training_and_never_in_evaluation():
    model = MnistSupervised(pdrop=0.5, channels=(2000,))
    model.fc_layers[0].bias.data.fill_(1e3)  # every unit is active
    x = torch.rand(1, 1, 28, 28)
    share = (model.train()(x)[0][0] == 0).double().mean()
    assert abs(share - 0.5) < 0.05
    assert (model.eval()(x)[0][0] > 0).all()


def test_stem_has_no_dropout_and_stages_drop_whole_channels():
    hidden, _ = Cifar10Fast(pdrop=0.5, channels=(64, 64, 64, 64)).train()(torch.rand(4, 3, 32, 32))
    dropped = [(h == 0).flatten(2).all(2).double().mean().item() for h in hidden]
    # h0 has none; a channel of h5 is silent if it was dropped there or, before the pooling, in h4.
    assert dropped == pytest.approx([0, 0.5, 0.5, 0.5, 0.5, 0.75], abs=0.16)  # five standard deviations


def with_weights(*matrices):
    model = torch.nn.Sequential(*(torch.nn.Linear(w.shape[1], w.shape[0]) for w in matrices))
    for layer, w in zip(model, matrices, strict=True):
        layer.weight.data = w
    return model.double()


def test_norms_have_their_closed_forms():
    diagonal = torch.diag(torch.tensor([3.0, -4.0, 0.0]))
    model = with_weights(diagonal, 2 * torch.ones(2, 3))
    assert norms.l1_norm(model) == 7 + 12
    assert norms.l2_norm(model) == 25 + 24
    torch.testing.assert_close(norms.nuc_norm(model), torch.tensor(7 + 24**0.5, dtype=torch.float64))
    assert norms.sparsity(model) == pytest.approx(7 / 15)
    assert norms.by_layer(norms.l1_norm, model) == {"0.weight": 7, "1.weight": 12}


def test_convolutions_count_in_every_norm_but_the_nuclear():
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    assert norms.weights(model).keys() == {"0.weight"}
    assert norms.nuc_norm(model) == 0


def wrapper(**arguments):
    return LitWrapper("mnist", model_args={"channels": [8]}, **arguments)


@pytest.mark.parametrize(("l1", "l2"), [(0.0, 0.0), (0.01, 0.0), (0.0, 0.02), (0.01, 0.02)])
def test_training_follows_the_gradient_of_cross_entropy_plus_weighted_norms(l1, l2):
    module = wrapper(l1=l1, l2=l2).double()
    x, y = torch.rand(30, 784, dtype=torch.float64), torch.arange(30) % 10
    cross_entropy = torch.nn.functional.cross_entropy(module(x)[1], y)
    expected = torch.autograd.grad(
        cross_entropy + l1 * module.l1_norm() + l2 * module.l2_norm(), [*module.parameters()], retain_graph=True
    )
    cross_entropy.backward()
    module.add_penalty_gradients()
    for p, gradient in zip(module.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=0, atol=1e-14)


def test_seed_changes_with_the_run_and_with_nothing_else():
    assert wrapper().hparams.seed == wrapper(drop=0.3, l2=0.1).hparams.seed == 286436723
    assert wrapper(run=3).hparams.seed == 286436726
    assert wrapper(seed=0).hparams.seed == 0
    first, again, other = (module.model.state_dict() for module in (wrapper(), wrapper(l1=0.1), wrapper(run=1)))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["proj.weight"], other["proj.weight"])


def test_making_a_wrapper_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    wrapper()
    assert torch.equal(torch.rand(3), expected)


def test_state_dict_keys_begin_with_model_and_uid_names_the_run():
    module = wrapper(l2=1e-5, drop=0.3, run=1)
    assert all(key.startswith("model.") for key in module.state_dict())
    assert module.get_uid() == "mnist_sup_l2=0.00001_drop=0.30000_run=1"
    assert module.l1_norm() == norms.l1_norm(module.model)


@pytest.mark.parametrize(
    ("name", "value"),
    [("task", "unsup"), ("l2", -0.1), ("l1", math.nan), ("drop", 1.0), ("run", -1), ("seed", -1), ("batch_size", 0),
     ("train_val_split", 1.0), ("precision", "16")],
)  # fmt: skip
def test_wrapper_refuses_values_that_mean_nothing(name, value):
    with pytest.raises(ValueError, match=name):
        wrapper(**{name: value})


@pytest.mark.parametrize("name", ["l1_norm", "l2_norm", "nuc_norm", "sparsity"])
def test_wrapper_gives_each_norm_of_its_network_in_all_and_by_layer(name):
    module, norm = wrapper(), getattr(norms, name)
    options = {"eps": 0.02} if name == "sparsity" else {}
    layers = {"fc_layers.0.weight": module.model.fc_layers[0], "proj.weight": module.model.proj}
    by_layer = {weight: norm(layer, **options) for weight, layer in layers.items()}
    assert getattr(module, name)(**options) == norm(module.model, **options)
    assert getattr(module, f"{name}_by_layer")(**options) == by_layer


@pytest.mark.parametrize("epoch_seed", [None, lambda: 4])
def test_an_epoch_is_all_of_its_batches_ten_at_a_time(epoch_seed):
    split = datasets.Split(torch.zeros(81, 1, 2, 2, dtype=torch.uint8), torch.arange(81), torch.arange(81))
    loader = EpochBatches(split, 4, epoch_seed)
    groups = list(loader)
    assert [len(group) for group in groups] == [10, 10, 1] and len(loader) == 3
    assert sorted(torch.cat([y for group in groups for _, y in group]).tolist()) == list(range(81))


def test_wrapper_takes_the_hyperparameters_of_other_programs_files():
    assert wrapper(devices="0123", workers=2).hparams.keys() == wrapper().hparams.keys()


def test_each_data_set_has_its_network():
    assert isinstance(models.build("mnist"), MnistSupervised)
    assert isinstance(models.build("mnist5k"), MnistSupervised)
    assert isinstance(models.build("cifar10", 0.1, {"channels": [4, 4, 4, 4]}), Cifar10Fast)


def test_initial_weights_are_drawn_layer_by_layer_as_they_have_always_been():
    """Runs on disk resume, and untrained networks are made again, with the very weights that they had."""
    torch.manual_seed(3)
    layers = [torch.nn.Linear(784, 64), torch.nn.Linear(64, 64), torch.nn.Linear(64, 10)]
    torch.manual_seed(3)
    state = models.build("mnist").state_dict()
    assert list(state) == [
        f"{layer}.{part}" for layer in ("fc_layers.0", "fc_layers.1", "proj") for part in ("weight", "bias")
    ]
    for values, expected in zip(state.values(), (p for layer in layers for p in layer.parameters()), strict=True):
        assert torch.equal(values, expected)

    def convolution(n_in, n_out, size, stride=1):
        return torch.nn.Conv2d(n_in, n_out, size, stride, padding=size // 2, bias=False).weight

    torch.manual_seed(3)
    expected = {"conv1.weight": convolution(3, 4, 3)}
    n_in = 4
    for stage, n_out in enumerate((4, 6, 8, 8), start=1):
        for block in (0, 1):
            name = f"layer{stage}.{block}"
            expected[f"{name}.conv1.weight"] = convolution(n_in, n_out, 3)
            expected[f"{name}.conv2.weight"] = convolution(n_out, n_out, 3)
            if block == 0 and stage > 1:
                expected[f"{name}.proj.weight"] = convolution(n_in, n_out, 1)
            n_in = n_out
    readout = torch.nn.Linear(16, 10)
    expected |= {"proj.weight": readout.weight, "proj.bias": readout.bias}
    torch.manual_seed(3)
    found = dict(models.build("cifar10", 0.0, {"channels": [4, 6, 8, 8]}).named_parameters())
    assert [name for name in found if "bn" not in name] == list(expected)
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (9, 12), (3, 5), (1, 1)])
def test_networks_take_images_of_any_shape_and_any_number_of_classes(channels, height, width):
    shape, x = (channels, height, width), torch.rand(2, channels, height, width)
    hidden, logits = MnistSupervised(channels=(5,), input_shape=shape, num_classes=7).eval()(x)
    assert hidden[0].shape == (2, 5) and logits.shape == (2, 7)
    model = Cifar10Fast(channels=(4, 4, 6, 6), input_shape=shape, num_classes=7).eval()
    hidden, logits = model(x)
    assert logits.shape == (2, 7) and hidden[0].shape == (2, 4, height, width)
    last = hidden[4].flatten(2)
    assert torch.allclose(hidden[5].flatten(1), torch.cat([last.amax(2), last.mean(2)], dim=1), atol=1e-6)


def test_a_network_beside_the_table_is_made_of_its_arguments_alone():
    grey = models.build("shapes", 0.25, {"input_shape": [1, 9, 12], "num_classes": 3, "channels": [8]})
    assert (grey.fc_layers[0].in_features, grey.proj.out_features, grey.drop.p) == (108, 3, 0.25)
    colour = models.build("shapes", 0.25, {"input_shape": [3, 9, 12], "num_classes": 3, "channels": [4] * 4})
    assert isinstance(colour, Cifar10Fast) and colour.proj.out_features == 3 and colour.drop.p == 0.25


@pytest.mark.parametrize(
    ("dataset", "drop", "model_args", "said"),
    [
        ("shapes", 0.0, {}, "unknown dataset 'shapes'"),
        ("shapes", 0.0, {"num_classes": 3}, "unknown dataset 'shapes'"),
        ("shapes", 0.0, {"num_classes": 3, "input_shape": 7}, "model_args"),
        ("shapes", 0.0, {"num_classes": 0, "input_shape": [1, 9, 12]}, "widths above 0"),
        ("shapes", 0.0, {"num_classes": 3, "input_shape": [1, -9, 12]}, "widths above 0"),
        ("mnist", 1.0, {}, r"drop 1.0: expected a probability in \[0, 1\)"),
        ("mnist", -0.1, {}, "drop -0.1"),
        ("mnist", float("nan"), {}, "drop nan"),
        ("mnist", 0.0, {"width": 3}, "width unknown: MnistSupervised takes channels, input_shape, num_classes"),
        ("mnist", 0.0, {"pdrop": 0.1}, "pdrop unknown"),
        ("mnist", 0.0, {"channels": []}, "widths above 0"),
        ("mnist", 0.0, {"channels": [8, 0]}, "widths above 0"),
        ("mnist", 0.0, {"channels": [8, -1]}, "widths above 0"),
        ("mnist", 0.0, {"channels": [1.5]}, "model_args"),
        ("mnist", 0.0, {"channels": "64"}, "model_args"),
        ("mnist", 0.0, {"channels": 64}, "model_args"),
        ("cifar10", 0.0, {"channels": [4, 4, 4]}, "four widths"),
        ("cifar10", 0.0, {"channels": [4, 4, 4, 0]}, "four widths"),
        ("cifar10", 0.0, {"channels": 4}, "model_args"),
    ],
)
def test_impossible_networks_are_refused(dataset, drop, model_args, said):
    with pytest.raises(ValueError, match=said):
        models.build(dataset, drop, model_args)


class Linear(nn.Module):
    """A network with an argument of its own."""

    def __init__(self, pdrop=0.0, width=7, input_shape=(1, 28, 28), num_classes=10):
        super().__init__()
        self.hidden, self.out = nn.Linear(input_shape[1] * input_shape[2], width), nn.Linear(width, num_classes)


def test_a_network_is_one_entry_of_the_table_and_a_data_set_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules["models.build"].NETWORKS, "Linear", Linear)
    monkeypatch.setitem(datasets.DATASETS, "mnist", datasets.DATASETS["mnist"]._replace(network="Linear"))
    assert models.build("mnist", 0.2, {"width": 3}).hidden.weight.shape == (3, 784)
    assert LitWrapper("mnist", model_args={"width": 4}).model.out.weight.shape == (10, 4)
    with pytest.raises(ValueError, match="channels unknown: Linear takes input_shape, num_classes, width"):
        models.build("mnist", 0.2, {"channels": [3]})
