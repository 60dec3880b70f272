"""Smooth networks with places: sampled Hessians and their errors, and a vision transformer from training to figures."""

import re

import pytest
import torch
from test_any_network import Mean, double, labels, slow
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision.models import VisionTransformer

from associations import BASE_METHODS, associations
from examples import vision_transformer
from modularity import girvan_newman
from numerics import measurement
from numerics.running_sums import GramSum
from report.matrix_figures import sorted_matrices
from study.datasets import Split

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")


def small_gelu_network():
    """(B, 2 places, 4) → 6 units a place → logits; the Hessian by the first layer is all there is to it."""
    return double(nn.Sequential(nn.Linear(4, 6), nn.GELU(), Mean(), nn.Linear(6, 3)))


def hessian_of(model, x, y, layer, **options):
    found = associations(model, [(x, y)], layers=[layer], methods=["backward_hess"], **options)
    return found.signed["backward_hess"][0], found.stderr["backward_hess"][0].double()


def test_standard_errors_of_sampled_hessians_are_honest(monkeypatch):
    model, x, y = small_gelu_network(), torch.randn(128, 2, 4, dtype=torch.float64), labels(128)
    truth = slow(model[:1], model[1:], x, y)["backward_hess"]
    monkeypatch.setattr(measurement, "MAX_HESSIAN_PASSES", 11)
    upper = torch.triu(torch.ones(6, 6, dtype=torch.bool))
    within, scores = [], []
    for seed in range(100):
        estimate, error = hessian_of(model, x, y, "0", hess_directions=8, seed=seed)
        z = ((estimate - truth) / error)[upper]
        within.append((z.abs() <= 2).double().mean())
        scores.append(z)
    assert 0.93 < torch.stack(within).mean() < 0.97
    assert torch.stack(scores).mean().abs() < 0.1  # no bias


def test_error_falls_as_one_over_the_root_of_directions_and_the_seed_decides(monkeypatch):
    monkeypatch.setattr(measurement, "MAX_HESSIAN_PASSES", 0)
    model, x, y = small_gelu_network(), torch.randn(64, 2, 4, dtype=torch.float64), labels(64)
    (few, rough), (many, fine) = (hessian_of(model, x, y, "0", hess_directions=k) for k in (8, 128))
    assert 0.8 < float(rough.norm() / fine.norm()) / 4 < 1.25
    again, other = (hessian_of(model, x, y, "0", hess_directions=8, seed=seed)[0] for seed in (0, 1))
    assert torch.equal(again, few) and not torch.equal(other, few)
    assert torch.equal(many, many.T)


def test_only_layers_beyond_the_limit_are_sampled_and_the_rest_stays_exact(monkeypatch):
    model = double(nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 5), nn.GELU(), Mean(), nn.Linear(5, 3)))
    x, y = torch.randn(32, 2, 4, dtype=torch.float64), labels(32)
    monkeypatch.setattr(measurement, "MAX_HESSIAN_PASSES", 10)
    found = associations(model, [(x[:20], y[:20]), (x[20:], y[20:])], layers=["0", "2"], methods=["backward_hess"])
    assert found.stderr["backward_hess"][0].min() > 0 and not found.stderr["backward_hess"][1].any()
    truth = slow(model[:3], model[3:], x, y)["backward_hess"]
    assert (found.signed["backward_hess"][1] - truth).abs().max() < 1e-10 * truth.abs().max()


def test_a_layer_that_is_smooth_in_some_batches_only_is_a_sum_of_both(monkeypatch):
    """Hardtanh-like in the first batch, curved in the second: exact and sampled parts add up."""
    model = double(nn.Sequential(nn.Linear(2, 3), nn.Hardswish(), Mean(), nn.Linear(3, 3)))
    with torch.no_grad():
        model[0].weight.abs_()
        model[0].bias.zero_()
    y = labels(96)
    x = torch.rand(96, 2, 2, dtype=torch.float64)
    x[:48] += 20  # beyond 3, where Hardswish is the identity
    truth = slow(model[:1], model[1:], x, y)["backward_hess"]
    monkeypatch.setattr(measurement, "MAX_HESSIAN_PASSES", 0)
    for order in ((0, 48), (48, 0)):
        found = associations(
            model,
            [(x[i : i + 48], y[i : i + 48]) for i in order],
            layers=["0"],
            methods=["backward_hess"],
            hess_directions=64,
        )
        z = (found.signed["backward_hess"][0] - truth) / found.stderr["backward_hess"][0]
        assert z.square().mean().sqrt() < 2
        assert found.stderr["backward_hess"][0].norm() < 0.2 * truth.norm()


def test_many_outputs_of_another_loss_are_sampled_too(monkeypatch):
    model = double(nn.Sequential(nn.Linear(4, 5), nn.LeakyReLU(), nn.Linear(5, 70)))
    x, y = torch.randn(64, 4, dtype=torch.float64), torch.rand(64, 70, dtype=torch.float64)

    def loss(logits, y):
        return F.binary_cross_entropy_with_logits(logits, y, reduction="sum")

    p = model(x).detach().sigmoid()
    W = model[2].weight.detach()
    truth = torch.einsum("nk,ki,kj->ij", p * (1 - p), W, W) / 64  # ∂²L/∂y² is a diagonal
    found = associations(model, [(x, y)], layers=["1"], methods=["backward_hess"], loss=loss)
    assert (found.signed["backward_hess"][0] - truth).abs().max() < 1e-10 * truth.abs().max()
    monkeypatch.setattr(measurement, "MAX_HESSIAN_PASSES", 4)
    estimate, error = hessian_of(model, x, y, "1", loss=loss, hess_directions=64)
    assert 0 < ((estimate - truth) / error).square().mean().sqrt() < 2


def test_combined_hessians_of_smooth_networks_are_refused():
    model = double(nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 3)))
    data = [(torch.randn(9, 4, dtype=torch.float64), labels())]
    with pytest.raises(ValueError, match="not piecewise linear"):
        associations(model, data, layers=["1", "3"], combined=True)
    associations(model, data, layers=["1", "3"], combined=True, methods=["forward_jac", "backward_jac"])


def test_pairs_with_others_sum_symmetric_products():
    rows, again, v, w = torch.randn(4, 20, 3, 5, dtype=torch.float64)
    total = GramSum()
    total.add_pair(rows, again, 1, (v, w))
    products = [torch.einsum("nsi,nsj->ij", *pair) for pair in ((rows, v), (again, w))]
    expected = sum(product + product.T for product in products) / 4
    assert torch.allclose(total.total, expected) and total.sampled
    parts = [torch.einsum("nsi,nsj->ij", rows[a:b], v[a:b]) for a, b in ((0, 16), (16, 20))]
    parts_again = [torch.einsum("nsi,nsj->ij", again[a:b], w[a:b]) for a, b in ((0, 16), (16, 20))]
    differences = [(a + a.T - b - b.T) / 4 for a, b in zip(parts, parts_again, strict=True)]
    assert torch.allclose(total.stderr(20), sum(d.square() for d in differences).sqrt() / 20)


# A vision transformer -------------------------------------------------------------------------------------------------


def tiny_transformer():
    torch.manual_seed(0)
    model = VisionTransformer(
        image_size=4, patch_size=2, num_layers=2, num_heads=2, hidden_dim=4, mlp_dim=5, num_classes=3
    )
    nn.init.normal_(model.heads.head.weight)  # torchvision starts with zeros
    return double(model)


def with_output(model, module, x, h):
    """What the network gives for x if a module gave h."""
    handle = module.register_forward_hook(lambda *_: h)
    try:
        return model(x)
    finally:
        handle.remove()


def output_of(model, module, x):
    kept = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    try:
        model(x)
    finally:
        handle.remove()
    return kept[0]


@pytest.mark.parametrize("name", ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_0.mlp.1"])
def test_units_of_a_vision_transformer_agree_with_per_example_autodiff(name):
    model, x, y = tiny_transformer(), torch.randn(4, 3, 4, 4, dtype=torch.float64), labels(4)
    module = model.get_submodule(name)
    found = associations(model, [(x[:3], y[:3]), (x[3:], y[3:])], layers=[name], unit_dim=-1)
    expected = {"forward_jac": 0, "backward_jac": 0, "backward_hess": 0}
    for i in range(4):
        one = x[i : i + 1]
        with sdpa_kernel(SDPBackend.MATH):  # torch cannot differentiate the others twice
            matrices = slow(
                lambda t: output_of(model, module, t),
                lambda h, one=one: with_output(model, module, one, h),
                one,
                y[i : i + 1],
            )
        for method in expected:
            expected[method] = expected[method] + matrices[method] / 4
    assert not found.stderr
    for method, truth in expected.items():
        assert (found.signed[method][0] - truth).abs().max() < 1e-9 * truth.abs().max(), method


def test_the_example_trains_measures_clusters_and_draws(tmp_path, monkeypatch, capsys):
    drawn = []

    def few(*args):
        training, val, test = vision_transformer_splits(*args)
        return Split(training.images, training.labels, training.index[:600]), val, test

    vision_transformer_splits = vision_transformer.splits
    monkeypatch.setattr(vision_transformer, "splits", few)
    monkeypatch.setattr(
        vision_transformer, "sorted_matrices", lambda table: drawn.append(table) or sorted_matrices(table)
    )
    vision_transformer.main(3, 8, 2, 2, tmp_path / "figures", tmp_path / "data")
    printed = capsys.readouterr().out
    assert float(re.search(r"test accuracy (0\.\d+)", printed)[1]) > 0.15
    for layer, (name, units) in enumerate((("mlp", 128), ("residual", 64))):
        table = drawn[layer].set_index("assoc")
        assert list(table.index) == list(BASE_METHODS)
        for row in table.itertuples():
            assert row.adj.shape == (units, units)
            q = girvan_newman(torch.from_numpy(row.adj), torch.from_numpy(row.clusters)).item()
            assert row.score == pytest.approx(q) and f"{row.score:.3f}".rstrip("0") in printed
        assert (table["error"] > 0).to_dict() == dict(zip(BASE_METHODS, (False, True, False, True), strict=True))
        for kind in ("svg", "png"):
            assert (tmp_path / "figures" / f"vision-transformer-{name}.{kind}").stat().st_size > 10_000
