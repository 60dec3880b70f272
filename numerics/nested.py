"""Batches that are one tensor, or tuples and dicts of tensors, as tokenizers and data loaders make them."""

import inspect
from collections.abc import Mapping

import torch


def mapped(function, nested):
    """The same tuples, lists and dicts with function(tensor) for each tensor; what is no tensor stays."""
    if isinstance(nested, torch.Tensor):
        return function(nested)
    if isinstance(nested, Mapping):
        return {key: mapped(function, value) for key, value in nested.items()}
    if isinstance(nested, tuple) and hasattr(nested, "_fields"):
        return type(nested)(*(mapped(function, value) for value in nested))
    if isinstance(nested, (tuple, list)):
        return type(nested)(mapped(function, value) for value in nested)
    return nested


def tensors(nested):
    """All tensors, in their order."""
    found = []
    mapped(found.append, nested)
    return found


def size(nested):
    """Number of examples: the first dimension of the first tensor that has one."""
    lengths = [len(tensor) for tensor in tensors(nested) if tensor.ndim]
    if not lengths:
        raise ValueError(f"a batch must hold tensors with the examples along their first dimension, not {nested!r:.80}")
    return lengths[0]


def part(nested, start, stop):
    """Some of the examples; tensors with another first dimension belong to no example and stay whole."""
    n = size(nested)
    return mapped(lambda tensor: tensor[start:stop] if tensor.ndim and len(tensor) == n else tensor, nested)


def float_tensors(nested):
    """The tensors that one can differentiate by: floating point, one row an example."""
    n = size(nested)
    return [tensor for tensor in tensors(nested) if tensor.is_floating_point() and tensor.ndim and len(tensor) == n]


def call(model, batch):
    """model(*tuple) or model(**dict) where its forward takes these arguments, otherwise model(batch)."""
    if isinstance(batch, Mapping) and _takes(model, (), batch):
        return model(**batch)
    if isinstance(batch, (tuple, list)) and _takes(model, batch, {}):
        return model(*batch)
    return model(batch)


def _takes(model, positional, named):
    try:
        inspect.signature(model.forward).bind(*positional, **named)
    except TypeError:
        return False
    return True
