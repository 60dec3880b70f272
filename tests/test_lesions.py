"""Lesions: effects against plain loops in float64, networks whose answer is known, symmetries, and the null."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn
from torch.nn import functional as F

from lesions import (
    KINDS,
    find_lesions,
    first_of_each_class,
    importance,
    lesion_effects,
    shuffled_clusterings,
    specialization,
)
from models import Cifar10Fast, MnistSupervised
from numerics.behind import ChainLesions, NamedLayer, OwnHidden, opened

BLOCKS, PER_BLOCK, HEIGHT = 4, 3, 2.0


def dense(seed=0, channels=(7, 6, 5), inputs=4, classes=3, dtype=torch.float64):
    """A small network of the study, with random weights and biases."""
    torch.manual_seed(seed)
    return MnistSupervised(channels=channels, input_shape=(inputs,), num_classes=classes).to(dtype).eval()


def data(seed=0, n=12, shape=(4,), classes=3):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, *shape, generator=generator, dtype=torch.float64)
    return images, torch.arange(n) % classes


def some_groups(units, seed=0, number=5):
    """Random groups; the first is empty, the last holds every unit."""
    groups = torch.rand(units, number, generator=torch.Generator().manual_seed(seed)) < 0.4
    groups[:, 0], groups[:, -1] = False, True
    return groups


def slow_effects(front, behind, images, labels, groups, kind):
    """E by plain loops: one group, one image, one unit at a time.

    Args: front: images → h (N, units, …).  behind: h of one image (1, units, …) → logits (1, K).
    """
    h = front(images)
    mean = sum(h[i] for i in range(len(h))) / len(h)
    E = torch.zeros(groups.shape[1], int(labels.max()) + 1, dtype=torch.float64)
    for g in range(groups.shape[1]):
        for k in range(E.shape[1]):
            of_class = [i for i in range(len(labels)) if labels[i] == k]
            for i in of_class:
                lesioned = h[i].clone()
                for unit in range(groups.shape[0]):
                    if groups[unit, g]:
                        lesioned[unit] = mean[unit] if kind == "mean" else 0.0
                y = labels[i : i + 1]
                loss, intact = (F.cross_entropy(behind(a[None], i), y) for a in (lesioned, h[i]))
                E[g, k] += (loss - intact) / len(of_class)
    return E


def agree(found, front, behind, images, labels, groups):
    """Whether the effects found are those of the slow loop, and differ between the kinds."""
    with torch.no_grad():
        slow = {kind: slow_effects(front, behind, images, labels, groups, kind) for kind in KINDS}
    for kind in KINDS:
        assert found[kind].dtype == torch.float64
        assert (found[kind] - slow[kind]).abs().max() < 1e-12
        assert (found[kind][0] == 0).all(), "the empty group has no effect"
    assert (found["mean"] - found["zero"]).abs().max() > 1e-3
    return True


# ---- effects --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_effects_in_dense_networks_are_those_of_a_plain_loop(layer):
    model, (images, labels) = dense(), data()

    def front(x):
        for linear in model.fc_layers[: layer + 1]:
            x = F.relu(x @ linear.weight.T + linear.bias)
        return x

    def behind(h, _):
        for linear in model.fc_layers[layer + 1 :]:
            h = F.relu(h @ linear.weight.T + linear.bias)
        return h @ model.proj.weight.T + model.proj.bias

    groups = some_groups(len(model.fc_layers[layer].weight))
    assert agree(lesion_effects(model, images, labels, groups, layer=layer), front, behind, images, labels, groups)


def test_by_linearity_or_by_running_again_the_effects_are_the_same():
    model, (images, labels), groups = dense(), data(), some_groups(7)
    fast = lesion_effects(model, images, labels, groups, layer=0)
    model.linears_behind = lambda layer: None
    again = lesion_effects(model, images, labels, groups, layer=0)
    assert max((fast[kind] - again[kind]).abs().max() for kind in KINDS) < 1e-12


@pytest.mark.parametrize("layer", range(6))
def test_effects_in_convolutional_networks_are_those_of_a_plain_loop(layer):
    torch.manual_seed(1)
    model = Cifar10Fast(channels=(4, 5, 6, 7), input_shape=(3, 8, 8), num_classes=3).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.weight, 0.5, 2)
    images, labels = data(2, 6, (3, 8, 8))
    stages = [model.layer1, model.layer2, model.layer3, model.layer4]
    replaced = []

    def front(x):
        return model(x)[0][layer]

    def replace_input(_module, inputs):
        return replaced[0].flatten(1) if layer == 5 else replaced[0]

    def replace_output(_module, _inputs, output):
        return replaced[0]

    def behind(h, i):
        """The whole network, with a hook that puts h where the layer is read, or made."""
        replaced[:] = [h]
        if layer == 4:
            handle = stages[3].register_forward_hook(replace_output)
        else:
            reader = model.proj if layer == 5 else stages[layer]
            handle = reader.register_forward_pre_hook(replace_input)
        logits = model(images[i : i + 1])[1]
        handle.remove()
        return logits

    groups = some_groups((4, 4, 5, 6, 7, 14)[layer], number=4)
    assert agree(lesion_effects(model, images, labels, groups, layer=layer), front, behind, images, labels, groups)


class Plain(nn.Sequential):
    """Convolutions and a readout that flattens what it gets."""

    def __init__(self):
        torch.manual_seed(3)
        super().__init__(
            nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)
        )

    def rest(self, h, x):
        return self[5](self[4](torch.tanh(self[2](F.relu(h)))))


class PastTheLayer(Plain):
    """What the layer was made of comes back behind it."""

    def forward(self, x):
        return self.rest(self[0](x), x)

    def rest(self, h, x):
        return super().rest(h, x) + x.flatten(1)[:, :3]


class RemembersTheBatch(Plain):
    """The number of examples comes from the input."""

    def forward(self, x):
        h = torch.tanh(self[2](F.relu(self[0](x))))
        return self[5](h.reshape(len(x), -1))


class Mixes(Plain):
    """The shape fits whatever the number of copies, but rows of copies would be mixed up."""

    def forward(self, x):
        h = super().forward(x)
        return h + x.flatten(1).mean(1).repeat_interleave(len(h) // len(x))[:, None] * h

    def rest(self, h, x):
        logits = super().rest(h, x)
        return logits + x.flatten(1).mean(1)[:, None] * logits


@pytest.mark.parametrize("kind", [Plain, PastTheLayer, RemembersTheBatch, Mixes])
def test_effects_in_any_network_are_those_of_a_plain_loop(kind):
    model, (images, labels), groups = kind().double().eval(), data(4, 6, (2, 5, 5)), some_groups(4)

    def behind(h, i):
        return model.rest(h, images[i : i + 1])

    found = lesion_effects(model, images, labels, groups, layer="0")
    assert agree(found, lambda x: model[0](x), behind, images, labels, groups)


def test_what_lies_before_the_layer_runs_once_where_the_rest_goes_along():
    for kind, shared in ((Plain, True), (PastTheLayer, False), (RemembersTheBatch, False), (Mixes, False)):
        model, (images, labels) = kind().double().eval(), data(4, 6, (2, 5, 5))
        rows = []
        handle = model[0].register_forward_hook(lambda _module, _inputs, output, rows=rows: rows.append(len(output)))
        lesion_effects(model, images, labels, some_groups(4, number=40), layer="0", batch_size=24)
        handle.remove()
        assert (rows[-1] == 6) is shared, kind  # of 12, two copies of each image, otherwise


class Tokens(nn.Module):
    """Features of tokens last; returns an object with logits, and a tuple inside."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.embed, self.mix, self.read = nn.Linear(3, 5), nn.GRU(5, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        states, _ = self.mix(torch.tanh(self.embed(x)))
        return {"logits": self.read(states[:, -1]), "other": None}


def test_units_may_be_features_of_tokens_and_a_module_may_return_a_tuple():
    model, (images, labels) = Tokens().double().eval(), data(6, 6, (4, 3))
    groups = some_groups(5)
    found = lesion_effects(model, images, labels, groups, layer="embed", unit_dim=-1)

    def behind(h, _):
        return model.read(model.mix(torch.tanh(h.movedim(1, 2)))[0][:, -1])

    assert agree(found, lambda x: model.embed(x).movedim(2, 1), behind, images, labels, groups)
    groups = some_groups(4)
    found = lesion_effects(model, images, labels, groups, layer="mix", unit_dim=-1)

    def read(h, _):
        return model.read(h[:, :, -1])

    def front(x):
        return model.mix(torch.tanh(model.embed(x)))[0].movedim(2, 1)

    assert agree(found, front, read, images, labels, groups)


class Numbers(nn.Module):
    """Two token inputs, given by name; logits inside a tuple."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.embed, self.hidden, self.read = nn.Embedding(9, 4), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, ids, scale):
        return ("nothing", self.read(torch.tanh(self.hidden(self.embed(ids).sum(1) * scale[:, None]))))


def test_inputs_may_be_a_dict_of_token_numbers_and_more():
    model, labels = Numbers().double().eval(), torch.arange(6) % 3
    images = {"ids": torch.arange(24).reshape(6, 4) % 9, "scale": torch.linspace(0.5, 2, 6, dtype=torch.float64)}
    groups = some_groups(5)
    found = lesion_effects(model, images, labels, groups, layer="hidden", outputs=lambda returned: returned[1])

    def front(x):
        return model.hidden(model.embed(x["ids"]).sum(1) * x["scale"][:, None])

    h = front(images)
    with torch.no_grad():
        slow = slow_effects(lambda _: h, lambda h, _: model.read(torch.tanh(h)), images["ids"], labels, groups, "mean")
    assert (found["mean"] - slow).abs().max() < 1e-12


@pytest.mark.parametrize("route", ["chain", "convolutional", "named"])
def test_effects_do_not_depend_on_the_batch(route):
    if route == "chain":
        model, layer, shape, units = dense(), 1, (4,), 6
    elif route == "named":
        model, layer, shape, units = Plain().double().eval(), "0", (2, 5, 5), 4
    else:
        torch.manual_seed(0)
        model = Cifar10Fast(channels=(4, 4, 4, 4), input_shape=(3, 8, 8), num_classes=3).double().eval()
        layer, shape, units = 1, (3, 8, 8), 4
    images, labels = data(1, 11, shape)
    found = [
        lesion_effects(model, images, labels, some_groups(units, number=7), layer=layer, batch_size=size)
        for size in (None, 1, 2, 10, 50)
    ]
    for other in found[1:]:
        assert max((found[0][kind] - other[kind]).abs().max() for kind in KINDS) < 1e-12


@pytest.mark.parametrize("layer", [0, "fc_layers.0"])
def test_memory_is_bounded_by_a_batch_whatever_the_number_of_groups(layer):
    model, (images, labels), rows = dense(), data(n=30), []
    model.linears_behind = lambda layer: None
    model.proj.register_forward_hook(lambda _module, inputs, _output: rows.append(len(inputs[0])))
    groups = some_groups(7, number=50)
    outputs = (lambda returned: returned[1]) if isinstance(layer, str) else None
    lesion_effects(model, images, labels, groups, layer=layer, outputs=outputs, batch_size=20)
    assert max(rows) == 20


def test_memory_of_a_chain_is_bounded_too(monkeypatch):
    held, init = [], ChainLesions.__init__

    def watched(self, *args):
        init(self, *args)
        held.append(max(space.shape[0] * space.shape[2] for space in self.space))

    monkeypatch.setattr(ChainLesions, "__init__", watched)
    images, labels = data(n=30)
    lesion_effects(dense(), images, labels, some_groups(7, number=50), layer=0, batch_size=20)
    assert max(held) <= 20


@pytest.mark.parametrize("layer", [0, "fc_layers.0"])
def test_the_network_and_the_settings_stay_as_they_were(layer):
    model, (images, labels) = dense(), data()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, precision = images.clone(), torch.get_float32_matmul_precision()
    outputs = (lambda returned: returned[1]) if isinstance(layer, str) else None
    lesion_effects(model, images, labels, some_groups(7), layer=layer, outputs=outputs)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert torch.equal(images, x) and torch.is_grad_enabled()
    assert torch.get_float32_matmul_precision() == precision


def test_single_precision_is_within_its_rounding():
    model, (images, labels), groups = dense(), data(), some_groups(7)
    exact = lesion_effects(model, images, labels, groups, layer=0)
    single = lesion_effects(model.float(), images.float(), labels, groups, layer=0)
    assert max((exact[kind] - single[kind]).abs().max() for kind in KINDS) < 1e-6


def test_linearity_is_used_only_where_the_layers_behind_are_plain_linear_ones():
    class Halved(nn.Linear):
        def forward(self, x):
            return super().forward(x) / 2

    for spoil in ("heir", "hook", "pre-hook", "forward"):
        model, (images, labels), groups = dense(), data(), some_groups(7)
        assert OwnHidden(model, 0).linears()
        if spoil == "heir":
            model.proj.__class__ = Halved
        elif spoil == "hook":
            model.proj.register_forward_hook(lambda _module, _inputs, output: output / 2)
        elif spoil == "pre-hook":
            nn.init.zeros_(model.proj.bias)
            model.proj.register_forward_pre_hook(lambda _module, inputs: inputs[0] / 2)
        else:
            plain = model.proj.forward
            model.proj.forward = lambda x, plain=plain: plain(x) / 2
        assert OwnHidden(model, 0).linears() is None

        def behind(h, _, model=model):
            h = F.relu(model.fc_layers[2](F.relu(model.fc_layers[1](h))))
            return (h @ model.proj.weight.T + model.proj.bias) / 2

        found = lesion_effects(model, images, labels, groups, layer=0)
        assert agree(found, lambda x, model=model: F.relu(model.fc_layers[0](x)), behind, images, labels, groups)


# ---- a network whose answer is known --------------------------------------------------------------------------------


def blocks():
    """A network with PER_BLOCK units for each of BLOCKS classes, and one image of each class, which drives its block.

    A block's units have activation 1 on images of its class, otherwise 0, and add HEIGHT to its logit together.
    """
    model = MnistSupervised(channels=(BLOCKS * PER_BLOCK,), input_shape=(BLOCKS,), num_classes=BLOCKS).double().eval()
    member = torch.eye(BLOCKS, dtype=torch.float64).repeat_interleave(PER_BLOCK, 0)  # (units, blocks)
    with torch.no_grad():
        model.fc_layers[0].weight.copy_(member)
        model.proj.weight.copy_(HEIGHT / PER_BLOCK * member.T)
        model.fc_layers[0].bias.zero_()
        model.proj.bias.zero_()
    return model, torch.eye(BLOCKS, dtype=torch.float64), torch.arange(BLOCKS), member


def cross_entropy(own, others):
    """−log softmax of the logit `own` among `others`, by hand."""
    return math.log(sum(math.exp(a) for a in (own, *others))) - own


def information(on_diagonal, elsewhere, k):
    """Bits, for k clusters and classes with effect `on_diagonal` of each cluster on its class, else `elsewhere`."""
    total = k * on_diagonal + k * (k - 1) * elsewhere
    p, q = on_diagonal / total, elsewhere / total
    marginal = 1 / k
    terms = k * p * math.log2(p / marginal**2)
    return terms + (k * (k - 1) * q * math.log2(q / marginal**2) if q > 0 else 0)


def test_blocks_that_serve_one_class_each_have_the_most_specialization_there_can_be():
    model, images, labels, member = blocks()
    found = find_lesions(model, images, labels, {"blocks": member}, layer=0, draws=30)["blocks"]
    intact = cross_entropy(HEIGHT, [0] * (BLOCKS - 1))
    off = cross_entropy(0, [0] * (BLOCKS - 1)) - intact  # zero: the class loses its block, no other notices
    assert torch.equal(found["zero_effects"], (off * torch.eye(BLOCKS)).float())
    assert found["zero_specialization"] == pytest.approx(math.log2(BLOCKS), abs=1e-12)
    assert found["zero_importance"] == pytest.approx(off / BLOCKS, abs=1e-12)
    mean = HEIGHT / BLOCKS  # mean: the block's logit is the same for every image
    own = cross_entropy(mean, [0] * (BLOCKS - 1)) - intact
    other = cross_entropy(HEIGHT, [mean] + [0] * (BLOCKS - 2)) - intact
    assert found["mean_specialization"] == pytest.approx(information(own, other, BLOCKS), abs=1e-12)
    assert found["mean_importance"] == pytest.approx((own + (BLOCKS - 1) * other) / BLOCKS, abs=1e-12)
    for kind in KINDS:
        assert found[f"{kind}_specialization_z"] > 3
        assert found[f"{kind}_specialization_p"] == pytest.approx(1 / 31)


def test_a_shuffled_clustering_of_the_blocks_is_about_as_good_as_the_null():
    model, images, labels, member = blocks()
    order = torch.randperm(len(member), generator=torch.Generator().manual_seed(1))
    found = find_lesions(model, images, labels, {"shuffled": member[order]}, layer=0)["shuffled"]
    for kind in KINDS:
        assert abs(found[f"{kind}_specialization_z"]) < 2
        assert 0.05 < found[f"{kind}_specialization_p"] < 0.95


def test_statistics_do_not_depend_on_the_order_of_units_or_clusters():
    model, (images, labels) = dense(), data()
    clusters = torch.eye(3)[torch.tensor([0, 1, 2, 0, 1, 0, 2])]
    found = find_lesions(model, images, labels, {"a": clusters, "b": clusters[:, [2, 0, 1]]}, layer=0, draws=10)
    assert torch.equal(found["a"]["mean_effects"][[2, 0, 1]], found["b"]["mean_effects"])
    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, second = model.fc_layers[0], model.fc_layers[1]
        first.weight.copy_(first.weight[order])
        first.bias.copy_(first.bias[order])
        second.weight.copy_(second.weight[:, order])
    permuted = find_lesions(model, images, labels, {"a": clusters[order]}, layer=0, draws=10)["a"]
    for key in ("mean_specialization", "mean_importance", "zero_specialization", "zero_importance"):
        assert found["a"][key] == pytest.approx(permuted[key], abs=1e-12)
        assert found["a"][key] == pytest.approx(found["b"][key], abs=1e-12)
    for key in ("mean_specialization_z", "zero_importance_p"):
        assert found["a"][key] == pytest.approx(found["b"][key], abs=1e-9)


# ---- specialization and importance ----------------------------------------------------------------------------------


def slow_specialization(E):
    """The formula, entry by entry."""
    C, K = E.shape
    p = [[max(E[c, k].item(), 0) for k in range(K)] for c in range(C)]
    total = sum(map(sum, p))
    bits = 0
    for c in range(C):
        for k in range(K):
            if p[c][k] > 0:
                p_c, p_k = sum(p[c]) / total, sum(p[d][k] for d in range(C)) / total
                bits += p[c][k] / total * math.log2(p[c][k] / total / (p_c * p_k))
    return bits


def test_specialization_is_the_information_between_clusters_and_classes():
    for seed, shape in enumerate([(2, 2), (3, 10), (5, 4)]):
        E = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        bits = specialization(E).item()
        assert bits == pytest.approx(slow_specialization(E), abs=1e-12)
        assert 0 <= bits <= math.log2(min(shape))
        assert specialization(E * 1e-9).item() == pytest.approx(bits, abs=1e-12)
        assert specialization(E.T).item() == pytest.approx(bits, abs=1e-12)
        assert specialization(torch.stack([E, E.abs()])).tolist() == pytest.approx(
            [bits, slow_specialization(E.abs())], abs=1e-12
        )


def test_specialization_is_zero_for_equal_proportions_and_undefined_where_nothing_hurts():
    equal = torch.outer(torch.tensor([1.0, 2, 5]), torch.tensor([0.2, 0.7]))
    assert specialization(equal).item() == pytest.approx(0, abs=1e-12)
    for undefined in (-equal, torch.zeros(3, 2), equal[:1], equal[:0], torch.tensor([[1.0, math.nan], [2, 1]])):
        assert math.isnan(specialization(undefined).item())
    with pytest.raises(ValueError, match="clusters, classes"):
        specialization(equal[0])


def test_importance_is_the_mean_over_units_of_what_their_cluster_costs():
    E = torch.tensor([[1.0, 2, 3], [0, 0, -6]])
    by_hand = (4 * (1 + 2 + 3) / 3 + 1 * -6 / 3) / 5
    assert importance(E, torch.tensor([4, 1])).item() == pytest.approx(by_hand, abs=1e-12)
    assert importance(torch.stack([E, 2 * E]), torch.tensor([4, 1])).tolist() == pytest.approx([by_hand, 2 * by_hand])
    assert math.isnan(importance(E[:0], torch.tensor([])).item())


# ---- the null -------------------------------------------------------------------------------------------------------


def test_shuffled_clusterings_keep_sizes_and_dead_units_and_are_otherwise_uniform():
    clusters = torch.zeros(7, 4)
    clusters[[0, 1, 4], [0, 2, 2]] = 1  # sizes 1 and 2, a column in use for none, units 2, 3, 5, 6 dead
    draws = shuffled_clusterings(clusters, 600, seed=3)
    assert draws.shape == (600, 7, 2) and draws.dtype == torch.bool
    assert (draws.sum(1) == torch.tensor([2, 1])).all()
    assert not draws[:, [2, 3, 5, 6]].any() and (draws[:, [0, 1, 4]].sum(2) == 1).all()
    alone = draws[:, [0, 1, 4], 1].double().mean(0)
    assert (alone - 1 / 3).abs().max() < 0.08  # 4 standard errors
    assert torch.equal(draws, shuffled_clusterings(clusters, 600, seed=3))
    assert not torch.equal(draws, shuffled_clusterings(clusters, 600, seed=4))
    assert torch.equal(draws[:50], shuffled_clusterings(clusters, 50, seed=3))


def test_the_null_is_what_the_shuffled_clusterings_give():
    model, (images, labels) = dense(), data()
    clusters = torch.eye(3)[torch.tensor([1, 0, 2, 1, 0, 1, 1])]
    clusters[4] = 0
    found = find_lesions(model, images, labels, {"a": clusters}, layer=0, draws=8, seed=2)["a"]
    own, null = [], []
    for groups in (clusters, *shuffled_clusterings(clusters, 8, seed=2)):
        E = lesion_effects(model, images, labels, groups, layer=0)["zero"]
        sizes = groups.sum(0)
        values = [specialization(E).item(), (E.mean(1) * sizes / sizes.sum()).sum().item()]
        (null if own else own).append(values)
    for i, statistic in enumerate(("specialization", "importance")):
        value, draws = own[0][i], np.array([values[i] for values in null])
        prefix = f"zero_{statistic}"
        assert found[prefix] == pytest.approx(value, abs=1e-12)
        assert found[f"{prefix}_null_mean"] == pytest.approx(draws.mean(), abs=1e-12)
        assert found[f"{prefix}_null_std"] == pytest.approx(draws.std(ddof=1), abs=1e-12)
        assert found[f"{prefix}_z"] == pytest.approx((value - draws.mean()) / draws.std(ddof=1), abs=1e-9)
        assert found[f"{prefix}_p"] == (1 + (draws >= value - 1e-12).sum()) / 9
    assert found["draws"] == 8 and torch.equal(found["classes"], torch.arange(3))


def test_p_is_uniform_for_clusterings_drawn_at_random():
    model, (images, _) = dense(channels=(10,), dtype=torch.float32), data(n=30)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    labels = model(images.float())[1].argmax(1)  # a network that is right, so that lesions hurt and values hardly tie
    live, draws, p = torch.tensor([0, 1, 2, 3, 4, 5, 7, 8, 9]), 19, []
    for seed in range(200):
        clusters = torch.zeros(10, 3)
        labels_of_units = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2])
        order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
        clusters[live[order], labels_of_units] = 1
        found = find_lesions(model, images.float(), labels, {"a": clusters}, layer=0, draws=draws, seed=1000 + seed)
        p.append([found["a"][f"{kind}_{name}_p"] for kind in KINDS for name in ("specialization", "importance")])
    for values in np.array(p).T:
        counts = np.bincount(np.round(values * (draws + 1)).astype(int), minlength=draws + 2)[1:]
        assert scipy.stats.chisquare(counts).pvalue > 1e-3
        assert abs(values.mean() - (draws + 2) / (2 * draws + 2)) < 3.3 * 0.29 / math.sqrt(200)


def test_clusterings_share_what_they_have_in_common():
    model, (images, labels), lesioned = dense(), data(), []
    logits = ChainLesions.logits

    def counted(self, members):
        lesioned.append(len(members))
        return logits(self, members)

    a = torch.eye(3)[torch.tensor([0, 1, 2, 0, 1, 0, 0])]
    b = a[:, [1, 0, 2]]  # the same clusters in another order
    c = torch.eye(2)[torch.tensor([0, 1, 1, 0, 1, 0, 0])]  # one of them whole, so that draws share it as well
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ChainLesions, "logits", counted)
        together = find_lesions(model, images, labels, {"a": a, "b": b, "c": c}, layer=0, draws=5)
        number = sum(lesioned)
        alone = {name: find_lesions(model, images, labels, {name: x}, layer=0, draws=5)[name] for name, x in
                 {"a": a, "b": b, "c": c}.items()}  # fmt: skip
    assert number <= 4 + 5 * 4 < sum(lesioned) - number
    for name in "abc":
        for key, value in together[name].items():
            same = torch.equal if isinstance(value, torch.Tensor) else lambda x, y: x == pytest.approx(y, nan_ok=True)
            assert same(value, alone[name][key]), (name, key)


def test_z_is_that_of_the_value_beside_it_in_the_null_beside_it():
    model, (images, labels) = dense(), data(n=30)
    clusters = {"a": torch.eye(3)[torch.tensor([0, 1, 2, 0, 1, 0, 0])]}
    found = find_lesions(model, images, labels, clusters, layer=0, draws=6)["a"]
    for kind in KINDS:
        assert found[f"{kind}_specialization"] == pytest.approx(
            specialization(found[f"{kind}_effects"]).item(), abs=1e-6
        )
        for name in (f"{kind}_specialization", f"{kind}_importance"):
            z = (found[name] - found[f"{name}_null_mean"]) / found[f"{name}_null_std"]
            assert found[f"{name}_z"] == pytest.approx(z, abs=1e-9)
    assert found["images_per_class"].tolist() == [10, 10, 10]


# ---- what is not as it should be ------------------------------------------------------------------------------------


def test_units_that_do_nothing_have_no_effect_and_no_specialization():
    model, (images, labels) = dense(dtype=torch.float32), data()
    with torch.no_grad():
        model.fc_layers[1].weight[:, [1, 4]] = 0  # read by nobody
        model.fc_layers[0].weight[5] = 0
        model.fc_layers[0].bias[5] = 0.3  # constant: only zero takes something away
    groups = torch.zeros(7, 3)
    groups[[1, 4, 5], [0, 1, 2]] = 1
    effects = lesion_effects(model, images.float(), labels, groups, layer=0)
    assert (effects["mean"] == 0).all()
    assert (effects["zero"][:2] == 0).all() and (effects["zero"][2] != 0).any()
    found = find_lesions(model, images.float(), labels, {"a": groups[:, :2]}, layer=0, draws=5)["a"]
    assert found["mean_importance"] == 0 and math.isnan(found["mean_specialization"])
    assert math.isnan(found["mean_specialization_z"]) and math.isnan(found["mean_specialization_p"])


def test_effects_within_the_rounding_of_the_logits_are_none():
    model = MnistSupervised(channels=(7,), input_shape=(4,), num_classes=3).eval()
    with torch.no_grad():
        model.fc_layers[0].weight.copy_(torch.linspace(0.3, 0.9, 4).expand(7, 4))  # all units are alike
        model.fc_layers[0].bias.zero_()
        weight = torch.randn(3, 7, generator=torch.Generator().manual_seed(1))
        weight[:, 6] = -weight[:, :6].double().sum(1).float()  # and cancel, but for rounding
        model.proj.weight.copy_(weight)
        model.proj.bias.copy_(torch.tensor([9.0, -3, 2]))
    images, labels = torch.rand(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
    effects = lesion_effects(model, images, labels, torch.tensor([[1, 1]] * 6 + [[1, 0]]), layer=0)
    for kind in KINDS:
        assert (effects[kind][0] == 0).all() and (effects[kind][1] != 0).all()


def test_constant_units_have_no_mean_effect_where_the_network_runs_again_either():
    model, (images, labels) = Plain().eval(), data(4, 6, (2, 5, 5))
    with torch.no_grad():
        model[0].weight[1] = 0
    effects = lesion_effects(model, images.float(), labels, torch.eye(4), layer="0")
    assert (effects["mean"][1] == 0).all() and (effects["mean"][0] != 0).all()


def test_a_single_cluster_or_none_has_no_specialization():
    model, (images, labels) = dense(), data()
    clusterings = {"one": torch.ones(7, 1), "none": torch.zeros(7, 2), "empty column": torch.eye(7)[:, :1].repeat(1, 1)}
    found = find_lesions(model, images, labels, clusterings, layer=0, draws=4)
    for kind in KINDS:
        assert math.isnan(found["one"][f"{kind}_specialization"])
        assert found["one"][f"{kind}_importance"] == pytest.approx(found["one"][f"{kind}_importance_null_mean"])
        assert found["none"][f"{kind}_effects"].shape == (0, 3)
        assert math.isnan(found["none"][f"{kind}_importance"]) and math.isnan(found["none"][f"{kind}_importance_p"])
    only = find_lesions(model, images, labels, {"none": torch.zeros(7, 2)}, layer=0, draws=4)["none"]
    assert math.isnan(only["mean_specialization"]) and only["mean_effects"].shape == (0, 3)


def test_draws_whose_specialization_is_undefined_do_not_count():
    model = MnistSupervised(channels=(4,), input_shape=(1,), num_classes=2).double().eval()
    with torch.no_grad():
        model.fc_layers[0].weight.zero_()
        model.fc_layers[0].bias.fill_(1)
        model.proj.bias.zero_()
        model.proj.weight.copy_(torch.tensor([[1.0, -1, 0, 0], [0, 0, 0, 0]]))  # together, the first two do nothing
    clusters = torch.eye(2)[torch.tensor([0, 1, 0, 1])]
    images, labels = torch.zeros(2, 1, dtype=torch.float64), torch.tensor([0, 1])
    found = find_lesions(model, images, labels, {"a": clusters}, layer=0, draws=30)["a"]
    draws = shuffled_clusterings(clusters, 30)
    assert 3 < (draws[:, 0] == draws[:, 1]).all(1).sum() < 25, "in these no lesion hurts"
    assert found["zero_specialization"] == found["zero_specialization_null_mean"] == pytest.approx(1)
    assert found["zero_specialization_p"] == 1


def test_empty_columns_are_no_clusters():
    model, (images, labels) = dense(), data()
    clusters = torch.eye(3)[torch.tensor([0, 1, 2, 0, 1, 0, 2])]
    padded = torch.cat([clusters[:, :1], torch.zeros(7, 1), clusters[:, 1:], torch.zeros(7, 3)], 1)
    found = find_lesions(model, images, labels, {"a": clusters, "b": padded}, layer=0, draws=4)
    assert torch.equal(found["a"]["mean_effects"], found["b"]["mean_effects"])
    assert found["a"]["zero_specialization_z"] == found["b"]["zero_specialization_z"]


@pytest.mark.parametrize("where", ["images", "weights", "behind"])
def test_activations_that_are_not_finite_give_nan_and_a_warning(where):
    model, (images, labels) = dense(), data()
    with torch.no_grad():
        if where == "images":
            images[3] = math.inf
        elif where == "weights":
            model.fc_layers[0].weight[2] = math.nan
        else:
            model.proj.weight[:] = math.nan
    clusters = torch.eye(3)[torch.tensor([0, 1, 2, 0, 1, 0, 2])]
    for layer, outputs in ((0, None), ("fc_layers.0", lambda returned: returned[1])):
        with pytest.warns(UserWarning, match="not finite"):
            found = find_lesions(model, images, labels, {"a": clusters}, layer=layer, outputs=outputs, draws=4)["a"]
        assert found["mean_effects"].shape == (3, 3) and found["mean_effects"].isnan().all()
        assert all(math.isnan(found[key]) for key in found if key.startswith(("mean_spec", "zero_imp")))


def test_first_of_each_class_takes_what_there_is():
    labels = torch.tensor([5, 2, 2, 5, 5, 9])
    assert first_of_each_class(labels, 2).tolist() == [1, 2, 0, 3, 5]
    assert first_of_each_class(labels, 100).tolist() == [1, 2, 0, 3, 4, 5]
    for broken in ((labels, 0), (labels[:0], 3)):
        with pytest.raises(ValueError, match="images of each class"):
            first_of_each_class(*broken)


def test_a_class_with_few_images_counts_with_those_and_one_with_none_not_at_all():
    model, (images, labels) = dense(classes=5), data(n=12)
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 0, 3, 3, 3, 4, 4])
    effects = lesion_effects(model, images, labels, torch.eye(7)[:, :2], layer=0)["zero"]
    assert effects.shape == (2, 3)  # classes 0, 3 and 4
    with torch.no_grad():
        h = F.relu(model.fc_layers[0](images))
        lesioned = h.clone()
        lesioned[:, 1] = 0
        losses = [F.cross_entropy(model.forward_from(0, a), labels, reduction="none") for a in (lesioned, h)]
    difference = losses[0] - losses[1]
    by_hand = torch.stack([difference[:7].mean(), difference[7:10].mean(), difference[10:].mean()])
    assert (effects[1] - by_hand).abs().max() < 1e-12
    found = find_lesions(model, images, labels, {"a": torch.eye(7)}, layer=0, draws=2)["a"]
    assert found["classes"].tolist() == [0, 3, 4] and found["images_per_class"].tolist() == [7, 3, 2]


class Random(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.read = nn.Linear(4, 7), nn.Linear(7, 3)

    def forward(self, x):
        return self.read(F.dropout(torch.relu(self.first(x)), 0.5, training=True))


class Centered(Random):
    def forward(self, x):
        h = self.first(x)
        return self.read(h - h.mean(0))


def test_what_makes_no_sense_is_refused_in_a_sentence():
    model, (images, labels), groups = dense(), data(), some_groups(7)

    def refused(message, model=model, images=images, labels=labels, groups=groups, **options):
        with pytest.raises(ValueError, match=message):
            lesion_effects(model, images, labels, groups, **{"layer": 0} | options)

    refused("evaluation mode", model=dense().train())
    refused("no layer 3", layer=3)
    refused("no layer -1", layer=-1)
    refused("no layers 'fc'", layer="fc")
    refused("name a module instead", unit_dim=1)  # nobody would look at it
    refused("name a module instead", outputs=lambda returned: returned[1])
    refused("name a module instead", model=Plain().double().eval(), images=data(0, 12, (2, 5, 5))[0])
    refused("groups of 6 units for a layer of 7", groups=some_groups(6))
    refused("zeros and ones", groups=groups * 2.0)
    refused("a column a group", groups=groups[:, 0])
    refused("need labels", labels=labels[:5])
    refused("int64", labels=labels.double())
    refused("labels from 1 to 3 for 3 logits", labels=labels + 1)
    refused("random", model=Random().double().eval(), layer="first")
    refused("influence each other", model=Centered().double().eval(), layer="first")
    refused("probabilities", model=nn.Sequential(*Plain(), nn.Softmax(1)).double().eval(), layer="0",
            images=data(0, 12, (2, 5, 5))[0])  # fmt: skip
    with pytest.raises(ValueError, match="clusterings of one layer"):
        find_lesions(model, images, labels, {"a": torch.eye(7), "b": torch.eye(6)}, layer=0)
    with pytest.raises(ValueError, match="one-hot"):
        find_lesions(model, images, labels, {"a": torch.ones(7, 2)}, layer=0)


def test_a_network_that_goes_on_otherwise_than_it_says_is_refused():
    model, (images, labels) = dense(), data()
    model.forward_from = lambda layer, h: model.proj(h[:, :5])
    with pytest.raises(ValueError, match="gives other logits"):
        lesion_effects(model, images, labels, some_groups(7), layer=0)


@pytest.mark.parametrize("layer", range(6))
def test_forward_from_a_layer_gives_the_logits_of_the_whole_network(layer):
    torch.manual_seed(0)
    for model, shape in (
        (MnistSupervised(channels=(6,) * 6, input_shape=(4,)), (4,)),
        (Cifar10Fast(channels=(4, 4, 4, 4)), (3, 32, 32)),
        (Cifar10Fast(channels=(4, 4, 4, 4), concat_pool=False), (3, 32, 32)),
    ):
        model.eval()
        hidden, logits = model(torch.rand(2, *shape))
        assert torch.equal(model.forward_from(layer, hidden[layer]), logits)


def test_a_layer_is_opened_by_name_or_number():
    with opened(dense(), 1) as network:
        assert isinstance(network, OwnHidden)
    with opened(dense(), "fc_layers.1") as network:
        assert isinstance(network, NamedLayer) and not torch.is_grad_enabled()
