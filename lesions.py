"""What do modules do? Lesions: how much worse does a network recognize each class without a group of units?

A lesion of a group g of a layer's units replaces their activations (whole channels) and recomputes everything behind
the layer; nothing else changes. It is of one of two kinds, which answer differently:

    mean    by their mean over the images given, per location: takes away only what varies
    zero    by zero: what dropout trains a network to bear

The effect E_ck of a lesion of cluster c on class k is the mean cross-entropy of the images of class k with the lesion
minus that without. From the effects of the clusters of one clustering come its specialization, in bits, the information
that the cluster lesioned gives about the classes that suffer, and its importance, the loss that a unit's cluster costs.
Both are compared with those of clusterings with the same sizes whose labels are shuffled.

Related: Hod, Casper, Filan, Wild, Critch & Russell (2021), Quantifying local specialization in deep neural networks,
arXiv:2110.08058, who compare the damage by clusters with that by random groups of units.
"""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from comparison import cluster_labels
from numerics import nested
from numerics.behind import ChainLesions, opened, same_up_to_rounding
from numerics.checks import check_examples
from numerics.layout import Layout
from numerics.losses import check_labels
from numerics.nulls import significance
from numerics.seeds import checked_seed
from numerics.settings import careful_arithmetic, keep_freed_memory

LESIONS_VERSION = 101
KINDS = ("mean", "zero")
STATISTICS = ("specialization", "importance")
DEFAULT_DRAWS = 100
ROWS = 128  # rows that run through the network at once: copies of the layer × images
CHAIN_ROWS = 16000  # the same where only products with matrices lie behind the layer
IMAGES = 16  # of which each batch of copies is made; before the layer they run alone
CHAIN_IMAGES = 500
EXACT = 4  # effects of no more than so many roundings of the largest logit are none


# ---- effects --------------------------------------------------------------------------------------------------------


def first_of_each_class(labels: torch.Tensor, number: int) -> torch.Tensor:
    """Indices of the first images of each class, class after class, in the order given.

    Args: labels: (N,), integers.  number: of each class; a class that has fewer gives all it has.
    Returns: (n,) int64, on the labels' device.
    Raises: ValueError if number is not positive or there are no labels.

    >>> first_of_each_class(torch.tensor([1, 0, 1, 1, 0]), 2)
    tensor([1, 4, 0, 2])
    """
    if number < 1 or not len(labels):
        raise ValueError(f"there are no {number} images of each class among {len(labels)}")
    return torch.cat([(labels == k).nonzero()[:number, 0] for k in labels.unique()])


def lesion_effects(
    model: torch.nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    groups: torch.Tensor,
    *,
    layer: int | str,
    outputs: Callable | None = None,
    unit_dim: int | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> dict[str, torch.Tensor]:
    """The effect of lesioning each of several groups of a layer's units on each class.

    E_gk = mean over the images of class k of L(lesion of g) − L(intact), L the cross-entropy.

    The network stays as it is. What lies before the layer runs once for all groups. Where the network is known to be a
    chain of linear layers and ReLUs behind the layer (`MnistSupervised`), a lesion is a change of the next layer's
    outputs by as many products as the group has units; otherwise all that lies behind the layer runs again for each
    group and kind. Memory is bounded by the batch, not by the number of groups or images.

    Args:
        model: in evaluation mode; returns (hidden, logits) and has forward_from(layer, h) if the layer is a number;
            otherwise any network that returns logits, as for `associations`.
        images: (N, …), of the classes to be looked at; the means are over these. Whatever the network takes, on its
            device: tuples and dicts of tensors too.
        labels: (N,), int64.
        groups: (n, G), one column a group: 1 or True for its units; they may overlap, and be empty.
        layer: the number of one of the network's own `hidden`, from 0, or a module's name.
        outputs, unit_dim: for named layers, see `associations`.
        batch_size: rows (altered copies of the layer × images) that run through the network at once.
        progress: show a progress bar.

    Returns: {kind: E (G, K) float64 on the CPU}, K the classes that occur among the labels, in order. Effects within
        rounding of the logits are zero. All are NaN, with a warning, if the layer or the intact network's loss has
        entries that are not finite.

    Raises: ValueError for a network in training mode, one that is random or whose examples influence each other, an
        unknown layer, one whose units are not as many as the groups', images, labels and logits that do not fit.
    """
    n = nested.size(images)
    if not isinstance(labels, torch.Tensor) or labels.shape != (n,) or not n:
        raise ValueError(f"need labels ({n},), one an image, and at least one, not {getattr(labels, 'shape', labels)}")
    masks = _masks(groups).to(labels.device)
    keep_freed_memory()
    with opened(model, layer, outputs, unit_dim) as network, careful_arithmetic():
        linears = network.linears()
        rows = batch_size or (CHAIN_ROWS if linears else ROWS)
        few = max(1, min(rows // len(KINDS), n, CHAIN_IMAGES if linears else IMAGES))
        batches = [(nested.part(images, i, i + few), labels[i : i + few]) for i in range(0, n, few)]
        mean, rounding = _intact(network, batches, masks)
        classes, counts = labels.unique(return_counts=True)
        total = torch.zeros(len(KINDS), len(masks), len(classes), dtype=torch.float64, device=labels.device)
        if mean is None:
            warnings.warn(f"layer {layer!r} or the loss has entries that are not finite: no effects", stacklevel=2)
            return dict(zip(KINDS, (total + torch.nan).cpu(), strict=True))
        copies = max(1, rows // (few * len(KINDS)))
        parts = _parts(masks, copies)
        for x, y in tqdm(batches, desc="lesions", disable=not progress):
            h, logits = network.front(x)
            intact, by_class = _losses(logits.T[None], y), (y[:, None] == classes).double()
            if linears:
                lesions = _by_linearity(ChainLesions(linears, h, mean, copies), parts, masks)
            else:
                lesions = _by_replacement(network, x, h, mean, masks, parts)
            for which, lesioned in lesions:
                losses = _losses(lesioned.flatten(0, 1), y).double() - intact
                total[:, which] += (losses @ by_class).view(len(KINDS), len(which), -1)
    effects = (total / counts).cpu()
    return dict(zip(KINDS, torch.where(effects.abs() <= EXACT * rounding, 0.0, effects), strict=True))


def _masks(groups):
    """(G, n) bool, of the columns of (n, G)."""
    if groups.ndim != 2 or not ((groups == 0) | (groups == 1)).all():
        raise ValueError(f"groups need a row a unit and a column a group, of zeros and ones, not {tuple(groups.shape)}")
    return groups.T.bool()


def _intact(network, batches, masks):
    """The layer's mean activations, and one rounding of the largest logit.

    Returns: (units, …locations), or None if they or the losses are not finite; a float.
    """
    check_examples(lambda x: ([network.front(x)[0]], network.front(x)[1]), batches[0][0], [Layout()])
    total, finite, largest, n = 0.0, True, 0.0, 0
    for x, y in batches:
        h, logits = network.front(x)
        check_labels(logits, y, "the effect of a lesion", "it is a difference of softmax cross-entropies")
        if h.shape[1] != masks.shape[1]:
            raise ValueError(f"groups of {masks.shape[1]} units for a layer of {h.shape[1]}, {tuple(h.shape)}")
        if not same_up_to_rounding(network.rest(x, h), logits):
            raise ValueError(
                "run from the layer on, the intact network gives other logits: it is random in evaluation mode, or "
                "something behind the layer does not derive from it"
            )
        total, n = total + h.double().sum(0), n + len(y)
        finite &= bool(_losses(logits.T[None], y).isfinite().all())
        largest = max(largest, logits.abs().max().item())
    mean = total / n
    usable = finite and bool(mean.isfinite().all())
    return mean.to(h.dtype) if usable else None, torch.finfo(logits.dtype).eps * largest


def _losses(logits, y):
    """Cross-entropy of each example, (g, b), from logits (g, K, b)."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits, y.expand(len(logits), -1), reduction="none")


def _by_replacement(network, x, h, mean, masks, parts):
    """(indices of some groups, logits (2, g, K, b)) until there are all, the network running again for each."""
    replacements = torch.stack([mean, torch.zeros_like(mean)])[:, None, None]
    for which in parts:
        units = masks[which].view(len(which), 1, -1, *[1] * (h.ndim - 2))
        lesioned = torch.where(units, replacements, h)  # (2, g, b, units, …)
        logits = network.rest(x, lesioned.flatten(0, 2))
        yield which, logits.view(len(KINDS), len(which), len(h), -1).transpose(2, 3)


def _by_linearity(lesions, parts, masks):
    """The same where the layer is read by a chain of linear layers."""
    n = masks.shape[1]
    for which in parts:
        units = torch.where(masks[which], torch.arange(n, device=masks.device), n).sort(1).values
        yield which, lesions.logits(units[:, : int(masks[which].sum(1).max())])


def _parts(masks, number):
    """Indices of so many groups at a time, those of about one size together."""
    return masks.sum(1).argsort(stable=True).split(number) if len(masks) else ()


# ---- what the effects say -------------------------------------------------------------------------------------------


def specialization(effects: torch.Tensor) -> torch.Tensor:
    """How far the clusters of a clustering serve different classes, in bits.

    I = Σ_ck p_ck log₂ (p_ck / (p_c p_k)) with p_ck = max(E_ck, 0) / Σ max(E, 0), p_c = Σ_k p_ck, p_k = Σ_c p_ck.

    Args: effects: E, (…, C, K); leading dimensions are further clusterings.
    Returns: (…) float64 in [0, log₂ min(C, K)]: 0 when every lesion hurts the classes in the same proportions, the
        maximum when each class is hurt by one lesion; NaN when no lesion hurts, there is but one cluster, or an effect
        is not finite.

    >>> specialization(torch.tensor([[1.0, 0.0], [0.0, 1.0]])).item()
    1.0
    """
    E = effects.double()
    if E.ndim < 2:
        raise ValueError(f"effects of shape {tuple(E.shape)}, not (clusters, classes)")
    total = E.clamp(min=0).sum((-2, -1), keepdim=True)
    p = E.clamp(min=0) / total
    p_c, p_k = p.sum(-1, keepdim=True), p.sum(-2, keepdim=True)
    bits = torch.where(p > 0, p * (p / (p_c * p_k)).log2(), 0.0).sum((-2, -1)).clamp(min=0)
    defined = (total[..., 0, 0] > 0) & E.isfinite().all(-1).all(-1) & (E.shape[-2] > 1)
    return torch.where(defined, bits, torch.nan)


def importance(effects: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """What the lesion of a unit's cluster costs, averaged over the units and the classes: Σ_c (n_c / n) · mean_k E_ck.

    Args: effects: E, (…, C, K).  sizes: n_c, (C,), live units of each cluster.
    Returns: (…) float64, nats; NaN if there is no cluster.
    """
    sizes = torch.as_tensor(sizes, dtype=torch.float64)
    return (effects.double().mean(-1) * sizes).sum(-1) / sizes.sum()


def shuffled_clusterings(clusters: torch.Tensor, draws: int, seed: int | None = 0) -> torch.Tensor:
    """Clusterings with the same sizes whose labels are permuted among the live units.

    The i-th draw cuts a random order of the units, restricted to the live ones, into the clusters' sizes, the largest
    first. The order depends on (seed, i) and the number of units alone, so that clusterings of equal sizes have equal
    draws, and those of similar sizes share groups.

    Args:
        clusters: (n, C), rows one-hot or zero.
        draws: how many.
        seed: the same seed, the same draws; None for different ones each time.

    Returns: (draws, n, C') bool, of the C' clusters that are not empty, the largest first.
    """
    labels, seed = cluster_labels(clusters), checked_seed(seed)
    live, sizes = labels >= 0, -np.sort(-np.bincount(labels[labels >= 0]))
    shuffled = np.zeros((draws, len(labels), len(sizes)), dtype=bool)
    in_order = np.repeat(np.arange(len(sizes)), sizes)
    for i in range(draws):
        order = np.random.default_rng((seed, i)).permutation(len(labels))
        shuffled[i, order[live[order]], in_order] = True
    return torch.from_numpy(shuffled)


# ---- evaluation -----------------------------------------------------------------------------------------------------


def find_lesions(
    model: torch.nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    clusterings: dict[str, torch.Tensor],
    *,
    layer: int | str,
    draws: int = DEFAULT_DRAWS,
    seed: int | None = 0,
    **options,
) -> dict[str, dict]:
    """Everything that a checkpoint keeps about lesions of the clusters of one layer, for several clusterings of it.

    Groups that occur more than once, in several clusterings or draws, are lesioned once.

    Args:
        model, images, labels, layer: as for `lesion_effects`.
        clusterings: {name: clusters (n, C), rows one-hot, or zero for dead units, which are in no lesion}.
        draws: shuffled clusterings for each null; those of all names cut the same random orders of the units.
        seed: the same seed, the same draws; None for different ones each time.
        options: further arguments of `lesion_effects`.

    Returns:
        {name: {field: value}}. For each kind of lesion <kind>_effects, E (C, K) float32, clusters in stored order; and
        for each of specialization and importance <kind>_<statistic>, and against its null <kind>_<statistic>_null_mean,
        _null_std, _z and _p = (1 + draws with at least the value)/(1 + draws). Statistics are NaN where they are
        undefined; draws in which they are undefined do not count. Also classes and images_per_class, (K,) int64, draws
        and version.

    Raises: ValueError as `lesion_effects`; for clusterings of different lengths or with rows of another kind.
    """
    found = {name: _columns(clusters) for name, clusters in clusterings.items()}
    if len({len(clusters) for clusters in found.values()}) != 1:
        raise ValueError(f"clusterings of one layer are needed, not of {[len(c) for c in found.values()]} units")
    seed, groups = checked_seed(seed), _Groups()
    own = {name: groups.add(clusters[None])[0] for name, clusters in found.items()}
    drawn = {name: groups.add(shuffled_clusterings(clusters, draws, seed)) for name, clusters in found.items()}
    matrix = groups.matrix(len(next(iter(found.values()))))
    classes, counts = labels.cpu().unique(return_counts=True)
    all_effects = lesion_effects(model, images, labels, matrix, layer=layer, **options)
    common = {"classes": classes, "images_per_class": counts, "draws": draws, "version": LESIONS_VERSION}
    results = {}
    for name, clusters in found.items():
        results[name] = dict(common)
        for kind in KINDS:
            effects, null = all_effects[kind][own[name]], all_effects[kind][drawn[name]]
            results[name][f"{kind}_effects"] = effects.float()
            results[name] |= _statistics(kind, effects, null, clusters.sum(0))
    return results


def _statistics(kind, effects, null, sizes):
    """Specialization and importance of the effects (C, K), and where they lie among those of the draws (D, C, K)."""
    in_draws = sizes.sort(descending=True).values
    values = {
        "specialization": (specialization(effects), specialization(null)),
        "importance": (importance(effects, sizes), importance(null, in_draws)),
    }
    result = {}
    for statistic, (value, of_draws) in values.items():
        result[f"{kind}_{statistic}"] = value.item()
        against = significance(value.item(), of_draws[~of_draws.isnan()].tolist())
        result |= {f"{kind}_{statistic}_{field}": number for field, number in against.items()}
    return result


def _columns(clusters):
    """(n, C) bool, of the clusters that are not empty, in stored order."""
    labels = torch.from_numpy(cluster_labels(clusters))
    return labels[:, None] == torch.arange(int(labels.max()) + 1)


class _Groups:
    """The different groups of units in many clusterings, numbered."""

    def __init__(self):
        self.numbers = {}

    def add(self, clusterings):
        """Takes in the columns of clusterings, (D, n, C) bool; returns the number of each one's group, (D, C) int64."""
        columns = clusterings.transpose(1, 2).numpy()
        numbers = np.zeros(columns.shape[:2], dtype=np.int64)
        for place in np.ndindex(numbers.shape):
            numbers[place] = self.numbers.setdefault(columns[place].tobytes(), len(self.numbers))
        return torch.from_numpy(numbers)

    def matrix(self, n):
        """(n, G) bool: each group once."""
        groups = [np.frombuffer(key, dtype=bool) for key in self.numbers]
        return torch.from_numpy(np.array(groups, dtype=bool).reshape(-1, n).T)
