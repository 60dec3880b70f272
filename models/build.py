"""Which network learns which data set."""

import inspect

from torch import nn

from models.cifar10 import Cifar10Fast
from models.mnist import MnistSupervised
from study.datasets import DATASETS, network_for

NETWORKS = {network.__name__: network for network in (MnistSupervised, Cifar10Fast)}


def build(dataset: str, drop: float = 0.0, model_args: dict | None = None) -> nn.Module:
    """The network of a data set, freshly initialised from torch's global random state.

    Args:
        dataset: a name in the table `study.datasets.DATASETS`, which says network, input shape and classes; or any
            other, and then model_args hold `input_shape` and `num_classes` (see `study.datasets.model_args`).
        drop: dropout probability.
        model_args: keyword arguments of the network.

    Raises: ValueError if an argument is missing, unknown or impossible.
    """
    args = dict(model_args or {})
    if dataset in DATASETS:
        row = DATASETS[dataset]
        args = {"input_shape": row.shape, "num_classes": row.classes} | args
    elif not args.keys() >= {"input_shape", "num_classes"}:
        raise ValueError(f"unknown dataset {dataset!r}, and model_args do not say input_shape and num_classes")
    if not 0 <= drop < 1:
        raise ValueError(f"drop {drop}: expected a probability in [0, 1)")
    try:
        network = NETWORKS[row.network if dataset in DATASETS else network_for(args["input_shape"])]
        known = inspect.signature(network).parameters.keys() - {"pdrop"}
        if unknown := sorted(args.keys() - known):
            raise ValueError(f"{', '.join(unknown)} unknown: {network.__name__} takes {', '.join(sorted(known))}")
        return network(pdrop=drop, **args)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # torch has its own for numbers too large
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(f"model_args {model_args}: {reason}") from None
