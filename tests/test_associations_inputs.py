"""What is given to `associations`: batches, arguments and settings; taken, or refused in a sentence."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import grad
from torch.nn import functional as F

from associations import BASE_METHODS, METHODS, associations
from numerics.linear import linear_where_linear
from numerics.seeds import checked_seed
from numerics.settings import careful_arithmetic, frozen, twice_differentiable
from tests.test_associations_checks import batches, close, dense, labels, made, randn

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")


def convolutional(*last, seed=0):
    """(N, 3, H, W) → logits; layer "1" has 4 channels."""
    last = last or (nn.Conv2d(4, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3))
    return made(nn.Conv2d(3, 4, 3), nn.ReLU(), *last, seed=seed)


def signed(model, data, layer="1", **options):
    return {name: value[0] for name, value in associations(model, data, layers=layer, **options).signed.items()}


# Batches --------------------------------------------------------------------------------------------------------------


def test_images_of_several_sizes_are_averaged_over_their_own_locations():
    model = convolutional()
    small, large = randn(4, 3, 8, 8), randn(5, 3, 12, 12, seed=1)
    methods = ["backward_jac", "backward_hess", "forward_jac"]
    alone = [signed(model, batches(x, len(x)), methods=methods, jac_directions=64) for x in (small, large)]
    for order in (1, -1):
        data = [(small, labels(4)), (large, labels(5))][::order]
        both = associations(model, data, layers="1", methods=methods, jac_directions=64)
        for method in methods:
            expected = (4 * alone[0][method] + 5 * alone[1][method]) / 9
            if method == "forward_jac":
                assert ((both.signed[method][0] - expected) / both.stderr[method][0]).square().mean().sqrt() < 3
            else:
                assert close(both.signed[method][0], expected)
        with pytest.raises(
            ValueError, match=r"forward_cov: layer '1' has \d+ locations in this batch, and had \d+ before"
        ):
            associations(model, data, layers="1", methods=["forward_cov"])


def test_backward_matrices_of_several_sizes_are_those_of_a_plain_loop():
    model, data = convolutional(), [(randn(2, 3, 10, 10), labels(2)), (randn(3, 3, 7, 7, seed=1), labels(3))]
    expected = 0
    for x, _ in data:
        h = model[:2](x).detach().requires_grad_()
        for k in range(3):
            j = grad(model[2:](h)[:, k].sum(), h)[0].flatten(2)
            expected = expected + torch.einsum("nis,njs->ij", j, j) / j.shape[2] / 5
    assert close(signed(model, data, methods=["backward_jac"])["backward_jac"], expected)


def test_layers_that_change_their_form_are_refused():
    class Odd(nn.Module):
        def forward(self, x):
            return x[:, : 2 + len(x) % 2]

    model = nn.Sequential(Odd(), nn.AdaptiveAvgPool1d(2), nn.Linear(2, 3)).double().eval()
    with pytest.raises(ValueError, match=r"layer '0' returns .* and other units before"):
        associations(model, batches(randn(7, 6), 4), layers="0", methods=["backward_jac"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_images_that_are_no_numbers_are_counted_in_a_warning(kind, value):
    model, x = (dense(), randn(9, 6)) if kind == "dense" else (convolutional(), randn(9, 3, 8, 8))
    x[2].view(-1)[1] = value
    x[7].view(-1)[0] = value
    for methods in (["forward_jac"], ["backward_jac", "backward_jac_norm"], METHODS):
        with pytest.warns(UserWarning, match="2 of the images hold or give NaN") as warned:
            found = associations(model, batches(x), layers="1", methods=methods)
        assert len(warned) == 1 and f"count in {', '.join(found.assoc)}: " in str(warned[0].message)


def test_numbers_too_large_for_a_matrix_are_warned_of():
    model = dense().float()
    with torch.no_grad():
        model[0].weight.mul_(1e25)
    with pytest.warns(UserWarning, match="infinite entries in forward_cov"):
        associations(model, batches(randn(9, 6).float()), layers="1", methods=["forward_cov", "backward_jac"])


def test_large_numbers_alone_are_no_reason_for_a_warning():
    x = randn(9, 6).float()
    x[3] = 1.5e38  # their sum is infinite, they are not
    associations(dense().float(), batches(x), layers="1", methods=["backward_jac"])


NOT_BATCHES = {
    "numpy": (lambda x, y: (x.numpy(), y), "inputs must be tensors, not a numpy.ndarray: torch.as_tensor"),
    "list": (lambda x, y: (x.tolist(), y), "inputs must be tensors"),
    "None": (lambda x, y: (None, y), "inputs must be tensors, not a NoneType"),
    "x alone": (lambda x, y: x, "batches must be pairs .x, y."),
    "two examples": (lambda x, y: x[:2], "batches must be pairs"),
    "three": (lambda x, y: (x, y, y), "batches must be pairs"),
    "uint8": (lambda x, y: (x.to(torch.uint8), y), "uint8: networks take floats, x.float.. / 255"),
    "sparse": (lambda x, y: (x.to_sparse(), y), "dense real tensors"),
    "complex": (lambda x, y: (x.to(torch.complex64), y), "dense real tensors"),
    "meta": (lambda x, y: (x.to("meta"), y), "dense real tensors"),
    "nested": (lambda x, y: (torch.nested.nested_tensor([x[0], x[1, :3]]), y), "a nested tensor of torch.float64"),
    "one example": (lambda x, y: (x[0], y[0]), "labels are a single number: give batches"),
    "no labels": (lambda x, y: (x, None), "NoneType"),
    "float labels": (lambda x, y: (x, y.double()), "float64"),
    "label too large": (lambda x, y: (x, y + 97), "labels from 97 to 99"),
    "label negative": (lambda x, y: (x, y - 100), "labels from -100"),
    "too few labels": (lambda x, y: (x, y[:-1]), r"int64 \(9,\)"),
    "column of labels": (lambda x, y: (x, y[:, None]), r"int64 \(9,\)"),
    "one-hot labels": (lambda x, y: (x, F.one_hot(y)), r"int64 \(9,\)"),
    "numpy labels": (lambda x, y: (x, y.numpy()), "ndarray"),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", NOT_BATCHES)
def test_batches_of_other_things_are_refused_in_a_sentence(kind):
    change, message = NOT_BATCHES[kind]
    with pytest.raises(ValueError, match=message) as refusal:
        associations(dense(), [change(randn(9, 6), labels(9))], layers="1")
    assert "\n" not in str(refusal.value)


def test_labels_matter_to_the_hessian_alone():
    model, x = dense(), randn(9, 6)
    methods = [method for method in METHODS if "hess" not in method]
    expected = signed(model, batches(x, 9), methods=methods)
    for y in (None, labels(9).double(), labels(9) + 99, labels(4), labels(9).numpy()):
        found = signed(model, [(x, y)], methods=methods)
        assert all(torch.equal(found[method], expected[method]) for method in expected)


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.Softmax(dim=-1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_probabilities_have_no_hessian_of_cross_entropy(last, dtype):
    model = made(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3), last).to(dtype)
    with pytest.raises(ValueError, match="probabilities"):
        associations(model, batches(randn(9, 6).to(dtype)), layers="1")
    associations(model, batches(randn(9, 6).to(dtype)), layers="1", methods=["backward_jac"])


def test_empty_batches_add_nothing():
    model, x = convolutional(), randn(6, 3, 8, 8)
    data = batches(x)
    empty = (x[:0], labels(0))
    expected, found = (
        associations(model, some, layers="1") for some in (data, [empty, data[0], empty, data[1], empty])
    )
    for method in BASE_METHODS:
        assert torch.equal(found.signed[method][0], expected.signed[method][0])
    with pytest.raises(ValueError, match="no batches"):
        associations(model, [empty], layers="1")


class Squeeze(nn.Module):
    def forward(self, x):
        return x.squeeze()


def test_networks_that_squeeze_work_on_batches_of_two_and_say_what_a_batch_of_one_lacks():
    after = (nn.Conv2d(4, 5, 6), Squeeze(), nn.Linear(5, 3))
    model, x = convolutional(*after), randn(7, 3, 8, 8)
    expected = signed(convolutional(nn.Conv2d(4, 5, 6), nn.Flatten(), nn.Linear(5, 3)), batches(x, 3))
    for sizes in ((4, 3), (5, 2), (3, 4)):
        data = list(zip(x.split(sizes), labels(7).split(sizes), strict=True))
        found = signed(model, data)
        for method in ("forward_cov", "backward_jac", "backward_hess"):
            assert close(found[method], expected[method])
    with pytest.raises(ValueError, match=r"for 1 examples: .* single"):
        associations(model, batches(x, 3), layers="1")


def test_networks_that_view_their_activations_work():
    class View(nn.Module):
        def forward(self, x):
            return x.view(x.size(0), -1)

    x = randn(6, 3, 8, 8)
    for parts in (
        (View(), nn.Linear(192, 4), nn.ReLU(), nn.Linear(4, 3)),
        (nn.Conv2d(3, 2, 3), nn.ReLU(), View(), nn.Linear(72, 3)),
    ):
        flat = [nn.Flatten() if isinstance(part, View) else part for part in parts]
        for layer in ("1", str(len(parts) - 1)):
            found, expected = (signed(made(*some), batches(x), layer) for some in (parts, flat))
            assert all(close(found[method], expected[method]) for method in BASE_METHODS)


def test_networks_that_rely_on_their_layout_in_memory_get_it():
    class Strided(nn.Module):
        def forward(self, x):
            return x.as_strided((len(x), 144), (144, 1))

    data = batches(randn(6, 3, 8, 8))
    found, expected = (
        signed(convolutional(flatten, nn.Linear(144, 3)), data, methods=["backward_jac", "backward_hess"])
        for flatten in (Strided(), nn.Flatten())
    )
    assert all(close(found[method], expected[method]) for method in expected)


def test_networks_may_overwrite_their_input_and_the_data_stay():
    class Overwrite(nn.Module):
        def forward(self, x):
            x -= 0.5
            x.mul_(2)
            x[:, 0] = 0
            return x

    class Copy(nn.Module):
        def forward(self, x):
            x = (x - 0.5) * 2
            return x * torch.tensor([0.0] + 5 * [1.0], dtype=x.dtype)

    x = randn(9, 6)
    before = x.clone()
    parts = nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)
    found, expected = (signed(made(first, *copy.deepcopy(parts)), batches(x), "2") for first in (Overwrite(), Copy()))
    assert all(close(found[method], expected[method]) for method in BASE_METHODS)
    assert torch.equal(x, before) and not x.requires_grad


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_calls_without_gradients_are_calls_like_any_other(mode):
    for model, x in ((dense(), randn(9, 6)), (convolutional(), randn(9, 3, 8, 8))):
        expected = signed(model, batches(x))
        with mode():
            inside = batches(randn(*x.shape))  # made in there, as data loaders do
            found = signed(model, inside)
            assert not torch.is_grad_enabled()
        assert all(torch.equal(found[method], expected[method]) for method in BASE_METHODS)


# Ways to call a convolution -------------------------------------------------------------------------------------------


class Calls(nn.Module):
    """A convolution and a normalization, called in some way."""

    def __init__(self, way):
        super().__init__()
        self.conv, self.norm, self.head, self.way = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(144, 3), way

    def forward(self, x):
        h = torch.relu(self.norm(input=self.way(self.conv, x)))
        return [h], self.head(h.flatten(1))


WAYS = {
    "by name": lambda conv, x: conv(input=x),
    "single images": lambda conv, x: torch.stack([conv(image) for image in x]),
    "vmap": lambda conv, x: torch.vmap(conv)(x),
    "vmap over batches": lambda conv, x: torch.vmap(conv)(x[None])[0],
    "autocast off": lambda conv, x: _without_autocast(conv, x),
    "weights of the input": lambda conv, x: F.conv2d(x, conv.weight, conv.bias),
}


def _without_autocast(conv, x):
    with torch.autocast("cpu", enabled=False):
        return conv(x)


@pytest.mark.parametrize("way", WAYS)
def test_convolutions_may_be_called_in_any_way(way):
    torch.manual_seed(0)
    model = Calls(lambda conv, x: conv(x)).double().eval()
    other = copy.deepcopy(model)
    other.way = WAYS[way]
    data = batches(randn(6, 3, 8, 8))
    found, expected = associations(other, data), associations(model, data)
    assert all(close(found.signed[method][0], expected.signed[method][0]) for method in BASE_METHODS)


def test_weights_that_depend_on_the_input_are_differentiated_through():
    class Hyper(nn.Module):
        """The weights of a convolution are made from the batch's own first pixel, the same for all."""

        def __init__(self):
            super().__init__()
            self.conv, self.head, self.scale = (
                nn.Conv2d(3, 4, 1, bias=False),
                nn.Linear(4, 3),
                nn.Parameter(torch.ones(())),
            )
            self.base = nn.Parameter(self.conv.weight.detach().clone())
            del self.conv.weight

        def forward(self, x):
            outs = []
            for image in x:
                self.conv.weight = self.base * image.mean()
                outs.append(self.conv(image[None]))
            h = torch.cat(outs)
            return [h], self.head(h.mean((2, 3)))

    torch.manual_seed(0)
    model, x = Hyper().double().eval(), randn(4, 3, 4, 4)
    found = associations(model, [(x, labels(4))], methods=["forward_jac"])  # 64 units × locations: exact
    expected = 0
    for image in x:
        j = torch.autograd.functional.jacobian(lambda t: F.conv2d(t[None], model.base * t.mean())[0], image).flatten(3)
        j = j.flatten(1, 2).flatten(2)
        expected = expected + torch.einsum("isd,jsd->ij", j, j) / 16 / 4
    assert close(found.signed["forward_jac"][0], expected)


def test_linear_layers_inside_vmap_are_differentiated_through():
    class Mapped(nn.Module):
        def __init__(self, way):
            super().__init__()
            self.inner, self.act, self.head, self.way = nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3), way

        def forward(self, x):
            return self.head(self.act(self.way(self.inner)(x)))

    torch.manual_seed(0)
    model, data = Mapped(torch.vmap).double().eval(), batches(randn(9, 6))
    found = signed(model, data, "act")
    model.way = lambda module: module
    expected = signed(model, data, "act")
    assert all(close(found[method], expected[method]) for method in BASE_METHODS)


def test_linear_layers_inside_gradients_of_single_examples_are_differentiated_through():
    class Gradient(nn.Module):
        """∂ Σ sin(Wa + b) / ∂a of each example a."""

        def __init__(self):
            super().__init__()
            self.inner, self.act, self.head, self.mapped = nn.Linear(6, 5), nn.ReLU(), nn.Linear(6, 3), True

        def forward(self, x):
            if self.mapped:
                gradient = torch.func.vmap(torch.func.grad(lambda a: self.inner(a).sin().sum()))(x)
            else:
                gradient = self.inner(x).cos() @ self.inner.weight
            return self.head(self.act(gradient))

    torch.manual_seed(0)
    model, data = Gradient().double().eval(), batches(randn(9, 6))
    found = signed(model, data, "act")
    model.mapped = False
    expected = signed(model, data, "act")
    assert all(close(found[method], expected[method]) for method in BASE_METHODS)


def test_networks_that_differentiate_themselves_run_with_gradients_throughout():
    class Force(nn.Module):
        """−∂E/∂x of an energy E."""

        def forward(self, x):
            return torch.autograd.grad(-x.sin().sum(), x, create_graph=True)[0]

    class Cosine(nn.Module):
        def forward(self, x):
            return -x.cos()

    found, expected = (
        signed(made(first, nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), batches(randn(9, 6)), "2")
        for first in (Force(), Cosine())
    )
    assert all(close(found[method], expected[method]) for method in BASE_METHODS)


def test_layers_inside_vmap_are_refused():
    class Mapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(torch.vmap(self.inner)(x))

    with pytest.raises(ValueError, match="'inner' runs inside vmap"):
        associations(Mapped().double().eval(), batches(randn(9, 6)), layers="inner")


# Networks that are none -----------------------------------------------------------------------------------------------


def test_networks_that_cannot_be_differentiated_are_refused():
    data = batches(randn(9, 6))
    with torch.device("meta"):
        meta = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    with pytest.raises(ValueError, match="'meta'"):
        associations(meta, data, layers="1")
    with torch.inference_mode():
        inference = dense()
    with pytest.raises(ValueError, match="inference_mode"):
        associations(inference, data, layers="1")
    with pytest.raises(ValueError, match=r"2.weight has no values before the network has run once"):
        associations(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.LazyLinear(3)).eval(), data, layers="1")
    with pytest.raises(ValueError, match=r"must be a torch.nn.Module, not a function"):
        associations(lambda x: x, data, layers="1")


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("make", ["script", "trace"])
def test_scripted_networks_are_refused(make):
    model, x = dense(), randn(9, 6)
    program = torch.jit.script(model) if make == "script" else torch.jit.trace(model, x)
    for network in (program, nn.Sequential(nn.Identity(), program).eval()):
        with pytest.raises(ValueError, match="TorchScript"):
            associations(network, batches(x), layers="1")


# Arguments ------------------------------------------------------------------------------------------------------------


def test_one_name_is_one_name():
    model, x = made(*(part for _ in range(6) for part in (nn.Linear(6, 6), nn.ReLU())), nn.Linear(6, 3)), randn(9, 6)
    one, listed = (associations(model, batches(x), layers=layers) for layers in ("10", ["10"]))
    for method in METHODS:
        assert len(one.assoc[method]) == 1 and torch.equal(one.assoc[method][0], listed.assoc[method][0])
    by_name = associations(model, batches(x), layers="1", methods="forward_cov")
    assert list(by_name.assoc) == ["forward_cov"]


def test_names_may_come_from_generators():
    found = associations(dense(), batches(randn(9, 6)), layers=(n for n in ["1"]), methods=(m for m in METHODS))
    assert set(found.assoc) == set(METHODS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["1", "0", "1"]}, "'1' is named twice"),
        ({"methods": ["forward_cov", "forward_cov"]}, "'forward_cov' is named twice"),
        ({"layers": [1]}, "by name"),
        ({"layers": 1}, "by name"),
        ({"methods": 1}, "by name"),
        ({"inputs": ["0"]}, "inputs= must be the name of a module"),
        ({"outputs": "logits"}, "outputs= must be a function"),
        ({"loss": "mse"}, "loss= must be a function"),
        ({"layers": []}, "no layers"),
        ({"layers": "nowhere"}, "nowhere"),
        ({"methods": "forward_cow"}, "forward_cow"),
        ({"methods": None}, "unknown methods"),
        ({"jac_directions": 3}, "even"),
        ({"jac_directions": 2.0}, "even"),
        ({"output_directions": 0}, "even"),
        ({"hess_directions": -2}, "even"),
        ({"output_directions": None}, "even"),
        ({"seed": -1}, "a seed is"),
        ({"seed": 1.0}, "a seed is"),
        ({"seed": "1"}, "a seed is"),
        ({"seed": True}, "a seed is"),
        ({"seed": 2**64}, "a seed is"),
    ],
)
def test_arguments_of_another_kind_are_refused_before_any_data_is_read(options, message):
    def never():
        pytest.fail("data was read")
        yield

    with pytest.raises(ValueError, match=message):
        associations(dense(), never(), **({"layers": ["1"]} | options))


@pytest.mark.parametrize("data", [None, 3])
def test_what_cannot_be_gone_through_is_no_data(data):
    with pytest.raises(ValueError, match="batches are an iterable of pairs"):
        associations(dense(), data, layers="1")


def test_seeds_of_numpy_are_seeds_and_none_is_a_fresh_one():
    model, data = convolutional(), batches(randn(6, 3, 8, 8))

    def jacobian(seed, directions=2):
        return signed(model, data, methods=["forward_jac"], seed=seed, jac_directions=directions)["forward_jac"]

    for seed in (np.int64(3), np.uint8(3), np.array(3)):
        assert torch.equal(jacobian(seed, np.int64(2)), jacobian(3))
    assert not torch.equal(jacobian(None), jacobian(None))
    assert checked_seed(0) == 0 and checked_seed(2**63 - 1) == 2**63 - 1 and 0 <= checked_seed(None) < 2**63


def test_modules_under_two_names_are_found_by_either():
    model = dense()
    model.register_module("again", model[1])
    model.forward = lambda x: model[2](model[1](model[0](x)))
    a, b = (signed(model, batches(randn(9, 6)), layer) for layer in ("1", "again"))
    assert all(torch.equal(a[method], b[method]) for method in BASE_METHODS)


# Settings -------------------------------------------------------------------------------------------------------------


def settings():
    return {
        "denormals": (torch.tensor(1e-40) * 1).item() > 0,
        "tf32 of convolutions": torch.backends.cudnn.allow_tf32,
        "precision": torch.get_float32_matmul_precision(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "flash": torch.backends.cuda.flash_sdp_enabled(),
        "efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
        "math": torch.backends.cuda.math_sdp_enabled(),
        "gradients": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "seed": torch.initial_seed(),
        "random state": torch.get_rng_state().tolist(),
    }


@pytest.fixture
def unusual():
    """Settings that are not those that derivatives are taken with."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.set_flush_denormal(False)
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    yield
    torch.backends.cudnn.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])


class Watch(nn.Module):
    """Notes the settings that it runs under, or fails."""

    def __init__(self, fail=False):
        super().__init__()
        self.seen, self.fail = [], fail

    def forward(self, x):
        self.seen.append(settings())
        if self.fail:
            raise RuntimeError("as was to be expected")
        return x


@pytest.mark.parametrize("fail", [False, True])
def test_settings_are_careful_inside_and_as_they_were_afterwards(unusual, fail):
    watch = Watch(fail)
    model = dense(activation=nn.Sequential(watch, nn.ReLU()))
    before, asked = settings(), [parameter.requires_grad for parameter in model.parameters()]
    assert before["denormals"] and before["tf32 of convolutions"] and before["precision"] == "high"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if fail:
            with pytest.raises(RuntimeError, match="expected"):
                associations(model, batches(randn(9, 6)), layers="0")
        else:
            associations(model, batches(randn(9, 6)), layers="0")
    assert settings() == before
    inside = watch.seen[0]
    assert not inside["denormals"] and not inside["tf32 of convolutions"] and inside["precision"] == "highest"
    assert not inside["fast path"] and not inside["flash"] and not inside["efficient"] and inside["math"]
    assert [parameter.requires_grad for parameter in model.parameters()] == asked
    assert not any("forward" in vars(module) or module._forward_hooks for module in model.modules())


def test_settings_of_others_are_kept_where_they_are_the_careful_ones():
    torch.set_flush_denormal(True)
    try:
        with careful_arithmetic(), twice_differentiable():
            pass
        assert not settings()["denormals"]
    finally:
        torch.set_flush_denormal(False)


def test_parameters_that_were_frozen_stay_frozen():
    model = dense()
    model[0].weight.requires_grad_(False)
    with frozen(model):
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, True, True, True]


def test_modules_of_ones_own_are_not_replaced():
    class Own(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Sequential(Own(3, 4, 3), nn.Conv2d(4, 4, 3, padding_mode="circular"), nn.BatchNorm2d(4)).eval()
    model[2].forward = lambda x: x
    with linear_where_linear(model):
        assert "forward" not in vars(model[0]) and "forward" not in vars(model[1])
    assert "forward" in vars(model[2])
