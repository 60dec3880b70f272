"""The networks of the study, and the LightningModule that trains them."""
from models.cifar10 import Cifar10Fast
from models.mnist import MnistSupervised

__all__ = ["Cifar10Fast", "LitWrapper", "MnistSupervised", "build"]


def build(dataset, drop=0.0, model_args=None):
    """The network that the study uses for a data set, freshly initialised from torch's global random state."""
    networks = {"mnist": MnistSupervised, "mnist5k": MnistSupervised, "cifar10": Cifar10Fast}
    return networks[dataset](pdrop=drop, **(model_args or {}))


def __getattr__(name):
    # Lightning takes seconds to import, and evaluation does without it.
    if name == "LitWrapper":
        from models.lightning_wrapper import LitWrapper

        return LitWrapper
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
