"""Which network the study uses for which data set."""

from models.cifar10 import Cifar10Fast
from models.mnist import MnistSupervised


def build(dataset, drop=0.0, model_args=None):
    """The network that the study uses for a data set, freshly initialised from torch's global random state."""
    networks = {"mnist": MnistSupervised, "mnist5k": MnistSupervised, "cifar10": Cifar10Fast}
    return networks[dataset](pdrop=drop, **(model_args or {}))
