"""Which dimension of a layer's output holds its units and which the examples; all others are locations."""

import operator
from collections import defaultdict
from contextlib import contextmanager
from typing import NamedTuple

from torch import nn

from numerics import nested
from numerics.derivatives import by_unit

UNITS_AT_1 = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
)
UNITS_LAST = (
    *(nn.Linear, nn.Bilinear, nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.RNN, nn.LSTM, nn.GRU, nn.MultiheadAttention),
    *(nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.TransformerDecoder, nn.TransformerDecoderLayer),
)
CONVENTIONS = dict.fromkeys(UNITS_AT_1, 1) | dict.fromkeys(UNITS_LAST, -1)  # of these very classes, not of heirs


class Layout(NamedTuple):
    """Dimensions of a layer's output, counted from 0."""

    examples: int = 0
    units: int = 1

    def rows(self, tensor):
        """A tensor of the layer's shape as (B, locations, units)."""
        return by_unit(tensor, self.examples, self.units)


def given_unit_dims(unit_dim, n_layers):
    """`unit_dim` as a list, one number or None a layer.

    Raises: ValueError for anything but whole numbers, and as many of them as there are layers.
    """
    given = unit_dim if isinstance(unit_dim, (list, tuple)) else [unit_dim] * n_layers
    try:
        numbers = [number if number is None else operator.index(number) for number in given]
    except TypeError:
        raise ValueError(f"unit_dim must be a whole number, or one a layer, not {unit_dim!r}") from None
    if len(numbers) != n_layers:
        raise ValueError(f"unit_dim has {len(numbers)} numbers for {n_layers} layers")
    return numbers


def find_layouts(recording, batch, hidden, n_few, unit_dim=None):
    """The layout of every layer.

    Examples are at the dimension that shrinks when the network is given n_few of them. Units are at `unit_dim` where
    that is given; of (B, d) outputs at the other dimension; of modules whose documentation says so, there; at dimension
    1 of other outputs, unless the network also holds features last in tensors with as many dimensions, or the output
    has three dimensions and nothing else that has three tells what they are.

    Args:
        recording: runs the network.  batch: what it ran on.  hidden: what it gave.
        unit_dim: a number, one a layer, or None.

    Raises: ValueError where a layer's units or examples cannot be told.
    """
    n, unit_dims = nested.size(batch), given_unit_dims(unit_dim, len(hidden))
    with _conventions_seen(recording.model) as seen:
        few, _ = recording(nested.part(batch, 0, n_few))
    found = []
    for layer, (h, h_of_few, units) in enumerate(zip(hidden, few, unit_dims, strict=True)):
        name = recording.name(layer)
        shape = tuple(h.shape)
        if len(shape) != h_of_few.ndim:
            raise ValueError(
                f"{name} returns {shape} for {n} examples and {tuple(h_of_few.shape)} for {n_few}: if the network "
                "squeezes dimensions of one, give larger batches"
            )
        both = enumerate(zip(shape, h_of_few.shape, strict=True))
        examples = next((dim for dim, sizes in both if sizes == (n, n_few)), None)
        if examples is None or len(shape) < 2:
            raise ValueError(f"{name} returns {shape} for {n} examples: no dimension is that of the examples")
        if units is None:
            units = _usual_unit_dim(name, shape, examples, _convention(recording, layer), seen)
        if not -len(shape) <= units < len(shape) or units % len(shape) == examples:
            raise ValueError(
                f"{name} returns {shape} with the examples at dimension {examples}: its units cannot be at {units}; "
                "say where they are, unit_dim=…"
            )
        found.append(Layout(examples, units % len(shape)))
    return found


def _convention(recording, layer):
    """Where the documentation of the layer's module says that its units are; None if nowhere."""
    if recording.layers is None or recording.layers[layer].keys:
        return None
    return CONVENTIONS.get(type(recording.modules[layer]))


def _usual_unit_dim(name, shape, examples, convention, seen):
    if len(shape) == 2:
        return 1 - examples
    if convention is not None:
        return convention
    if -1 in seen[len(shape)] or (len(shape) == 3 and name.startswith("layer ") and not seen[3]):
        raise ValueError(
            f"{name} returns {shape}: its units may be at dimension 1, as in convolutional networks, or at the last, "
            "as in transformers; say which, unit_dim=1 or unit_dim=-1, or one number a layer"
        )
    return 1


@contextmanager
def _conventions_seen(model):
    """Context manager giving {number of dimensions: where modules that run keep their units, 1 or −1}."""
    seen = defaultdict(set)

    def note(module, _inputs, output):
        first = next(iter(nested.tensors(output)), None)
        if first is not None:
            seen[first.ndim].add(CONVENTIONS[type(module)])

    handles = [module.register_forward_hook(note) for module in model.modules() if type(module) in CONVENTIONS]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
