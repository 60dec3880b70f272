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
