"""Sizes of a network's weights: parameters with two dimensions or more, so no biases and no batch-norm scales.

Each function takes a module and returns a scalar tensor; `by_layer` applies one to every such parameter on its own.
"""

from collections.abc import Callable

import torch
from torch import nn


def weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """{name: parameter} of every parameter with ndim ≥ 2."""
    return {name: p for name, p in model.named_parameters() if p.ndim >= 2}


def l1_norm(model: nn.Module) -> torch.Tensor:
    """Σ |W|."""
    return sum(p.abs().sum() for p in weights(model).values())


def l2_norm(model: nn.Module) -> torch.Tensor:
    """Σ W² (the squared Frobenius norm, as it enters the loss)."""
    return sum(p.square().sum() for p in weights(model).values())


def nuc_norm(model: nn.Module) -> torch.Tensor:
    """Σ of the nuclear norms (sums of singular values) of the matrices; convolutions (4-d) are left out."""
    return sum(torch.linalg.svdvals(p).sum() for p in weights(model).values() if p.ndim == 2)


def sparsity(model: nn.Module, eps: float = 1e-3) -> torch.Tensor:
    """Fraction of weights with |w| < eps."""
    small = sum((p.abs() < eps).sum() for p in weights(model).values())
    return small / sum(p.numel() for p in weights(model).values())


def by_layer(norm: Callable[..., torch.Tensor], model: nn.Module, **options) -> dict[str, torch.Tensor]:
    """{parameter name: norm of that parameter alone}."""
    return {name: norm(torch.nn.ParameterList([p]), **options) for name, p in weights(model).items()}
