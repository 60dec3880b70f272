"""Association matrices against slow, obvious implementations, the stored measurements, and what must hold of them."""

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import hessian, jacrev, jvp, vmap
from torch.nn import functional as F

from associations import BASE_METHODS, METHODS, Associations, associations
from models.cifar10 import Cifar10Fast
from models.mnist import MnistSupervised
from numerics import measurement as module
from numerics.chains import run_chain
from numerics.derivatives import by_unit
from numerics.layout import Layout
from numerics.linear import linear_where_linear
from numerics.recording import recorded
from numerics.running_sums import Covariance, GramSum, diagonal_blocks, normalized
from numerics.settings import frozen
from numerics.tangents import checked_tangents, forward_tangents

# torch.func's first forward-mode call compiles its own decompositions with a deprecated function
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")


def batches_of(x, y, size):
    return list(zip(x.split(size), y.split(size), strict=True))


def random_data(n, *shape, classes=10, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *shape, generator=generator, dtype=dtype)
    return x, torch.randint(classes, (n,), generator=generator)


class Split(nn.Module):
    """A network in two parts; hidden is what passes between them."""

    def __init__(self, before, after):
        super().__init__()
        self.before, self.after = before, after

    def forward(self, x):
        h = self.before(x)
        return [h], self.after(h)


def small_conv(after=None, classes=3, seed=0):
    """(N, 2, 6, 6) → h (N, 4, 4, 4) → logits, float64, evaluation mode."""
    torch.manual_seed(seed)
    before = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    after = after or nn.Sequential(nn.Conv2d(4, 5, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(5, classes))
    before[3].running_mean.uniform_(-0.1, 0.1)
    before[3].running_var.uniform_(0.05, 0.3)
    return Split(before, after).double().eval()


def small_dense(activation=nn.ReLU, widths=(5, 6, 7, 4), seed=0):
    """Linear → activation → …, float64; the names of the activations' modules are in `.names`."""
    torch.manual_seed(seed)
    parts = [part for a, b in pairwise(widths[:-1]) for part in (nn.Linear(a, b), activation())]
    model = nn.Sequential(*parts, nn.Linear(widths[-2], widths[-1])).double().eval()
    model.names = [str(i) for i in range(1, len(parts), 2)]
    return model


def textbook(before, after, x, y):
    """Signed matrices of the four methods for one layer, example by example: jacrev, jacrev, hessian; float64."""
    per_location = {}
    with torch.no_grad():
        h = before(x)

    def units(t):  # (…, C, *locations) of one example → (S, C, …)
        return t.reshape(len(t), -1, *t.shape[h.ndim - 1 :]).transpose(0, 1)

    h_rows = by_unit(h)  # (N, S, C)
    centred = h_rows - h_rows.mean(0)
    per_location["forward_cov"] = torch.einsum("nsi,nsj->ij", centred, centred)
    totals = {method: 0 for method in BASE_METHODS[1:]}
    for xn, hn, yn in zip(x, h, y, strict=True):

        def logits(t):
            return after(t[None])[0]

        j_in = units(jacrev(lambda t: before(t[None])[0])(xn)).flatten(2)  # (S, C, D)
        j_out = jacrev(logits)(hn).reshape(-1, h.shape[1], h_rows.shape[1])  # (K, C, S)
        second = hessian(lambda t, yn=yn: F.cross_entropy(logits(t), yn))(hn)
        second = second.reshape(2 * [h.shape[1], h_rows.shape[1]])
        totals["forward_jac"] += torch.einsum("sid,sjd->ij", j_in, j_in)
        totals["backward_jac"] += torch.einsum("kis,kjs->ij", j_out, j_out)
        totals["backward_hess"] += torch.einsum("isjs->ij", second)
    return {method: total / len(x) / h_rows.shape[1] for method, total in (per_location | totals).items()}


def largest_difference(a, b):
    """max |a − b| / max |b|."""
    return float(((a - b).abs().max() / b.abs().max()).detach())


# The reference measurements and their float64 truth -------------------------------------------------------------------


def reference_network(stored, dtype):
    weights = {name.removeprefix("w__"): torch.tensor(stored[name]) for name in stored.files if name.startswith("w__")}
    dense = "images_uint8" in stored.files
    model = MnistSupervised(channels=(24, 16, 12)) if dense else Cifar10Fast(channels=(4, 6, 8, 8))
    model.load_state_dict(weights)
    x = torch.tensor(stored["images_uint8"][:, None]) / 255 if dense else torch.tensor(stored["inputs"])
    return model.to(dtype).eval(), batches_of(x.to(dtype), torch.tensor(stored["labels"]), 70)


def scaled_difference(ours, theirs):
    """max |s·ours − theirs| / max |theirs| with the least-squares scale s."""
    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    scale = (ours * theirs).sum() / (ours * ours).sum()
    assert scale > 0
    return np.abs(scale * ours - theirs).max() / np.abs(theirs).max()


def test_dense_network_agrees_with_the_reference(reference):
    stored = reference("mlp.npz")
    single = associations(*reference_network(stored, torch.float32), combined=True)
    double = associations(*reference_network(stored, torch.float64), combined=True)
    for method in METHODS:
        assert scaled_difference(single.assoc[f"{method}_combined"], stored[f"combined__{method}"]) < 3e-5
        for layer in range(3):
            assert scaled_difference(single.assoc[method][layer], stored[f"layer__{method}__{layer}"]) < 3e-5
    for method in BASE_METHODS:
        truth = torch.tensor(stored[f"truth_signed__combined_{method}"])
        assert largest_difference(double.signed[f"{method}_combined"], truth) < 1e-8
        for layer in range(3):
            truth = torch.tensor(stored[f"truth_signed__{method}__{layer}"])
            assert largest_difference(double.signed[method][layer], truth) < 1e-8


def test_convolutional_network_agrees_with_the_reference(reference, monkeypatch):
    stored = reference("conv.npz")
    monkeypatch.setattr(module, "MAX_EXACT_PASSES", 64 * 16)  # h3–h5 exactly; h0–h2 are in the next test
    single = associations(*reference_network(stored, torch.float32))
    double = associations(*reference_network(stored, torch.float64))
    for layer in range(6):
        for method in METHODS if layer > 2 else [m for m in METHODS if "forward_jac" not in m]:
            assert scaled_difference(single.assoc[method][layer], stored[f"layer__{method}__{layer}"]) < 3e-5
        for method in BASE_METHODS if layer > 2 else [m for m in BASE_METHODS if m != "forward_jac"]:
            assert scaled_difference(double.signed[method][layer], stored[f"truth_signed__{method}__{layer}"]) < 1e-8
        n_locations = stored[f"hidden__{layer}"][0, 0].size
        hess = torch.tensor(stored[f"truth_signed__backward_hess__{layer}"]) / n_locations
        assert largest_difference(double.signed["backward_hess"][layer], hess) < 1e-8  # also in scale


def test_sampled_forward_jac_agrees_with_the_reference_within_its_errors(reference):
    stored = reference("conv.npz")
    found = associations(*reference_network(stored, torch.float64), methods=["forward_jac"], jac_directions=128)
    for layer in range(5):
        truth = torch.tensor(stored[f"truth_signed__forward_jac__{layer}"])
        z = (found.signed["forward_jac"][layer] - truth) / found.stderr["forward_jac"][layer]
        assert found.stderr["forward_jac"][layer].max() < 0.1 * truth.abs().max()
        assert z.pow(2).mean().sqrt() < 2


# Slow and obvious: per-example autodiff -------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["chain", "general"])
def test_every_layer_of_a_dense_network_agrees_with_per_example_autodiff(route, monkeypatch):
    model, (x, y) = small_dense(), random_data(13, 5, classes=4)
    if route == "general":
        monkeypatch.setattr(module, "MAX_EXACT_LOGITS", 4)
        monkeypatch.setattr(module, "run_chain", lambda _model, run, x: (*run(x), None))
    found = associations(model, batches_of(x, y, 5), layers=model.names)
    for layer, name in enumerate(model.names):
        expected = textbook(model[: int(name) + 1], model[int(name) + 1 :], x, y)
        for method in BASE_METHODS:
            assert largest_difference(found.signed[method][layer], expected[method]) < 1e-12
    assert not found.stderr


def test_convolutional_layer_agrees_with_per_example_autodiff(monkeypatch):
    monkeypatch.setattr(module, "MAX_EXACT_PASSES", 64)
    model, (x, y) = small_conv(), random_data(7, 2, 6, 6, classes=3)
    found, expected = associations(model, batches_of(x, y, 3)), textbook(model.before, model.after, x, y)
    for method in BASE_METHODS:
        assert largest_difference(found.signed[method][0], expected[method]) < 1e-12


@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU, nn.Softplus])
def test_hessian_after_a_smooth_nonlinearity_is_the_true_one(activation):
    smooth = nn.Sequential(nn.Conv2d(4, 5, 3), activation(), nn.Flatten(), nn.Linear(20, 3))
    for model, x, y in (
        (small_conv(smooth), *random_data(5, 2, 6, 6, classes=3)),
        (small_dense(activation), *random_data(5, 5, classes=4)),
    ):
        layers = None if isinstance(model, Split) else ["1"]
        before, after = (model.before, model.after) if layers is None else (model[:2], model[2:])
        found, expected = associations(model, batches_of(x, y, 2), layers=layers), textbook(before, after, x, y)
        for method in ("backward_hess", "backward_jac"):
            assert largest_difference(found.signed[method][0], expected[method]) < 1e-10


def test_combined_matrix_holds_the_cross_layer_blocks():
    model, (x, y) = small_dense(), random_data(11, 5, classes=4)
    both = associations(model, batches_of(x, y, 4), layers=model.names, combined=True)
    alone = associations(model, batches_of(x, y, 4), layers=model.names)
    j1, j2 = (vmap(jacrev(model[: int(name) + 1]))(x) for name in model.names)
    h1, h2 = (model[: int(name) + 1](x).detach() for name in model.names)
    k1, k2 = (vmap(jacrev(model[int(name) + 1 :]))(h) for name, h in zip(model.names, (h1, h2), strict=True))
    p = model(x).softmax(1)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    cross = {
        "forward_cov": ((h1 - h1.mean(0)).T @ (h2 - h2.mean(0))) / len(x),
        "forward_jac": torch.einsum("nia,nja->ij", j1, j2) / len(x),
        "backward_jac": torch.einsum("nki,nkj->ij", k1, k2) / len(x),
        "backward_hess": torch.einsum("nki,nkl,nlj->ij", k1, middle, k2) / len(x),
    }
    for method in BASE_METHODS:
        assert largest_difference(both.signed[f"{method}_combined"][:6, 6:], cross[method]) < 1e-12
        for a, b in zip(both.signed[method], alone.signed[method], strict=True):
            assert largest_difference(a, b) < 1e-12
        expected = normalized(both.signed[f"{method}_combined"]).abs().float()
        assert torch.equal(both.assoc[f"{method}_norm_combined"], expected)


def test_tangents_are_those_of_forward_mode():
    model = small_conv()
    x, v = random_data(3, 2, 6, 6)[0], random_data(3, 2, 6, 6, seed=1)[0]
    x.requires_grad_()
    with recorded(model) as run, frozen(model), linear_where_linear(model):
        hidden, _ = run(x)
        tangents, forward_mode = checked_tangents(run, x, [x], hidden, [0], [Layout()], torch.Generator())
        assert not forward_mode
        for found in (tangents([v])[0], forward_tangents(run, x, [v])[0]):
            assert largest_difference(found, jvp(lambda t: model(t)[0][0], (x,), (v,))[1]) < 1e-12


# Properties -----------------------------------------------------------------------------------------------------------


def test_batch_size_does_not_matter():
    model, (x, y) = small_conv(), random_data(48, 2, 6, 6, classes=3)
    whole, parts = (associations(model, batches_of(x, y, size)) for size in (48, 16))
    ragged = associations(model, batches_of(x, y, 7), methods=[m for m in BASE_METHODS if m != "forward_jac"])
    for method in BASE_METHODS:
        if method != "forward_jac":
            assert largest_difference(ragged.signed[method][0], whole.signed[method][0]) < 1e-12
            assert largest_difference(parts.signed[method][0], whole.signed[method][0]) < 1e-12


def test_one_pass_reads_the_data_once_and_methods_do_not_influence_each_other():
    model, (x, y) = small_conv(), random_data(12, 2, 6, 6, classes=3)
    together = associations(model, iter(batches_of(x, y, 4)))
    for method in METHODS:
        alone = associations(model, iter(batches_of(x, y, 4)), methods=[method])
        assert list(alone.assoc) == [method]
        assert torch.equal(alone.assoc[method][0], together.assoc[method][0])


def test_same_seed_same_matrices_other_seed_other_matrices(monkeypatch):
    monkeypatch.setattr(module, "MAX_EXACT_PASSES", 0)
    model, (x, y) = small_conv(), random_data(12, 2, 6, 6, classes=3)
    torch.manual_seed(1)
    first = associations(model, batches_of(x, y, 4), methods=["forward_jac"], seed=3)
    again = associations(model, batches_of(x, y, 4), methods=["forward_jac"], seed=3)
    other = associations(model, batches_of(x, y, 4), methods=["forward_jac"], seed=4)
    assert torch.equal(first.assoc["forward_jac"][0], again.assoc["forward_jac"][0])
    assert not torch.equal(first.assoc["forward_jac"][0], other.assoc["forward_jac"][0])
    assert torch.initial_seed() == 1  # the global generator was left alone


def test_covariance_with_a_large_mean_keeps_its_digits():
    generator = torch.Generator().manual_seed(0)
    h = (1e3 + torch.randn(2000, 3, 5, generator=generator)).float()
    covariance = Covariance()
    for part in h.split(300):
        covariance.add(part)
    exact = sum(torch.cov(h[:, s].double().T, correction=0) for s in range(3)) / 3
    assert (covariance.mean(len(h)) - exact).abs().max() < 1e-6


def test_covariance_of_locations_with_large_and_different_means_keeps_its_digits():
    noise = random_data(500, 3, 4)[0]
    covariance = Covariance()
    for part in (noise + torch.tensor([0.0, 1e4, -1e4])[:, None]).float().split(100):
        covariance.add(part)
    exact = sum(torch.cov(noise[:, s].T, correction=0) for s in range(3)) / 3
    assert (covariance.mean(500) - exact).abs().max() < 2e-3  # roundings of 1e4 are 1e-3


def test_signs_of_what_is_no_number_are_zero():
    nothing = torch.tensor([[float("nan"), -2.0], [float("inf"), 0.0]])
    found = Associations(signed={"forward_cov": [nothing], "forward_cov_combined": nothing})
    assert found.sign["forward_cov"][0].tolist() == found.sign["forward_cov_combined"].tolist() == [[0, -1], [1, 0]]


def test_covariance_of_locations_with_different_means_does_not_mix_them():
    covariance = Covariance()
    rows = torch.zeros(10, 2, 1)
    rows[:, 1] = 5.0  # constant at each location, different between them
    covariance.add(rows)
    assert covariance.mean(10).item() == 0


@given(st.integers(0, 2**31), st.floats(1e-3, 1e3), st.permutations(range(6)))
@settings(max_examples=20, deadline=None)
def test_units_permute_and_normalised_matrices_ignore_their_scale(seed, scale, order):
    model, (x, y) = small_dense(seed=seed), random_data(9, 5, classes=4)
    before = associations(model, batches_of(x, y, 4), layers=["1"])
    with torch.no_grad():  # ReLU(scale · z) = scale · ReLU(z), undone by the next layer
        for parameter in model[0].parameters():
            parameter.copy_(parameter[list(order)] * scale)
        model[2].weight.copy_(model[2].weight[:, list(order)] / scale)
    after = associations(model, batches_of(x, y, 4), layers=["1"])
    for method in BASE_METHODS:
        power = scale ** (2 if method.startswith("forward") else -2)
        expected = before.signed[method][0][list(order)][:, list(order)]
        assert (after.signed[method][0] / power - expected).abs().max() <= 1e-9 * expected.abs().max()
        if expected.diagonal().min() > 1e-5 and (expected * power).diagonal().min() > 1e-5:  # the clamp is not at work
            norm = before.assoc[f"{method}_norm"][0][list(order)][:, list(order)]
            assert (after.assoc[f"{method}_norm"][0] - norm).abs().max() < 1e-5


@given(st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_matrices_are_symmetric_and_normalised_entries_at_most_one(seed):
    model, (x, y) = small_dense(seed=seed), random_data(9, 5, classes=4, seed=seed)
    found = associations(model, batches_of(x, y, 4), layers=model.names)
    for method in METHODS:
        for matrix in found.assoc[method]:
            assert matrix.dtype == torch.float32 and torch.equal(matrix, matrix.T) and (matrix >= 0).all()
            assert not method.endswith("_norm") or matrix.max() <= 1 + 1e-6
    for method in BASE_METHODS:
        for sign, matrix, signed in zip(found.sign[method], found.assoc[method], found.signed[method], strict=True):
            assert sign.dtype == torch.int8
            assert torch.equal(sign * matrix, signed.float())


def test_confident_predictions_leave_the_hessian_its_digits():
    model, (x, y) = small_dense(), random_data(2000, 5, classes=4)
    with torch.no_grad():
        model[-1].weight.mul_(100)
        doubt = model(x).softmax(1).sort(1).values[:, :-1].sum(1)  # 1 − largest p
        x, y = x[(doubt < 1e-8) & (doubt > 1e-12)], y[(doubt < 1e-8) & (doubt > 1e-12)]
    assert len(x) >= 5
    for named in (model.names, model.names[:1]):  # the route for chains, and the general one
        double = associations(model.double(), batches_of(x, y, 8), layers=named)
        single = associations(model.float(), batches_of(x.float(), y, 8), layers=named)
        for a, b in zip(single.assoc["backward_hess"], double.assoc["backward_hess"], strict=True):
            assert largest_difference(a, b) < 1e-3


# What was sampled, and how far off it is -----------------------------------------------------------------------------


def coverage(model, data, exact, method, seeds, **options):
    """Fraction of entries (upper triangle) within two standard errors of the truth, over seeds: raw, and normalised."""
    upper = torch.triu(torch.ones_like(exact, dtype=torch.bool))
    within = {"": [], "_norm": []}
    for seed in range(seeds):
        found = associations(model, data, methods=[method, f"{method}_norm"], seed=seed, **options)
        for suffix, truth in (("", exact), ("_norm", normalized(exact))):
            estimate = normalized(found.signed[method][0]) if suffix else found.signed[method][0]
            close = (estimate - truth).abs() <= 2 * found.stderr[method + suffix][0]
            within[suffix].append(close[upper if not suffix else upper.triu(1)].double().mean())
    return [float(torch.stack(fractions).mean()) for fractions in within.values()]


def test_standard_error_of_input_directions_is_honest(monkeypatch):
    model, (x, y) = small_conv(), random_data(128, 2, 6, 6, classes=3, dtype=torch.float32)
    model, data = model.float(), batches_of(x, y, 64)
    monkeypatch.setattr(module, "MAX_EXACT_PASSES", 64)
    exact = associations(model, data, methods=["forward_jac"]).signed["forward_jac"][0]
    monkeypatch.setattr(module, "MAX_EXACT_PASSES", 0)
    for fraction in coverage(model, data, exact, "forward_jac", seeds=60, jac_directions=16):
        assert 0.93 < fraction < 0.975


@pytest.mark.parametrize("method", ["backward_jac", "backward_hess"])
def test_standard_error_of_output_directions_is_honest(method, monkeypatch):
    model, (x, y) = small_conv(classes=8), random_data(128, 2, 6, 6, classes=8, dtype=torch.float32)
    model, data = model.float(), batches_of(x, y, 64)
    exact = associations(model, data, methods=[method]).signed[method][0]
    monkeypatch.setattr(module, "MAX_EXACT_LOGITS", 7)
    for fraction in coverage(model, data, exact, method, seeds=100, output_directions=16):
        assert 0.93 < fraction < 0.975


def test_many_logits_are_sampled_and_agree_with_all_passes(monkeypatch):
    model, (x, y) = small_conv(classes=100), random_data(32, 2, 6, 6, classes=100)
    sampled = associations(model, batches_of(x, y, 16), output_directions=64)
    assert {"backward_jac", "backward_hess"} < set(sampled.stderr)
    monkeypatch.setattr(module, "MAX_EXACT_LOGITS", 100)
    exact = associations(model, batches_of(x, y, 16))
    for method in ("backward_jac", "backward_hess"):
        assert method not in exact.stderr
        assert largest_difference(sampled.signed[method][0], exact.signed[method][0]) < 0.1


def test_error_falls_as_one_over_the_root_of_directions(monkeypatch):
    monkeypatch.setattr(module, "MAX_EXACT_PASSES", 0)
    model, (x, y) = small_conv(), random_data(64, 2, 6, 6, classes=3)
    few, many = (associations(model, batches_of(x, y, 64), methods=["forward_jac"], jac_directions=k) for k in (8, 128))
    ratio = few.stderr["forward_jac"][0].norm() / many.stderr["forward_jac"][0].norm()
    assert 0.8 < ratio / math.sqrt(128 / 8) < 1.25


def test_exact_layers_have_no_error():
    x, y = random_data(32, 3, 32, 32, dtype=torch.float32)
    torch.manual_seed(0)
    found = associations(Cifar10Fast(channels=(4, 4, 4, 4)).eval(), batches_of(x, y, 32), jac_directions=2)
    assert set(found.stderr) == {"forward_jac", "forward_jac_norm"}
    for layer in range(4):  # h4 (64 passes) and h5 (8) are exact
        diagonal = found.assoc["forward_jac"][layer].diagonal()
        assert (found.stderr["forward_jac"][layer] > 0).all()
        assert torch.allclose(found.stderr["forward_jac_norm"][layer].diagonal(), torch.zeros_like(diagonal), atol=1e-4)
    assert not found.stderr["forward_jac"][4].any() and not found.stderr["forward_jac"][5].any()


def test_sampled_sum_of_identical_pairs_has_no_error():
    rows = random_data(40, 3, 5)[0]
    total = GramSum()
    total.add_pair(rows, rows, pairs=1)
    assert not total.stderr(40).any()
    assert torch.allclose(total.mean(40), torch.einsum("nsi,nsj->ij", rows, rows) / 40)


# Guards and degenerate networks ---------------------------------------------------------------------------------------


def test_training_mode_is_refused():
    model = small_conv()
    model.before[3].train()
    with pytest.raises(ValueError, match=r"model.eval\(\)"):
        associations(model, batches_of(*random_data(4, 2, 6, 6, classes=3), 4))


class AlwaysDropout(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.1, training=True)


@pytest.mark.parametrize("culprit", [AlwaysDropout(), nn.BatchNorm2d(4, track_running_stats=False)])
def test_random_networks_and_batch_statistics_are_refused(culprit):
    after = nn.Sequential(culprit, nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(ValueError, match="influence each other"):
        associations(small_conv(after), batches_of(*random_data(16, 2, 6, 6, classes=3), 8))


def test_combined_hessian_after_smooth_layers_is_refused():
    model, data = small_dense(nn.Tanh), batches_of(*random_data(4, 5, classes=4), 4)
    with pytest.raises(ValueError, match="not piecewise linear"):
        associations(model, data, layers=model.names, combined=True)
    associations(model, data, layers=model.names, combined=True, methods=["forward_cov", "backward_jac"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["forward_cow"]}, "forward_cow"),
        ({"methods": []}, "unknown methods"),
        ({"combined": True}, "dense"),
        ({"jac_directions": 3}, "even"),
        ({"layers": ["nowhere"]}, "nowhere"),
        ({"layers": []}, "no layers"),
    ],
)
def test_what_cannot_be_had_is_refused_in_words(options, message):
    with pytest.raises(ValueError, match=message):
        associations(small_conv(), batches_of(*random_data(4, 2, 6, 6, classes=3), 4), **options)


def test_no_data_is_refused():
    with pytest.raises(ValueError, match="no batches"):
        associations(small_conv(), [])


def test_dead_and_constant_units_give_zeros():
    model, (x, y) = small_dense(), random_data(10, 5, classes=4)
    with torch.no_grad():
        model[0].bias[0], model[0].weight[1], model[0].bias[1], model[2].weight[:, 2] = -100, 0, 1, 0
    for layers in (model.names, ["1"]):
        found = associations(model, batches_of(x, y, 5), layers=layers)
        for method in ("forward_cov", "forward_jac"):
            for suffix in ("", "_norm"):
                assert not found.assoc[method + suffix][0][:2].any()  # unit 0 never fires, unit 1 is constant
        for method in ("backward_jac", "backward_hess", "backward_jac_norm", "backward_hess_norm"):
            assert not found.assoc[method][0][2].any()  # nothing reads unit 2
    assert all(torch.isfinite(a).all() for a in found.assoc.values() for a in a)


def test_nan_is_recorded_with_a_warning():
    dense, conv = (small_dense(), *random_data(10, 5, classes=4)), (small_conv(), *random_data(4, 2, 6, 6, classes=3))
    for model, x, y in dense, conv:
        x[3] = float("nan")
        layers = None if isinstance(model, Split) else model.names
        with pytest.warns(UserWarning, match="NaN entries in forward_cov"):
            found = associations(model, batches_of(x, y, 4), layers=layers)
        assert found.assoc["forward_cov"][0].isnan().any()


# Networks of any kind -------------------------------------------------------------------------------------------------


def test_only_linear_relu_chains_count_as_chains():
    x = random_data(6, 5)[0].requires_grad_()
    for activation, is_chain in ((nn.ReLU, True), (nn.LeakyReLU, False), (nn.Tanh, False)):
        model = small_dense(activation)
        outputs = [model[:2], model[:4]]
        weights = run_chain(model, lambda t, o=outputs, m=model: ([part(t) for part in o], m(t)), x)[2]
        assert weights is None  # every layer ran several times
        nested = Split(model[:2], model[2:3])
        with frozen(nested):
            assert (run_chain(nested, nested, x)[2] is not None) == is_chain


def test_named_layers_of_a_torchvision_network():
    torchvision_models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    model = torchvision_models.resnet18(weights=None, num_classes=5).double().eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x, y = random_data(3, 3, 32, 32, classes=5)
    found = associations(model, [(x, y)], layers=["bn1", "layer4", "fc"])  # bn1's output is overwritten in place

    stem = nn.Sequential(model.conv1, model.bn1)
    rest = nn.Sequential(
        nn.ReLU(),
        model.maxpool,
        model.layer1,
        model.layer2,
        model.layer3,
        model.layer4,
        model.avgpool,
        nn.Flatten(),
        model.fc,
    )
    h = stem(x).detach().requires_grad_()
    j = torch.stack([torch.autograd.grad(rest(h)[:, k].sum(), h)[0] for k in range(5)])
    backward_jac = torch.einsum("knist,knjst->ij", j, j) / 3 / 16**2
    assert largest_difference(found.signed["backward_jac"][0], backward_jac) < 1e-12
    centred = h.detach() - h.detach().mean(0)
    forward_cov = torch.einsum("nist,njst->ij", centred, centred) / 3 / 16**2
    assert largest_difference(found.signed["forward_cov"][0], forward_cov) < 1e-12
    assert torch.allclose(found.signed["backward_jac"][2], torch.eye(5, dtype=torch.float64))  # the logits themselves
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(vars(part).get("forward") or part._forward_hooks for part in model.modules())


def test_layers_that_run_twice_or_never_are_refused():
    shared = nn.ReLU()
    model = nn.Sequential(nn.Linear(5, 5), shared, nn.Linear(5, 5), shared, nn.Linear(5, 3)).double().eval()
    data = batches_of(*random_data(4, 5, classes=3), 4)
    with pytest.raises(ValueError, match="twice"):
        associations(model, data, layers=["1"])
    model.spare = nn.Identity().eval()
    model.forward = lambda x: model[4](model[0](x))
    with pytest.raises(ValueError, match="did not run"):
        associations(model, data, layers=["spare"])


def test_convolutions_made_linear_keep_values_and_gradients():
    model = (
        nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2),
            nn.BatchNorm2d(4, affine=False),
            nn.Conv2d(4, 2, 3, dilation=2, padding="same"),
            nn.BatchNorm2d(2),
        )
        .double()
        .eval()
    )
    x = random_data(3, 2, 9, 9)[0].requires_grad_()
    plain = model(x)
    weights = torch.randn_like(plain)
    with linear_where_linear(model):
        linear = model(x)
    assert largest_difference(linear, plain) < 1e-12
    gradients = [torch.autograd.grad(y, x, weights)[0] for y in (linear, plain)]
    assert largest_difference(*gradients) < 1e-12
    with linear_where_linear(model):
        assert torch.autograd.gradgradcheck(model, (x,))


def test_diagonal_blocks_are_copies():
    matrix = torch.arange(9.0).view(3, 3)
    first, second = diagonal_blocks(matrix, [1, 2])
    second.zero_()
    assert first.tolist() == [[0.0]] and matrix.sum() == 36


def test_denormals_and_global_settings_are_left_as_they_were():
    torch.set_flush_denormal(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        associations(small_conv(), batches_of(*random_data(4, 2, 6, 6, classes=3), 4))
    assert (torch.tensor(1e-40) * 1).item() > 0
