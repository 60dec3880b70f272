"""Networks of any kind: what they take, what they return, how their layers are named and laid out, and their loss."""

from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian, jacobian
from torch.nn import functional as F

from associations import BASE_METHODS, associations
from numerics import nested

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")

BACKWARD = ["backward_jac", "backward_hess"]


def double(model):
    return model.double().eval()


def close(found, expected, tolerance=1e-10):
    return float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


def cross_entropy(logits, y):
    return F.cross_entropy(logits, y, reduction="sum")


def slow(before, after, x, y, *, loss=cross_entropy, unit_dim=-1):
    """Signed matrices of the four methods, one example after the other, from whole Jacobians and Hessians.

    Args:
        before: x (1, …) → h (1, …).  after: h → logits (1, K).
        x: (N, …), or what else `before` takes, if it can be indexed by slices.
        unit_dim: of h.
    """
    n = len(y)
    h = torch.cat([before(x[i : i + 1]) for i in range(n)]).detach()
    rows = h.movedim(unit_dim, -1).reshape(n, -1, h.shape[unit_dim])  # (N, S, d)
    n_locations, units = rows.shape[1:]
    place = torch.arange(h[0].numel()).view(h[:1].shape).movedim(unit_dim, -1).reshape(n_locations, units)
    centred = rows - rows.mean(0)
    found = {"forward_cov": torch.einsum("nsi,nsj->ij", centred, centred)}
    found |= {method: torch.zeros(units, units, dtype=h.dtype) for method in BASE_METHODS[1:]}
    for i in range(n):
        j_in = jacobian(before, x[i : i + 1]).reshape(h[0].numel(), -1)
        j_out = jacobian(lambda t: after(t).flatten(1), h[i : i + 1]).reshape(-1, h[0].numel()).T
        second = hessian(lambda t, i=i: loss(after(t), y[i : i + 1]).sum(), h[i : i + 1]).reshape(2 * [h[0].numel()])
        for s in range(n_locations):
            at = place[s]
            found["forward_jac"] += j_in[at] @ j_in[at].T
            found["backward_jac"] += j_out[at] @ j_out[at].T
            found["backward_hess"] += second[at][:, at]
    return {method: total / n / n_locations for method, total in found.items()}


def agree(found, expected, methods=BASE_METHODS, layer=0, tolerance=1e-10):
    """Whether the exact matrices of one layer equal the slow ones."""
    assert not found.stderr
    for method in methods:
        assert close(found.signed[method][layer], expected[method], tolerance), method
    return True


def labels(n=9, classes=3):
    return torch.arange(n) % classes


# What a network takes and returns ------------------------------------------------------------------------------------


class TwoInputs(nn.Module):
    """Two inputs, brought together by a sum."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.act, self.out = nn.Linear(4, 5), nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)

    def forward(self, left, right=None):
        return self.out(self.act(self.left(left) + self.right(right)))


class Whole(nn.Module):
    """The same, taking its inputs as one object."""

    def __init__(self, model, pick):
        super().__init__()
        self.model, self.pick = model, pick

    def forward(self, batch):
        return self.model(*self.pick(batch))


Sides = namedtuple("Sides", "left right")


@pytest.mark.parametrize(
    ("made", "whole"),
    [
        (lambda a, b: (a, b), None),
        (lambda a, b: [a, b], None),
        (Sides, None),
        (lambda a, b: {"right": b, "left": a}, None),
        (lambda a, b: (a, {"b": [b]}), lambda batch: (batch[0], batch[1]["b"][0])),
        (lambda a, b: {"inner": Sides(a, b), "flag": True}, lambda batch: batch["inner"]),
    ],
)
def test_inputs_may_be_tuples_and_dicts_and_the_jacobian_is_by_all_of_them(made, whole):
    model = double(TwoInputs())
    x, y = torch.randn(9, 7, dtype=torch.float64), labels()
    ours = model if whole is None else Whole(model, whole).eval()
    layer = "act" if whole is None else "model.act"
    data = [(made(x[i : i + 4, :4], x[i : i + 4, 4:]), y[i : i + 4]) for i in range(0, 9, 4)]
    found = associations(ours, data, layers=[layer])
    expected = slow(lambda t: model.act(model.left(t[:, :4]) + model.right(t[:, 4:])), model.out, x, y)
    assert agree(found, expected)


def test_parts_of_a_batch_keep_what_belongs_to_no_example():
    batch = {"tokens": torch.arange(6).view(3, 2), "scale": torch.tensor(2.0), "table": torch.rand(5, 2), "flag": None}
    some = nested.part(batch, 1, 3)
    assert some["tokens"].tolist() == [[2, 3], [4, 5]] and len(some["table"]) == 5 and some["flag"] is None
    assert nested.size(batch) == 3 and nested.float_tensors(batch) == []
    with pytest.raises(ValueError, match="first dimension"):
        nested.size({"flag": True})


def test_tuples_dicts_and_named_tuples_keep_what_they_are():
    batch = Sides([torch.zeros(3)], {"a": (torch.ones(3), 1)})
    doubled = nested.mapped(lambda tensor: tensor * 2, batch)
    assert type(doubled) is Sides and type(doubled.left) is list and type(doubled.right["a"]) is tuple
    assert doubled.right["a"][0].tolist() == [2, 2, 2] and doubled.right["a"][1] == 1


class Tokens(nn.Module):
    """Token numbers → embeddings, mixed over places → logits, returned in one of several ways."""

    def __init__(self, returned="tensor"):
        super().__init__()
        self.embedding, self.mix = nn.Embedding(11, 4), nn.Linear(5, 5)
        self.act, self.out, self.returned = nn.Tanh(), nn.Linear(20, 3), returned

    def mixed(self, embedded):
        return self.act(self.mix(embedded.transpose(1, 2)).flatten(1))

    def forward(self, input_ids, mask=None):
        logits = self.out(self.mixed(self.embedding(input_ids)))
        return {
            "tensor": logits,
            "dict": {"loss": None, "logits": logits},
            "object": namedtuple("Output", "loss logits")(None, logits),
            "tuple": (None, logits),
            "nested": {"last": [logits, logits * 2]},
        }[self.returned]


@pytest.mark.parametrize(
    ("returned", "outputs"),
    [
        ("tensor", None),
        ("dict", None),
        ("object", None),
        ("tuple", lambda returned: returned[1]),
        ("nested", lambda returned: returned["last"][0]),
    ],
)
def test_token_numbers_are_inputs_and_a_module_can_be_the_input(returned, outputs):
    model = double(Tokens(returned))
    tokens, y = torch.randint(11, (9, 5)), labels()
    batches = [({"input_ids": tokens[i : i + 5], "mask": None}, y[i : i + 5]) for i in (0, 5)]
    found = associations(model, batches, layers=["act"], outputs=outputs, inputs="embedding")
    expected = slow(model.mixed, model.out, model.embedding(tokens).detach(), y)
    assert agree(found, expected)
    others = [method for method in BASE_METHODS if method != "forward_jac"]
    alone = associations(model, batches, layers=["act"], outputs=outputs, methods=others)
    assert agree(alone, expected, others)
    with pytest.raises(ValueError, match='inputs="embedding"'):
        associations(model, batches, layers=["act"], outputs=outputs)


def test_a_layer_before_the_input_module_keeps_its_backward_matrices():
    model = double(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)))
    x, y = torch.randn(9, 4, dtype=torch.float64), labels()
    found = associations(model, [(x, y)], layers=["1", "3"], inputs="2")
    assert agree(found, slow(model[:2], model[2:], x, y), ["forward_cov", *BACKWARD])
    assert agree(found, slow(model[3], model[4], model[:3](x).detach(), y) | {}, BASE_METHODS, layer=1)
    assert not found.signed["forward_jac"][0].any()  # the input comes after it


@pytest.mark.parametrize("returned", ["tuple", "nested"])
def test_logits_that_cannot_be_told_are_asked_for(returned):
    with pytest.raises(ValueError, match="outputs=lambda"):
        associations(Tokens(returned).eval(), [(torch.zeros(2, 5, dtype=int), labels(2))], layers=["act"])


def test_outputs_gives_hidden_and_logits_where_no_layers_are_named():
    model = double(TwoInputs())

    class Rich(nn.Module):
        def forward(self, x):
            h = model.act(model.left(x))
            return {"hidden": h, "y": model.out(h)}

    x, y = torch.randn(9, 4, dtype=torch.float64), labels()
    found = associations(Rich().eval(), [(x, y)], outputs=lambda returned: ([returned["hidden"]], returned["y"]))
    assert agree(found, slow(lambda t: model.act(model.left(t)), model.out, x, y))
    with pytest.raises(ValueError, match="a dict of 'hidden', 'y', not"):
        associations(Rich().eval(), [(x, y)])


# Which tensor a layer is ----------------------------------------------------------------------------------------------


class Repeated(nn.Module):
    """One activation, three times."""

    def __init__(self):
        super().__init__()
        self.parts, self.act = nn.ModuleList([nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 7)]), nn.Tanh()
        self.out = nn.Linear(7, 3)

    def forward(self, x):
        for part in self.parts:
            x = self.act(part(x))
        return self.out(x)


def test_calls_of_a_module_that_runs_several_times_are_numbered():
    model, x, y = double(Repeated()), torch.randn(9, 4, dtype=torch.float64), labels()
    found = associations(model, [(x, y)], layers=["act:3", "act:1"])
    a, b, c = (nn.Sequential(part, model.act) for part in model.parts)
    assert agree(found, slow(nn.Sequential(a, b, c), model.out, x, y), layer=0)
    assert agree(found, slow(a, nn.Sequential(b, c, model.out), x, y), layer=1)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            "act",
            r"runs twice in one forward pass, or more often \(3 times\): name one of its calls, 'act:1' to 'act:3'",
        ),
        ("act:4", "'act' runs 3 times"),
        ("act:0", "numbered from 1"),
        ("act:x", "no layers 'act:x'"),
        ("parts.0[1]", r"has none at that place: it returns a tensor \(9, 5\); name the layer as 'parts.0'"),
    ],
)
def test_calls_that_are_not_there_are_refused(layer, message):
    with pytest.raises(ValueError, match=message):
        associations(Repeated().eval(), [(torch.randn(9, 4), labels())], layers=[layer])


# Where the units of a layer are ---------------------------------------------------------------------------------------


class Transposed(nn.Module):
    """A module between two permutations: it sees (time, batch, features)."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        found = self.inner(x.transpose(0, 1))
        return (found if isinstance(found, torch.Tensor) else found[0]).transpose(0, 1)


def mixing(t):
    """Something smooth that reads all places of (B, T, F)."""
    return (t * torch.arange(1, t.shape[1] + 1)[:, None]).sum(1) + t.square().mean(1)


class Places(nn.Module):
    """(B, T, 4) → a layer with places → logits."""

    def __init__(self, layer, width):
        super().__init__()
        self.layer, self.out = layer, nn.Linear(width, 3)

    def after(self, h):
        return self.out(mixing(h))

    def forward(self, x):
        return self.after(self.layer(x))


def one_tensor(layer):
    return lambda t: layer(t) if isinstance(layer(t), torch.Tensor) else layer(t)[0]


@pytest.mark.parametrize("places", [1, 5, 9])
@pytest.mark.parametrize(
    ("layer", "name", "width"),
    [
        (nn.Linear(4, 6), "layer", 6),
        (nn.LayerNorm(4), "layer", 4),
        (Transposed(nn.Linear(4, 6)), "layer.inner", 6),
        (Transposed(nn.LSTM(4, 3)), "layer.inner", 3),
        (nn.TransformerEncoderLayer(4, 2, 7, batch_first=True), "layer", 4),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_units_of_modules_with_features_last_are_features_wherever_the_examples_are(places, layer, name, width):
    model, x, y = double(Places(layer, width)), torch.randn(9, places, 4, dtype=torch.float64), labels()
    methods = ["forward_cov", *BACKWARD]
    found = associations(model, [(x[:5], y[:5]), (x[5:], y[5:])], layers=[name], methods=methods)
    assert agree(found, slow(layer, model.after, x, y), methods)


def channels_last_block():
    """(B, 2, 3, 3) → features last in places → logits, as in ConvNeXt."""
    before = nn.Sequential(nn.Conv2d(2, 4, 2), Permute(0, 2, 3, 1), nn.Linear(4, 5), nn.Tanh())
    return double(nn.Sequential(*before, nn.Linear(5, 3), nn.Flatten(1, 2), Mean()))


class Permute(nn.Module):
    def __init__(self, *dims):
        super().__init__()
        self.dims = dims

    def forward(self, x):
        return x.permute(*self.dims)


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(1)


def test_unit_dim_is_one_number_or_one_a_layer():
    model, x, y = channels_last_block(), torch.randn(9, 2, 3, 3, dtype=torch.float64), labels()
    found = associations(model, [(x, y)], layers=["0", "2", "3"], unit_dim=[None, None, 3], methods=BACKWARD)
    for layer, (split, unit_dim) in enumerate(((1, 1), (3, -1), (4, -1))):
        assert agree(found, slow(model[:split], model[split:], x, y, unit_dim=unit_dim), BACKWARD, layer)
    places = associations(model, [(x, y)], layers=["2", "3"], unit_dim=1, methods=BACKWARD)  # if one wants that
    assert agree(places, slow(model[:3], model[3:], x, y, unit_dim=1), BACKWARD)


def test_forward_jac_of_features_last_is_exact_or_sampled():
    model, x, y = channels_last_block(), torch.randn(9, 2, 3, 3, dtype=torch.float64), labels()
    expected = slow(model[:4], model[4:], x, y)
    assert agree(associations(model, [(x, y)], layers=["3"], unit_dim=-1), expected)
    wide = double(nn.Sequential(nn.Linear(4, 17), nn.Tanh(), nn.Linear(17, 3), Mean()))
    x = torch.randn(40, 4, 4, dtype=torch.float64)
    found = associations(wide, [(x, labels(40))], layers=["0"], methods=["forward_jac"], jac_directions=64)
    truth = (wide[0].weight @ wide[0].weight.T).detach()
    z = (found.signed["forward_jac"][0] - truth) / found.stderr["forward_jac"][0]
    assert 0 < z.square().mean().sqrt() < 2


@pytest.mark.parametrize(
    ("model", "layer", "options", "message"),
    [
        (nn.Sequential(nn.Linear(4, 5), nn.Tanh(), Mean(), nn.Linear(5, 3)), "1", {}, "unit_dim=1 or unit_dim=-1"),
        (nn.Sequential(nn.Identity(), nn.Tanh(), Mean(), nn.Linear(4, 3)), "1", {}, "unit_dim=1 or unit_dim=-1"),
        (nn.Sequential(nn.Linear(4, 5), Mean(), nn.Linear(5, 3)), "0", {"unit_dim": 0}, "cannot be at 0"),
        (nn.Sequential(nn.Linear(4, 5), Mean(), nn.Linear(5, 3)), "0", {"unit_dim": 3}, "cannot be at 3"),
        (nn.Sequential(nn.Linear(4, 5), Mean(), nn.Linear(5, 3)), "0", {"unit_dim": [1, 2]}, "2 numbers for 1 layer"),
        (nn.Sequential(nn.Linear(4, 5), Mean(), nn.Linear(5, 3)), "0", {"unit_dim": "last"}, "whole number"),
        (nn.Sequential(nn.Linear(4, 5), Mean(), nn.Linear(5, 3)), "0", {"unit_dim": 1.0}, "whole number"),
        (
            nn.Sequential(nn.Flatten(0, 1), nn.Linear(4, 5), nn.Unflatten(0, (-1, 6)), Mean(), nn.Linear(5, 3)),
            "1",
            {},
            r"returns \(54, 5\) for 9 examples: no dimension",
        ),
    ],
)
def test_layers_whose_units_cannot_be_told_are_refused(model, layer, options, message):
    with pytest.raises(ValueError, match=message):
        associations(model.eval(), [(torch.randn(9, 6, 4), labels())], layers=[layer], **options)


class ChannelsFirstNorm(nn.LayerNorm):
    """A normalization over channels at dimension 1, as torchvision's LayerNorm2d."""

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def test_heirs_of_modules_with_features_last_need_not_have_them_last():
    model = double(nn.Sequential(nn.Conv2d(2, 5, 2), ChannelsFirstNorm(5), nn.Flatten(), nn.Linear(20, 3)))
    x, y = torch.randn(9, 2, 3, 3, dtype=torch.float64), labels()
    found = associations(model, [(x, y)], layers=["1"], methods=BACKWARD)
    assert agree(found, slow(model[:2], model[2:], x, y, unit_dim=1), BACKWARD)


def test_attention_weights_are_not_taken_for_features():
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.out = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

        def forward(self, x):
            mixed, weights = self.attention(x, x, x)
            return self.out(mixed.sum(1)) + weights.square().sum(dim=(1, 2))[:, None]

    model, data = double(Attending()), [(torch.randn(9, 5, 4, dtype=torch.float64), labels())]
    with pytest.raises(ValueError, match="unit_dim=1 or unit_dim=-1"):
        associations(model, data, layers=["attention[1]"], methods=BACKWARD)
    found = associations(model, data, layers=["attention", "attention[1]"], unit_dim=[None, 1], methods=BACKWARD)
    assert [len(matrix) for matrix in found.signed["backward_jac"]] == [4, 5]


def test_units_of_one_dimensional_convolutions_are_channels():
    model = double(nn.Sequential(nn.Conv1d(4, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(25, 3)))
    x, y = torch.randn(9, 4, 6, dtype=torch.float64), labels()
    found = associations(model, [(x, y)], layers=["1"])
    assert agree(found, slow(model[:2], model[2:], x, y, unit_dim=1))


def test_unit_dim_goes_with_layers_that_the_network_returns_itself():
    model = double(Places(nn.Linear(4, 6), 6))

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            h = model.layer(x)
            return [h], model.after(h)

    x, y = torch.randn(9, 5, 4, dtype=torch.float64), labels()
    found = associations(Own().eval(), [(x, y)], unit_dim=2)
    assert agree(found, slow(model.layer, model.after, x, y))
    with pytest.raises(ValueError, match=r"hidden\[0\] returns \(9, 5, 6\): its units may be"):
        associations(Own().eval(), [(x, y)])


@pytest.mark.parametrize("which", ["layer.inner", "layer.inner[1]", "layer.inner[1][1]"])
def test_a_tensor_of_those_that_a_module_returns_is_chosen_by_its_place(which):
    lstm = nn.LSTM(4, 3, batch_first=True)

    class Ends(nn.Module):
        """An LSTM of which all three outputs are read."""

        def __init__(self):
            super().__init__()
            self.layer, self.out = nn.ModuleDict({"inner": lstm}), nn.Linear(3, 3)

        def read(self, sequence, h, c):
            return self.out(sequence.square().sum(1) + h[0].square() + c[0].square())

        def forward(self, x):
            sequence, (h, c) = self.layer["inner"](x)
            return self.read(sequence, h, c)

    model, x, y = double(Ends()), torch.randn(9, 5, 4, dtype=torch.float64), labels()
    found = associations(model, [(x, y)], layers=[which], unit_dim=-1, methods=["forward_cov", *BACKWARD])
    sequence, (h, c) = lstm(x)
    h, c = h[0].detach(), c[0].detach()  # (B, 3)
    n = {"layer.inner": 0, "layer.inner[1]": 1, "layer.inner[1][1]": 2}[which]
    values = [sequence.detach(), h, c]

    def total(t, i):
        rest = [value[i : i + 1] for value in values]
        rest[n] = t
        return model.read(rest[0], rest[1][None], rest[2][None])

    rows = values[n] if n == 0 else values[n][:, None]
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for i in range(9):
        j = jacobian(lambda t, i=i: total(t, i), values[n][i : i + 1]).reshape(3, -1, 3)
        expected += torch.einsum("ksi,ksj->ij", j, j) / 9 / rows.shape[1]
    assert close(found.signed["backward_jac"][0], expected)


# Other losses ---------------------------------------------------------------------------------------------------------


def targets(kind, n=9, width=3):
    generator = torch.Generator().manual_seed(5)
    values = torch.rand(n, width, generator=generator, dtype=torch.float64)
    return {"real": values * 4 - 2, "share": values, "class": labels(n, width), "count": (values * 5).floor()}[kind]


def weighted_cross_entropy(logits, y):
    return F.cross_entropy(logits, y, weight=torch.tensor([1.0, 5, 2], dtype=logits.dtype), reduction="none")


LOSSES = {
    "squares": (lambda logits, y: F.mse_loss(logits, y, reduction="sum"), "real"),
    "squares, one a number": (lambda logits, y: (logits - y) ** 2, "real"),
    "binary": (lambda logits, y: F.binary_cross_entropy_with_logits(logits, y, reduction="sum"), "share"),
    "poisson": (lambda logits, y: F.poisson_nll_loss(logits, y, reduction="sum"), "count"),
    "weighted": (weighted_cross_entropy, "class"),
    "smoothed": (lambda logits, y: F.cross_entropy(logits, y, label_smoothing=0.3, reduction="sum"), "class"),
    "huber": (lambda logits, y: F.huber_loss(logits, y, reduction="sum"), "real"),
    "neither convex nor concave": (lambda logits, y: (logits.sin() * logits.roll(1, -1) * y).sum(), "real"),
    "concave": (lambda logits, y: -((logits - y) ** 2).sum(), "real"),
    "absolute": (lambda logits, y: F.l1_loss(logits, y, reduction="sum"), "real"),
}
NETWORKS = {
    "chain": lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)),
    "piecewise linear": lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ELU(0), nn.Linear(6, 3)),
    "smooth": lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 3)),
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_hessian_of_any_loss_is_the_true_one(loss, network):
    model, (function, kind) = double(NETWORKS[network]()), LOSSES[loss]
    x, y = torch.randn(9, 4, dtype=torch.float64), targets(kind)
    layers = ["1", "3"] if network == "chain" else ["1"]
    found = associations(
        model, [(x[:5], y[:5]), (x[5:], y[5:])], layers=layers, loss=function, methods=["backward_hess"]
    )
    for layer, name in enumerate(layers):
        split = int(name) + 1
        assert agree(found, slow(model[:split], model[split:], x, y, loss=function), ["backward_hess"], layer)


def test_the_default_is_cross_entropy_and_squares_give_the_jacobian_matrix():
    model, x, y = double(NETWORKS["piecewise linear"]()), torch.randn(9, 4, dtype=torch.float64), labels()
    default, named, half_squares = (
        associations(model, [(x, y)], layers=["1"], methods=BACKWARD, loss=loss)
        for loss in (None, cross_entropy, lambda logits, _: logits.square() / 2)
    )
    assert close(named.signed["backward_hess"][0], default.signed["backward_hess"][0], 1e-12)
    assert close(half_squares.signed["backward_hess"][0], default.signed["backward_jac"][0], 1e-12)
    for other in (named, half_squares):
        assert torch.equal(other.signed["backward_jac"][0], default.signed["backward_jac"][0])


def test_a_combined_matrix_of_another_loss():
    model, x, y = double(NETWORKS["chain"]()), torch.randn(9, 4, dtype=torch.float64), targets("real")
    found = associations(
        model, [(x, y)], layers=["1", "3"], combined=True, methods=["backward_hess"], loss=LOSSES["poisson"][0]
    )
    h1 = model[:2](x).detach()
    cross = torch.zeros(5, 6, dtype=torch.float64)
    for i in range(9):
        to_h2, to_y = jacobian(model[2:4], h1[i]), jacobian(model[4], model[2:4](h1[i]))
        cross += (to_y @ to_h2).T @ torch.diag(model(x[i]).exp()).detach() @ to_y / 9
    assert close(found.signed["backward_hess_combined"][:5, 5:], cross)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_outputs_of_any_shape_have_a_hessian_of_their_own_loss(shape):
    width = torch.Size(shape).numel()
    model = double(nn.Sequential(nn.Linear(4, 5), nn.LeakyReLU(), nn.Linear(5, width)))
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.randn(9, *shape, dtype=torch.float64)

    def loss(prediction, target):
        assert prediction.shape == target.shape
        return (prediction - target).square().sum() + prediction.exp().sum()

    def after(h):
        return model[2](h).view(len(h), *shape)

    found = associations(
        model, [(x, y)], layers=["1"], methods=BACKWARD, loss=loss, outputs=lambda logits: logits.view(-1, *shape)
    )
    expected = slow(
        model[:2],
        lambda h: after(h)[:, None] if not shape else after(h),
        x,
        y,
        loss=lambda p, t: loss(p.view(t.shape), t),
    )
    assert agree(found, expected, BACKWARD)


def test_targets_may_be_anything_that_the_loss_takes():
    model, x = double(NETWORKS["chain"]()), torch.randn(9, 4, dtype=torch.float64)
    y = {"class": labels(), "weight": torch.rand(9, dtype=torch.float64)}

    def loss(logits, target):
        return F.cross_entropy(logits, target["class"], reduction="none") * target["weight"]

    found = associations(model, [(x, y)], layers=["1", "3"], methods=["backward_hess"], loss=loss)
    expected = sum(
        slow(model[:2], model[2:], x[i : i + 1], y["class"][i : i + 1])["backward_hess"] * y["weight"][i] / 9
        for i in range(9)
    )
    assert close(found.signed["backward_hess"][0], expected)
    entropy = associations(
        model,
        [(x, None)],
        layers=["1", "3"],
        methods=["backward_hess"],
        loss=lambda logits, _: -logits.softmax(1).square(),
    )
    expected = slow(model[:2], model[2:], x, labels(), loss=lambda logits, _: -logits.softmax(1).square())
    assert close(entropy.signed["backward_hess"][0], expected["backward_hess"])


def test_nan_in_one_example_stays_nan_under_another_loss():
    model, x, y = double(NETWORKS["piecewise linear"]()), torch.randn(9, 4, dtype=torch.float64), targets("real")
    y[3, 1] = torch.nan
    with pytest.warns(UserWarning, match="backward_hess"):
        found = associations(model, [(x, y)], layers=["1"], methods=["backward_hess"], loss=lambda p, t: p.exp() * t)
    assert found.signed["backward_hess"][0].isnan().all()


class Once(torch.autograd.Function):
    """Half the square, whose gradient torch takes for a constant."""

    @staticmethod
    def forward(ctx, p):
        ctx.save_for_backward(p)
        return p.square() / 2

    @staticmethod
    def backward(ctx, g):
        return ctx.saved_tensors[0].detach() * g


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    ("loss", "y", "message"),
    [
        (F.mse_loss, targets("real"), "must be a sum over examples: 9 examples give"),
        (lambda p, t: F.mse_loss(p, t, reduction="sum") / len(p), targets("real"), 'reduction="sum"'),
        (lambda p, t: (p - p.mean(0)).square().sum(), targets("real"), "must be a sum over examples"),
        (lambda p, t: (p @ p.T).square().sum(), targets("real"), "must be a sum over examples"),
        (lambda p, t: 0.5, targets("real"), "must return a tensor"),
        (lambda p, t: (p > 0).sum(), targets("real"), "must return a tensor"),
        (lambda p, t: Once.apply(p).sum(), targets("real"), "finite differences"),
        (lambda p, t: p.sum() * 0 + t.sum(), targets("real", 8), "targets for 8 examples, logits of 9"),
        (None, targets("real"), r"needs labels, int64 \(9,\), not torch.float64 \(9, 3\)"),
        (None, labels().float(), "needs labels"),
        (None, labels().int(), "needs labels"),
        (None, labels(8), r"int64 \(9,\), not torch.int64 \(8,\)"),
        (None, labels()[:, None], "needs labels"),
        (None, None, "not NoneType"),
        (None, labels().tolist(), "not list"),
        (None, labels(classes=4), "labels from 0 to 3 for 3 logits"),
        (None, labels() - 1, "labels from -1 to 1"),
        (None, torch.full((9,), 99), "labels from 99 to 99"),
    ],
)
def test_losses_and_labels_that_do_not_fit_are_refused(loss, y, message, network):
    model, x = double(NETWORKS[network]()), torch.randn(9, 4, dtype=torch.float64)
    layers = ["1", "3"] if network == "chain" else ["1"]
    with pytest.raises(ValueError, match=message):
        associations(model, [(x, y)], layers=layers, loss=loss)
    if loss is None:  # the other methods need no labels
        associations(model, [(x, y)], layers=layers, methods=["forward_cov", "backward_jac"])


class Clamped(nn.Module):
    """Probabilities, kept off zero."""

    def forward(self, x):
        return x.softmax(1).clamp(min=1e-4)


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (nn.Softmax(1), "every row sums to one"),
        (Clamped(), "every row sums to one"),
        (nn.Sigmoid(), "the values of a sigmoid"),
        (nn.Hardsigmoid(), "the values of a sigmoid"),
        (nn.Sequential(nn.Sigmoid(), nn.Unflatten(1, (1, 3)), nn.Flatten()), "the values of a sigmoid"),
        (nn.Sequential(nn.Linear(3, 1)), r"not \(9, 1\)"),
        (nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), r"not \(9,\)"),
        (nn.Unflatten(1, (3, 1)), r"not \(9, 3, 1\)"),
    ],
)
def test_cross_entropy_of_what_are_no_logits_is_refused(last, message):
    model = nn.Sequential(*NETWORKS["chain"](), last).eval()
    with pytest.raises(ValueError, match=message):
        associations(model, [(torch.randn(9, 4), labels())], layers=["1"])
    associations(model, [(torch.randn(9, 4), labels())], layers=["1"], methods=["backward_jac"])


def test_cross_entropy_of_the_values_of_a_sigmoid_can_be_asked_for():
    model = double(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Sigmoid()))
    x, y = torch.randn(9, 4, dtype=torch.float64), labels()
    found = associations(model, [(x, y)], layers=["1"], methods=BACKWARD, loss=cross_entropy)
    assert agree(found, slow(model[:2], model[2:], x, y), BACKWARD)


def test_logits_that_sum_to_one_by_chance_are_no_probabilities():
    model = double(nn.Sequential(nn.Linear(4, 5), nn.LeakyReLU(), nn.Linear(5, 3)))
    with torch.no_grad():  # the last of three logits makes up for the others
        model[2].weight[2] = -model[2].weight[:2].sum(0)
        model[2].bias[2] = 1 - model[2].bias[:2].sum()
    x, y = torch.randn(9, 4, dtype=torch.float64), labels()
    found = associations(model, [(x, y)], layers=["1"], methods=BACKWARD)
    assert agree(found, slow(model[:2], model[2:], x, y), BACKWARD)


def test_a_kink_of_the_loss_close_to_a_few_outputs_is_no_reason_to_refuse_it():
    model, x = double(NETWORKS["piecewise linear"]()), torch.randn(9, 4, dtype=torch.float64)
    y = model(x).detach() + 1
    y[4, 1] -= 1  # an absolute difference of zero
    found = associations(
        model, [(x, y)], layers=["1"], methods=["backward_hess"], loss=lambda p, t: (p - t).abs() + p.exp()
    )
    expected = slow(model[:2], model[2:], x, y, loss=lambda p, _: p.exp().sum())
    assert agree(found, expected, ["backward_hess"])


def test_a_log_softmax_at_the_end_changes_nothing():
    model, x, y = double(NETWORKS["piecewise linear"]()), torch.randn(9, 4, dtype=torch.float64), labels()
    plain, logs = (
        associations(m, [(x, y)], layers=["1"], methods=["backward_hess"]).signed["backward_hess"][0]
        for m in (model, nn.Sequential(*model, nn.LogSoftmax(1)).eval())
    )
    assert close(logs, plain)
