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
