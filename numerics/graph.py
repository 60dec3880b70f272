"""What autograd recorded between hidden layers and logits: is there a way, and is all on it piecewise linear?"""

from typing import NamedTuple

import torch
from torch.autograd.graph import get_gradient_edge

from numerics.linear import PIECEWISE_LINEAR_FUNCTIONS

# The derivatives of these are constant between kinks; those of products, where all factors but one are constant.
PIECEWISE_LINEAR = {
    *("Add", "Sub", "Neg", "Sum", "Mean", "Abs", "Relu", "LeakyRelu", "Hardtanh", "Threshold", "Clamp", "ToCopy"),
    *("View", "UnsafeView", "ReshapeAlias", "T", "Transpose", "Permute", "Squeeze", "Unsqueeze", "Expand", "Clone"),
    *("Slice", "Select", "Cat", "Stack", "Split", "SplitWithSizes", "Unbind", "Alias", "ConstantPadNd", "Index"),
    *("MaxPool2DWithIndices", "AvgPool2D", "AdaptiveAvgPool2D", "UpsampleNearest2D"),
}
PRODUCTS = {
    **dict.fromkeys(("Mul", "Mm", "Bmm", "Convolution"), (0, 1)),
    **dict.fromkeys(("Addmm", "Baddbmm", "Addbmm"), (1, 2)),
}


CHANGES_OF_FORM = {"View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Clone", "Alias", "ToCopy"}


def kind_of(node):
    """The name of an operation: "Relu" for "ReluBackward0"."""
    return node.name().rstrip("0123456789").removesuffix("Backward")


def before_changes_of_form(node):
    """The operation, or leaf, that made the numbers that reach a node of the graph; None for no node."""
    while node is not None and kind_of(node) in CHANGES_OF_FORM:
        node = node.next_functions[0][0]
    return node


class Paths(NamedTuple):
    """Of the ways from the hidden layers to the logits.

    Attributes:
        reached: for every layer, whether there is one.
        custom: names of operations on them whose derivatives are not torch's own.
        linear: whether all operations are known to be piecewise linear, so that second derivatives are zero.
        without: whether some operation on them has no derivative at all, as those of quantized modules.
    """

    reached: list
    custom: set
    linear: bool
    without: bool


def paths(hidden, results):
    """The Paths from the hidden layers to the results, tensors; a few microseconds an operation."""
    sources = {}
    for layer, h in enumerate(hidden):
        if h.requires_grad:
            edge = get_gradient_edge(h)
            sources.setdefault((edge.node, edge.output_nr), []).append(layer)
    tops = [get_gradient_edge(result) for result in results if result.requires_grad]
    reached, after = set(), {}  # after: does this operation depend on a layer?

    def depends(node, output):
        if (node, output) in sources:
            reached.add((node, output))
            return True
        return after[node]

    stack = [top.node for top in tops]
    while stack:
        node = stack[-1]
        below = [(next_node, output) for next_node, output in node.next_functions if next_node is not None]
        waiting = [next_node for next_node, _ in below if next_node not in after]
        if waiting:
            stack += waiting
        else:
            after[stack.pop()] = any([depends(*edge) for edge in below])
    for top in tops:
        depends(top.node, top.output_nr)

    custom, without, linear = set(), False, True
    for node, on_the_way in after.items():
        if not on_the_way:
            continue
        name = node.name()
        without |= "NotImplemented" in name
        if isinstance(node, torch.autograd.function.BackwardCFunction) or "CppNode" in name:
            if getattr(node, "_forward_cls", None) not in PIECEWISE_LINEAR_FUNCTIONS:
                custom.add(name.removesuffix("Backward"))
            continue
        kind = kind_of(node)
        below = dict(enumerate(node.next_functions))  # a product with a plain number has one factor
        edges = [below[factor] for factor in PRODUCTS.get(kind, ()) if factor in below]
        varying = sum(edge[0] is not None and depends(*edge) for edge in edges)
        linear &= kind in PIECEWISE_LINEAR or varying == 1
    layers = {layer for source in reached for layer in sources[source]}
    return Paths([layer in layers for layer in range(len(hidden))], custom, linear and not custom, without)
