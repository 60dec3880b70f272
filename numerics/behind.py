"""What lies behind a layer: running a network from there on, for many altered copies of the layer at once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from numerics import nested
from numerics.checks import check_network
from numerics.layout import find_layouts
from numerics.recording import Recording, recorded
from numerics.settings import twice_differentiable

ROUNDINGS = 1000  # of the largest logit, by which the same computation in another batch may differ


class OwnHidden:
    """A network that returns (hidden, logits), opened at one of these layers; it runs on from there by
    `forward_from(layer, h)`.

    `front(x)` gives the layer's activations h, (B, units, …locations), and the logits; `rest(x, h)` gives the logits
    when the layer has other activations: k altered copies of those of x, one copy after the other.
    """

    def __init__(self, model: nn.Module, layer: int):
        self.model, self.layer = model, layer
        self.convolutional = any(isinstance(module, nn.Conv2d) for module in model.modules())

    def front(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.convolutional:  # the layout that convolutions are fastest in
            x = x.contiguous(memory_format=torch.channels_last)
        hidden, logits = self.model(x)
        if not 0 <= self.layer < len(hidden):
            raise ValueError(f"there is no layer {self.layer}: the network has {len(hidden)}, counted from 0")
        return hidden[self.layer], logits

    def rest(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        if self.convolutional and h.ndim == 4:
            h = h.contiguous(memory_format=torch.channels_last)
        return self.model.forward_from(self.layer, h)

    def linears(self) -> list[nn.Linear] | None:
        """The layers behind, if they are known to be linear ones with a ReLU between any two, else None."""
        behind = self.model.linears_behind(self.layer) if hasattr(self.model, "linears_behind") else None
        return behind if behind and all(_plain(module) for module in behind) else None


def _plain(module):
    """Whether a module is one of torch's own linear layers, computing what its weight and bias say."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    return type(module) is nn.Linear and "forward" not in vars(module) and not hooks


class NamedLayer:
    """Any network, opened at a module's output, which is replaced as it is returned. For methods see `OwnHidden`.

    k copies of the layer may replace the one that there is, so that what lies before it runs once for all. Whether the
    rest goes along is tried on the first copies: where it does not, or gives other logits (something else remembers the
    number of examples, or goes past the layer), the whole network runs on k copies of its input.
    """

    def __init__(self, recording: Recording, unit_dim: int | None):
        self.recording, self.unit_dim = recording, unit_dim
        self.layout, self.shares_front = None, None

    def front(self, x) -> tuple[torch.Tensor, torch.Tensor]:
        (h,), logits = self._run(x, None)
        if self.layout is None:
            few = max(1, nested.size(x) // 2)
            (self.layout,) = find_layouts(self.recording, x, [h], few, self.unit_dim)
        return h.detach().movedim(tuple(self.layout), (0, 1)), logits

    def rest(self, x, h: torch.Tensor) -> torch.Tensor:
        h, copies = h.movedim((0, 1), tuple(self.layout)), len(h) // nested.size(x)
        if copies == 1 or self.shares_front:
            return self._run(x, h)[1]
        logits = self._run(_repeated(x, copies), h)[1]
        if self.shares_front is None:
            self.shares_front = self._agrees(x, h, logits)
        return logits

    def linears(self) -> None:
        return None

    def _agrees(self, x, h, expected):
        try:
            logits = self._run(x, h)[1]
        except Exception:  # of whatever kind: the network does not run on copies of the layer alone
            return False
        return logits.shape == expected.shape and same_up_to_rounding(logits, expected)

    def _run(self, x, replacement):
        self.recording.replacement = replacement
        return self.recording(x)


def _repeated(x, copies):
    n = nested.size(x)
    return nested.mapped(lambda t: torch.cat([t] * copies) if t.ndim and len(t) == n else t, x)


@contextmanager
def opened(
    model: nn.Module, layer: int | str, outputs: Callable | None = None, unit_dim: int | None = None
) -> Iterator[OwnHidden | NamedLayer]:
    """Context manager giving a network opened at a layer, without gradients; the network stays as it is.

    Args:
        layer: the number of one of the network's own `hidden`, or a module's name, see `recording.address`.
        outputs, unit_dim: for named layers, as for `associations`.

    Raises: ValueError for a network in training mode, an unknown layer, or a number where the network cannot run on
        from a layer.
    """
    if isinstance(model, nn.Module) and any(module.training for module in model.modules()):
        raise ValueError("lesions are defined in evaluation mode: call model.eval() first")
    check_network(model)
    if isinstance(layer, str):
        # the settings are those in which every module of a network runs, and its hooks with it
        with recorded(model, [layer], outputs) as recording, twice_differentiable(), torch.no_grad():
            yield NamedLayer(recording, unit_dim)
        return
    if not hasattr(model, "forward_from") or outputs or unit_dim is not None:
        raise ValueError(
            f"layer {layer!r}: numbers are for networks that return (hidden, logits) and have forward_from(layer, h), "
            "as those of the study; name a module instead"
        )
    with torch.no_grad():
        yield OwnHidden(model, int(layer))


def same_up_to_rounding(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two runs of the same computation agree to ROUNDINGS of the largest value; NaN equals NaN."""
    scale = b.nan_to_num().abs().max()
    near = (a - b).nan_to_num().abs().max() <= ROUNDINGS * torch.finfo(b.dtype).eps * scale
    return bool(near) and torch.equal(a.isnan(), b.isnan())


class ChainLesions:
    """Lesions of the layer that a chain Linear → ReLU → … → Linear reads, by linearity of its first layer.

    Its outputs z = W h + b change by −Σ_{i∈g} W_i (h_i − m_i) when the units of a group g are replaced by their means
    m, and by −Σ_{i∈g} W_i m_i more when they are replaced by zero: as many products as the group has units. Examples
    are innermost, where products with few logits are fastest; all work is done in the same space again and again.

    Args:
        linears: the chain.
        h: (b, d), the layer's activations.
        mean: (d,).
        groups: how many are lesioned at once, at most.
    """

    def __init__(self, linears: list[nn.Linear], h: torch.Tensor, mean: torch.Tensor, groups: int):
        weight = linears[0].weight
        self.behind = linears[1:]
        self.columns = torch.cat([weight.T, weight.new_zeros(1, len(weight))])  # (d + 1, out); the last is no unit
        self.means = self.columns * torch.cat([mean, mean.new_zeros(1)])[:, None]
        self.deviations = torch.cat([(h - mean).T, h.new_zeros(1, len(h))])  # (d + 1, b)
        self.intact = linears[0](h).T.contiguous()  # (out, b)
        self.gathered = h.new_empty(groups * h.shape[1], len(h))
        self.space = [h.new_empty(2 * groups, len(linear.weight), len(h)) for linear in linears]

    def logits(self, members: torch.Tensor) -> torch.Tensor:
        """Logits (2, g, K, b) after g groups were replaced by their means, and by zero; overwritten by the next call.

        Args: members: (g, w), the units of each group, filled up with d.
        """
        g, w = members.shape
        deviations = self.gathered[: g * w]
        torch.index_select(self.deviations, 0, members.flatten(), out=deviations)
        columns = self.columns[members].transpose(1, 2)  # (g, out, w)
        mean, zero = self.space[0][:g], self.space[0][g : 2 * g]
        torch.baddbmm(
            self.intact.expand(g, -1, -1), columns, deviations.view(g, w, self.intact.shape[1]), alpha=-1, out=mean
        )
        torch.sub(mean, self.means[members].sum(1)[:, :, None], out=zero)
        logits = self._rest(self.space[0][: 2 * g])
        return logits.view(2, g, *logits.shape[1:])

    def _rest(self, z):
        for linear, space in zip(self.behind, self.space[1:], strict=True):
            weight = linear.weight.expand(len(z), -1, -1)
            z = torch.bmm(weight, z.relu_(), out=space[: len(z)])
            if linear.bias is not None:
                z += linear.bias[:, None]
        return z
