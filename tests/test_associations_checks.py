"""Networks that are not what they seem: their matrices are right, or refused in a sentence; never silently wrong."""

import pytest
import torch
from torch import nn
from torch.autograd import grad
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import associations as face
from associations import BASE_METHODS, associations
from numerics import measurement
from numerics.chains import run_chain
from numerics.checks import check_examples
from numerics.graph import paths
from numerics.layout import Layout
from numerics.linear import linear_where_linear
from numerics.recording import recorded
from numerics.settings import frozen

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
BACKWARD = ["backward_jac", "backward_hess"]
JACOBIANS = ["forward_jac", "backward_jac"]


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def made(*parts, seed=0):
    """A float64 network of the given modules with weights of its own."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(*parts).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5)
    return model


def labels(n, classes=3):
    return torch.arange(n) % classes


def batches(x, size=4, classes=3):
    return list(zip(x.split(size), labels(len(x), classes).split(size), strict=True))


def plain(run, x):
    """Signed matrices of one layer by first derivatives alone, one number after the other; no Hessian.

    Args: run: function from x (1, …) to (h (1, units, *locations), logits (1, K)), h on the way to the logits.
    """
    totals = {method: 0 for method in JACOBIANS}
    for example in x.split(1):
        example = example.clone().requires_grad_()
        h, logits = run(example)
        flat = h.flatten(2) if h.ndim > 2 else h[..., None]
        j_in = [
            grad(value, example, retain_graph=True, materialize_grads=True)[0].flatten() for value in flat.flatten()
        ]
        j_in = torch.stack(j_in).view(*flat.shape[1:], -1)
        j_out = torch.stack([grad(value, h, retain_graph=True)[0].view(flat.shape[1:]) for value in logits[0]])
        totals["forward_jac"] = totals["forward_jac"] + torch.einsum("isd,jsd->ij", j_in, j_in) / flat.shape[2]
        totals["backward_jac"] = totals["backward_jac"] + torch.einsum("kis,kjs->ij", j_out, j_out) / flat.shape[2]
    return {method: (total / len(x)).detach() for method, total in totals.items()}


def split_at(model, index):
    """x → (output of model[index], logits)."""

    def run(x):
        h = model[: index + 1](x)
        return h, model[index + 1 :](h)

    return run


def close(found, expected, tolerance=1e-10):
    return float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


# The shortcut for dense chains ----------------------------------------------------------------------------------------


class HalfLinear(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight / 2, self.bias)


class LowRank(nn.Module):
    """A linear layer with an addition of low rank, which the inner layer does not know of."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.inner, self.a, self.b = nn.Linear(n_in, n_out), nn.Linear(n_in, 2, bias=False), nn.Linear(2, n_out)

    def forward(self, x):
        return self.inner(x) + self.b(self.a(x))


class OtherBackward(torch.autograd.Function):
    """ReLU whose gradient leaks."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return torch.where(x > 0, g, 0.25 * g)


class Reversed(torch.autograd.Function):
    """The identity, whose gradient is reversed and doubled."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return -2 * g


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def dense(first=None, activation=None, last=None):
    return made(first or nn.Linear(6, 5), activation or nn.ReLU(), last or nn.Linear(5, 3))


def hooked(position, hook):
    model = dense()
    getattr(model[position], f"register_{hook.__name__}")(hook)
    return model


def forward_hook(_module, _inputs, output):
    return 3 * output


def forward_pre_hook(_module, inputs):
    return 3 * inputs[0]


def full_backward_hook(_module, of_inputs, _of_outputs):
    return tuple(g if g is None else 3 * g for g in of_inputs)


def full_backward_pre_hook(_module, of_outputs):
    return tuple(3 * g for g in of_outputs)


def masked(model):
    prune.random_unstructured(model[0], "weight", amount=0.5)
    prune.random_unstructured(model[2], "weight", amount=0.3)
    return model


def of_instance(model):
    """The forward of one module replaced."""
    linear = model[2]
    linear.forward = lambda x: F.linear(x, 2 * linear.weight, linear.bias)
    return model


NOT_AS_THEY_SEEM = {
    "subclass, first": lambda: dense(first=HalfLinear(6, 5)),
    "subclass, last": lambda: dense(last=HalfLinear(5, 3)),
    "low rank": lambda: dense(first=LowRank(6, 5)),
    "parametrized": lambda: dense(last=parametrizations.weight_norm(nn.Linear(5, 3))),
    "orthogonal": lambda: dense(first=parametrizations.orthogonal(nn.Linear(6, 5))),
    "masked": lambda: masked(dense()),
    "hook on a linear layer": lambda: hooked(2, forward_hook),
    "hook on an activation": lambda: hooked(1, forward_hook),
    "hook before a linear layer": lambda: hooked(0, forward_pre_hook),
    "backward hook": lambda: hooked(2, full_backward_hook),
    "leaking backward": lambda: dense(activation=Apply(OtherBackward.apply)),
    "reversed before": lambda: dense(first=nn.Sequential(Apply(Reversed.apply), nn.Linear(6, 5))),
    "reversed between": lambda: dense(last=nn.Sequential(Apply(Reversed.apply), nn.Linear(5, 3))),
    "forward of one module": lambda: of_instance(dense()),
    "as it seems": dense,
}


@pytest.mark.parametrize("kind", NOT_AS_THEY_SEEM)
def test_dense_networks_get_the_derivatives_that_they_have(kind):
    model, x = NOT_AS_THEY_SEEM[kind](), randn(9, 6)
    found = associations(model, batches(x), layers=["1"])
    expected = (
        plain(split_at(model, 1), x) if "hook on an act" not in kind else plain(lambda t: hooked_parts(model, t), x)
    )
    for method in JACOBIANS:
        assert close(found.signed[method][0], expected[method])
    if "backward hook" not in kind and "reversed" not in kind and "leaking" not in kind:
        assert close(found.signed["backward_hess"][0], gauss_newton(model, x), 1e-10)


def hooked_parts(model, x):
    h = model[1](model[0](x))
    return h, model[2](h)


def gauss_newton(model, x):
    """E Jᵀ(diag(p) − ppᵀ)J for the layer "1" of a dense network."""
    total = 0
    for example in x.split(1):
        h, logits = hooked_parts(model, example)
        j = torch.stack([grad(value, h, retain_graph=True)[0][0] for value in logits[0]])
        p = logits[0].softmax(0)
        total = total + (j.T @ (p.diag() - p[:, None] * p) @ j).detach()
    return total / len(x)


@pytest.mark.parametrize("hook", [full_backward_hook, full_backward_pre_hook])
def test_layers_with_backward_hooks_are_refused(hook):
    with pytest.raises(ValueError, match="'1' has a backward hook"):
        associations(hooked(1, hook), batches(randn(9, 6)), layers=["1"])


def test_a_chain_is_taken_by_its_products_and_no_other_network_is():
    x = randn(9, 6).requires_grad_()
    for kind, make in NOT_AS_THEY_SEEM.items():
        model = make()
        with recorded(model, ["1"]) as run, frozen(model):
            assert (run_chain(model, run, x)[2] is not None) == (kind == "as it seems"), kind


def test_layers_that_share_a_network_with_more_are_no_chain():
    class Skip(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x):
            h = torch.relu(self.a(x))
            return [h], self.b(h) + 0 * x[:, :3]  # the same values, another graph, the same gradients by h

    model, x = Skip().double().eval(), randn(9, 6)
    found = associations(model, batches(x))
    assert close(found.signed["backward_jac"][0], (model.b.weight.T @ model.b.weight).detach())


def test_as_many_logits_as_passes_go_by_the_products(monkeypatch):
    model, x = dense(last=nn.Linear(5, 64)), randn(9, 6)
    monkeypatch.setattr(measurement.Measurement, "_add_general", lambda *_: pytest.fail("not by the products"))
    found = associations(model, batches(x, classes=64), layers=["1"])
    assert not found.stderr
    assert close(found.signed["backward_jac"][0], (model[2].weight.T @ model[2].weight).detach())


def test_chains_and_other_routes_treat_nan_alike(monkeypatch):
    model, x = made(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)), randn(9, 6)
    x[2, 1] = float("nan")
    with pytest.warns(UserWarning, match="1 of the images"):
        chain = associations(model, batches(x), layers=["1", "3"])
    monkeypatch.setattr(measurement, "run_chain", lambda _model, run, x: (*run(x), None))
    with pytest.warns(UserWarning, match="1 of the images"):
        general = associations(model, batches(x), layers=["1", "3"])
    for method in JACOBIANS:
        for a, b in zip(chain.signed[method], general.signed[method], strict=True):
            assert close(a, b)


# Ways from the layers to the logits -----------------------------------------------------------------------------------


class Copies(nn.Module):
    """hidden is made from what passes on, and does not pass on itself."""

    def __init__(self, copy):
        super().__init__()
        self.conv, self.head, self.copy = nn.Conv2d(3, 4, 3), nn.Linear(144, 3), copy

    def forward(self, x):
        z = torch.relu(self.conv(x))
        return [self.copy(z)], self.head(z.flatten(1))


COPIES = {
    "clone": torch.clone,
    "flatten": lambda z: z.flatten(2),
    "pooled": lambda z: F.avg_pool2d(z, 2),
    "detached": torch.detach,
    "detached clone": lambda z: z.detach().clone(),
    "part": lambda z: z[:, :2],
}


@pytest.mark.parametrize("kind", COPIES)
def test_hidden_layers_that_are_copies_are_refused(kind):
    torch.manual_seed(0)
    model, x = Copies(COPIES[kind]).double().eval(), randn(6, 3, 8, 8)
    for methods in (["backward_jac"], ["backward_hess"], face.METHODS):
        with pytest.raises(ValueError, match=r"hidden\[0\] is not what the logits are computed from"):
            associations(model, batches(x), methods=methods)
    found = associations(model, batches(x), methods=["forward_cov"])
    assert found.assoc["forward_cov"][0].any()


def test_compiled_networks_run_eagerly_and_agree():
    model, x = made(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)), randn(9, 6)
    expected = associations(model, batches(x), layers=["1"])
    whole = torch.compile(model, backend="aot_eager")
    part = nn.Sequential(model[0], torch.compile(model[1], backend="aot_eager"), model[2]).eval()
    for compiled in (whole, part):
        found = associations(compiled, batches(x), layers=["1"])
        for method in BASE_METHODS:
            assert torch.equal(found.signed[method][0], expected.signed[method][0])
    inside = made(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    inside[2].compile(backend="aot_eager")
    assert torch.equal(
        associations(inside, batches(x), layers=["1"]).signed["backward_hess"][0], expected.signed["backward_hess"][0]
    )


class Aside(nn.Module):
    """A module that runs, and whose output goes nowhere, or into the logits in a way that autograd does not see."""

    def __init__(self, use):
        super().__init__()
        self.body, self.aside, self.head, self.use = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(5, 3), use

    def forward(self, x):
        h = torch.relu(self.body(x))
        return self.head(h) + self.use(self.aside(h))


def test_a_layer_without_effect_gives_zeros_and_one_with_a_hidden_effect_is_refused():
    x = randn(9, 6)
    for use in (lambda _: 0.0, lambda z: 0 * z[:, :3]):
        found = associations(Aside(use).double().eval(), batches(x), layers=["aside"])
        assert not found.assoc["backward_jac"][0].any() and not found.assoc["backward_hess"][0].any()
        assert found.assoc["forward_jac"][0].any()
    for use in (lambda z: z.detach()[:, :3], lambda z: torch.as_tensor(z.detach().numpy()[:, :3])):
        model = Aside(use).double().eval()
        with pytest.raises(ValueError, match="'aside' has an effect on the logits, but autograd sees none"):
            associations(model, batches(x), layers=["aside"])
        assert associations(model, batches(x), layers=["aside"], methods=["forward_jac"]).assoc["forward_jac"][0].any()


class Backbone(nn.Module):
    """Features without gradients, and a head."""

    def __init__(self, without):
        super().__init__()
        self.body, self.out, self.head, self.without = nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3), without

    def forward(self, x):
        with self.without():
            h = self.out(self.body(x))
        return self.head(h)


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_backbones_without_gradients_have_backward_matrices_and_no_forward_jacobian(without):
    torch.manual_seed(0)
    model, x = Backbone(without).double().eval(), randn(9, 6)
    found = associations(model, batches(x), layers=["out"])
    whole = associations(nn.Sequential(model.body, model.out, model.head).eval(), batches(x), layers=["1"])
    for method in ("forward_cov", *BACKWARD):
        assert close(found.signed[method][0], whole.signed[method][0])
    assert not found.assoc["forward_jac"][0].any()
    if without is torch.no_grad:
        with pytest.raises(ValueError, match="'body' has an effect"):
            associations(model, batches(x), layers=["body"])


@pytest.mark.parametrize("cut", [torch.detach, lambda x: torch.as_tensor(x.detach().numpy()), lambda x: x.data])
def test_inputs_that_are_cut_off_have_no_jacobian(cut):
    model = made(Apply(cut), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    for methods in (["forward_jac"], face.METHODS):
        with pytest.raises(ValueError, match="forward_jac: layer '2' depends on the input, but autograd"):
            associations(model, batches(randn(9, 6)), layers="2", methods=methods)
    found = associations(model, batches(randn(9, 6)), layers="2", methods=["forward_cov", *BACKWARD])
    expected = associations(model[1:].eval(), batches(randn(9, 6)), layers="2", methods=["forward_cov", *BACKWARD])
    for method, matrices in expected.signed.items():
        assert close(found.signed[method][0], matrices[0])


def test_hidden_layers_without_a_way_from_the_input_have_no_jacobian():
    model = Copies(torch.detach).double().eval()
    with pytest.raises(ValueError, match=r"forward_jac: hidden\[0\] depends on the input, but autograd"):
        associations(model, batches(randn(6, 3, 8, 8)), methods=["forward_jac"])
    constant = Copies(lambda z: torch.ones_like(z.detach())[:, :, :2, :2]).double().eval()
    assert not associations(constant, batches(randn(6, 3, 8, 8)), methods=["forward_jac"]).assoc["forward_jac"][0].any()


def test_layers_that_do_not_depend_on_the_input():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.prompt, self.head = nn.Embedding(1, 5), nn.Linear(6, 3)
            self.mix = nn.Linear(5, 3)

        def forward(self, x):
            prompt = self.prompt(torch.zeros(len(x), dtype=torch.long))
            return self.head(x) + self.mix(prompt)

    model, x = Constant().double().eval(), randn(9, 6)
    found = associations(model, batches(x), layers=["prompt"])
    assert not found.assoc["forward_jac"][0].any() and not found.assoc["forward_cov"][0].any()
    assert close(found.signed["backward_jac"][0], (model.mix.weight.T @ model.mix.weight).detach())


def test_the_graph_tells_layers_that_are_reached_and_what_is_piecewise_linear():
    net = made(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    x = randn(3, 4).requires_grad_()
    with frozen(net):
        h = net[:2](x)
        a, b = h.chunk(2, 1)
        twice = torch.cat([b, b], 1)
        assert paths([a, b], [net[2](twice)]).reached == [False, True]
        for logits, linear in (
            (net[2](h), True),
            (h * x, True),
            (h * h, False),
            (h @ h.T, False),
            (x @ h.T, True),
            (1 / h, False),
            (h / 2, False),  # not known to be: asked of second derivatives
            (h.sigmoid(), False),
            (torch.cat([h, 2 * h]).amax(1), False),
        ):
            assert paths([h], [logits]).linear == linear
        assert paths([h], [OtherBackward.apply(h)]) == ([True], {"OtherBackward"}, False, False)
        assert paths([h.clone().detach()], [net[2](h)]).reached == [False]


# Operations that torch does not differentiate twice ------------------------------------------------------------------


class NumpyTanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.y = torch.tanh(x.detach())
        return ctx.y.clone()

    @staticmethod
    def backward(ctx, g):
        return torch.as_tensor(g.detach().numpy() * (1 - ctx.y.numpy() ** 2))


class OnceTanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return g * (1 - y**2)


class KeptTanh(torch.autograd.Function):
    """What the backward uses was kept on ctx: linear in g, and its second derivative is lost."""

    @staticmethod
    def forward(ctx, x):
        y = torch.tanh(x)
        ctx.slope = 1 - y**2
        return y

    @staticmethod
    def backward(ctx, g):
        return g * ctx.slope


class GoodTanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return g * (1 - y**2)


class KeptReLU(torch.autograd.Function):
    """Piecewise linear, rightly."""

    @staticmethod
    def forward(ctx, x):
        ctx.mask = (x > 0).to(x.dtype)
        return x * ctx.mask

    @staticmethod
    def backward(ctx, g):
        return g * ctx.mask


def conv(function, shortcut=False):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.head = nn.Linear(256, 3)

        def forward(self, x):
            z = self.first(x)
            h = self.second(function(z) + (z if shortcut else 0))
            return [h], self.head(h.flatten(1))

    torch.manual_seed(0)
    return Net().double().eval()


@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize("function", [NumpyTanh, OnceTanh])
def test_jacobians_through_backwards_that_are_not_differentiable_are_refused(function, shortcut):
    model, x = conv(function.apply, shortcut), randn(6, 3, 8, 8)
    with pytest.raises(ValueError, match=r"forward_jac: the derivative of hidden\[0\]"):
        associations(model, batches(x), methods=["forward_jac"])
    expected = plain(lambda t: (lambda out: (out[0][0], out[1]))(model(t)), x[:2])["backward_jac"]
    found = associations(model, batches(x[:2]), methods=["backward_jac"])
    assert close(found.signed["backward_jac"][0], expected)


@pytest.mark.parametrize("function", [KeptTanh, GoodTanh, KeptReLU, torch.tanh])
def test_jacobians_through_other_functions_are_right(function):
    apply = getattr(function, "apply", function)
    model, x = conv(apply, shortcut=True), randn(2, 3, 8, 8)
    found = associations(model, batches(x), methods=["forward_jac"], jac_directions=64)
    expected = plain(lambda t: (lambda out: (out[0][0], out[1]))(model(t)), x)["forward_jac"]
    z = (found.signed["forward_jac"][0] - expected) / found.stderr["forward_jac"][0]
    assert z.square().mean().sqrt() < 2
    assert found.stderr["forward_jac"][0].max() < 0.2 * expected.abs().max()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("methods", [["forward_jac"], ["backward_jac"], ["backward_hess"]])
def test_operations_without_any_derivative_are_refused(methods):
    model = dense().float()
    for position in (0, 2):  # before the layer, and after it
        which = {str(position): torch.ao.quantization.default_dynamic_qconfig}
        quantized = torch.ao.quantization.quantize_dynamic(model, which).eval()
        options = {"layers": ["1"], "methods": methods}
        if (position == 0) == (methods == ["forward_jac"]):
            with pytest.raises(ValueError, match="has no derivative, as those of quantized modules"):
                associations(quantized, batches(randn(9, 6).float()), **options)
        else:
            assert associations(quantized, batches(randn(9, 6).float()), **options).assoc[methods[0]][0].any()


def test_what_torch_cannot_differentiate_is_refused_in_a_sentence():
    model, x = dense(), randn(9, 6)
    model[1].register_forward_hook(lambda _module, _inputs, output: output.mul_(2))  # its gradient needs the output
    assert associations(model, batches(x), layers=["0"], methods=["forward_cov"]).assoc["forward_cov"][0].any()
    with pytest.raises(ValueError, match="the network cannot be differentiated: one of the variables needed"):
        associations(model, batches(x), layers=["0"], methods=["backward_jac"])


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_layers_without_units_are_refused():
    with pytest.raises(ValueError, match="layer '1' has no units"):
        associations(dense(first=nn.Linear(6, 0), last=nn.Linear(0, 3)), batches(randn(9, 6)), layers=["1"])


def test_small_layers_need_no_second_derivatives():
    model, x = (
        dense(first=nn.Sequential(nn.Linear(6, 5), Apply(NumpyTanh.apply)), activation=nn.Identity()),
        randn(9, 6),
    )
    found = associations(model, batches(x), layers=["1"], methods=JACOBIANS)
    expected = plain(split_at(model, 1), x)
    for method in JACOBIANS:
        assert close(found.signed[method][0], expected[method])


def test_the_layer_without_a_jacobian_is_named():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.head = nn.Linear(256, 3)

        def forward(self, x):
            first = self.first(x)
            return self.head((self.second(NumpyTanh.apply(first / scale)) + first).flatten(1))

    for scale, weight in ((1, 1), (1e6, 1e-3)):  # however large the others are beside it
        model = Two().double().eval()
        with torch.no_grad():
            model.first.weight.mul_(scale)
            model.second.weight.mul_(weight)
        with pytest.raises(ValueError, match=r"the derivative of layer 'second' by") as refusal:
            associations(model, batches(randn(6, 3, 8, 8)), layers=["first", "second"], methods=["forward_jac"])
        assert "'first'" not in str(refusal.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shortcut", [False, True])
def test_hessians_after_functions_of_ones_own_are_right_or_refused(shortcut, dtype):
    class After(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.function, self.last = function, nn.Linear(5, 3)

        def forward(self, h):
            return self.last(self.function(h) + (h if shortcut else 0))

    def network(function):
        return made(nn.Linear(6, 5), nn.Identity(), After(function)).to(dtype)

    x = randn(9, 6).to(dtype)

    def hessian(function):
        return associations(network(function), batches(x), layers=["1"], methods=["backward_hess"]).signed[
            "backward_hess"
        ][0]

    for function in (NumpyTanh, OnceTanh, KeptTanh):
        with pytest.raises(ValueError, match=function.__name__):
            hessian(function.apply)
    assert close(hessian(GoodTanh.apply), hessian(torch.tanh), 1e-10 if dtype == torch.float64 else 1e-4)
    assert close(hessian(KeptReLU.apply), hessian(torch.relu), 1e-10 if dtype == torch.float64 else 1e-4)


def test_functions_before_the_layer_do_not_matter_to_its_hessian():
    model = made(nn.Linear(6, 5), Apply(NumpyTanh.apply), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    same = made(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    a, b = (associations(m, batches(randn(9, 6)), layers=["3"], methods=["backward_hess"]) for m in (model, same))
    assert close(a.signed["backward_hess"][0], b.signed["backward_hess"][0])


@pytest.mark.parametrize("order", [1, -1])
def test_curvature_that_only_some_images_reach_counts(order):
    model = made(nn.Linear(6, 5), nn.ReLU(), nn.Hardswish(), nn.Linear(5, 3))
    with torch.no_grad():
        model[0].weight.abs_()
        model[0].bias.fill_(5)
    x = randn(12, 6).abs()
    x[-2:] = -3 + 0.5 * randn(2, 6, seed=1)  # the ReLU's output is below 3, where Hardswish is curved
    x[-2:, 0] += 1
    data = [(x, labels(12))] if order == 1 else [(x.flip(0), labels(12).flip(0))]
    found = associations(model, data, layers=["0"], methods=["backward_hess"]).signed["backward_hess"][0]
    total = 0
    for example, label in zip(x, labels(12), strict=True):
        h = model[0](example[None])
        total = total + torch.func.hessian(lambda t, y=label: F.cross_entropy(model[1:](t), y[None]))(h)[0, :, 0]
    assert close(found, (total / 12).detach(), 1e-8)


def test_hard_sigmoids_differentiate_twice():
    class Gate(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.first, self.second, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(144, 3)
            self.function = function

        def forward(self, x):
            z = self.first(x)
            h = z * self.function(self.second(z))
            return [h], self.head(h.flatten(1) * self.function(h.flatten(1)))

    def found(function, **options):
        torch.manual_seed(0)
        return associations(Gate(function).double().eval(), batches(randn(6, 3, 8, 8)), **options)

    module, by_hand = found(nn.Hardsigmoid()), found(lambda t: (t + 3).clamp(0, 6) / 6)
    for method in BASE_METHODS:
        assert close(module.signed[method][0], by_hand.signed[method][0])
    forward_mode = found(F.hardsigmoid, methods=["forward_jac"])  # torch differentiates it once, and in forward mode
    assert close(
        forward_mode.signed["forward_jac"][0], by_hand.signed["forward_jac"][0], 1e-6
    )  # torch's 1/6 is a float32
    with pytest.raises(ValueError, match=r"backward_hess: .* cannot be differentiated twice"):
        found(F.hardsigmoid, methods=["backward_hess"])


def test_attention_is_differentiated_by_its_formula():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
            self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

        def forward(self, x):
            return self.last(self.block(self.embed(x)).mean(1))

    torch.manual_seed(0)
    model, x = Attention().double().eval(), randn(6, 12, 6)
    found = associations(model, batches(x), layers=["embed", "block"], unit_dim=-1)
    assert set(found.stderr) == {"forward_jac", "forward_jac_norm"}
    h = model.embed(x).detach()
    expected = 0
    for example in h:
        j = torch.autograd.functional.jacobian(lambda t: model.last(model.block(t[None]).mean(1))[0], example)
        expected = expected + torch.einsum("ksi,ksj->ij", j, j) / 6 / 12
    assert close(found.signed["backward_jac"][0], expected)


# Random networks and examples that influence each other ---------------------------------------------------------------


class Noise(nn.Module):
    """What is random, or looks at other examples, in evaluation mode."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, z):
        if self.kind == "dropout":
            return F.dropout(z, 0.02, training=True)
        if self.kind == "noise":
            return z + 0.1 * torch.randn_like(z)
        if self.kind == "statistics":
            return (z - z.mean(0)) / (z.std(0, correction=0) + 1e-3)
        if self.kind == "others":
            return z + 0.05 * z.flip(0)
        return z


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["dropout", "noise", "statistics", "others"])
def test_random_networks_and_examples_in_company_are_refused_in_every_precision(kind, dtype):
    torch.manual_seed(0)
    model = made(nn.Linear(6, 50), Noise(kind), nn.ReLU(), nn.Linear(50, 3)).to(dtype)
    with pytest.raises(ValueError, match="random, or its examples influence each other"):
        associations(model, batches(randn(9, 6).to(dtype), 9), layers=["0"], methods=["forward_cov"])


@pytest.mark.parametrize("kind", ["statistics", "others"])
def test_layers_whose_examples_influence_each_other_are_refused_though_the_logits_are_not_made_of_them(kind):
    model = Aside(lambda _: 0.0).double().eval()
    model.aside = Noise(kind).eval()
    with pytest.raises(ValueError, match="random, or its examples influence each other"):
        associations(model, batches(randn(9, 6), 9), layers=["aside"], methods=["forward_cov"])


def test_random_numbers_that_change_nothing_this_time_are_noticed():
    model = dense(activation=Apply(lambda z: F.dropout(z, 1e-9, training=True)))
    with pytest.raises(ValueError, match="it draws random numbers"):
        associations(model, batches(randn(9, 6)), layers=["1"], methods=["forward_cov"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_networks_whose_examples_are_alone_are_not_refused(dtype):
    model = made(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).to(dtype)
    model[1].running_var.fill_(0.3)
    x = randn(9, 3, 8, 8).to(dtype)
    x[1] = 100
    with recorded(model, ["0"]) as run, frozen(model), linear_where_linear(model):
        for n in (1, 2, 3, 9):
            check_examples(run, x[:n], [Layout()])


# Half precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["dense", "conv", "smooth"])
def test_half_precision_agrees_within_its_digits(kind, dtype):
    if kind == "conv":
        model = made(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3)
        )
        layer, x = "2", randn(40, 3, 8, 8)
    else:
        model = dense(activation=nn.ReLU() if kind == "dense" else nn.Tanh())
        layer, x = "0" if kind == "smooth" else "1", randn(40, 6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype) / 2)
    x = x.to(dtype)
    half = associations(model.to(dtype), batches(x, 20), layers=[layer], jac_directions=2)
    full = associations(model.double(), batches(x.double(), 20), layers=[layer], jac_directions=2)
    for method in BASE_METHODS:
        if not (kind == "conv" and method == "forward_jac"):  # random directions
            assert close(half.signed[method][0], full.signed[method][0], 12 * torch.finfo(dtype).eps)
        assert half.assoc[method][0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_the_networks_alone(dtype):
    model, x = dense().float(), randn(400, 6).float()
    expected = associations(model, batches(x, 200), layers=["1"])
    with torch.autocast("cpu", dtype=dtype):
        found = associations(model, batches(x, 200), layers=["1"])
        assert torch.is_autocast_enabled("cpu")
    for method in BASE_METHODS:
        assert close(found.signed[method][0], expected.signed[method][0], 8 * torch.finfo(dtype).eps)
        assert not torch.equal(found.signed[method][0], expected.signed[method][0])  # it was on


def test_large_images_in_half_precision_do_not_overflow():
    model = made(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half() / 8)
    x = randn(60, 1, 8, 8).abs().mul(255).clamp(max=255).half()
    half = associations(model.half(), batches(x, 60), layers=["1"], methods=["forward_cov"])
    full = associations(model.double(), batches(x.double(), 60), layers=["1"], methods=["forward_cov"])
    assert close(half.signed["forward_cov"][0], full.signed["forward_cov"][0], 0.01)
