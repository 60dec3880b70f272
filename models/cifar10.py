"""A small pre-activation residual network for CIFAR-10, and for other images."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F


class PreActBlock(nn.Module):
    """Residual block: z = ReLU(BN(x)); out = shortcut(z) + conv3x3(ReLU(BN(conv3x3(z, stride)))).

    The shortcut is a strided 1×1 convolution where the shape changes, and otherwise the identity, applied to z.
    """

    def __init__(self, n_in: int, n_out: int, stride: int = 1):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(n_in)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.proj = nn.Conv2d(n_in, n_out, 1, stride=stride, bias=False) if stride != 1 or n_in != n_out else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = torch.relu(self.bn1(x))
        shortcut = z if self.proj is None else self.proj(z)
        return shortcut + self.conv2(torch.relu(self.bn2(self.conv1(z))))


class Cifar10Fast(nn.Module):
    """Stem, four stages of two pre-activation blocks, global pooling, linear readout.

    Args:
        pdrop: probability that dropout silences a channel (h1–h5; the stem h0 has none), in [0, 1).
        channels: width of each stage; the stem has the first.
        concat_pool: pool by maximum and by average, concatenated; otherwise by maximum only.
        input_shape: (C, H, W) of an image. The weights depend on C only.
        num_classes: how many logits there are.
    """

    def __init__(
        self,
        pdrop: float = 0.0,
        channels: Sequence[int] = (64, 128, 256, 256),
        concat_pool: bool = True,
        input_shape: Sequence[int] = (3, 32, 32),
        num_classes: int = 10,
    ):
        super().__init__()
        if len(channels) != 4 or min(*channels, *input_shape, num_classes) < 1:
            raise ValueError(
                f"channels {channels}, input {input_shape}, classes {num_classes}: expected four widths above 0"
            )
        self.conv1 = nn.Conv2d(input_shape[0], channels[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        n_in = channels[0]
        for i, (n_out, stride) in enumerate(zip(channels, (1, 2, 2, 2), strict=True), start=1):
            stage = nn.Sequential(PreActBlock(n_in, n_out, stride), PreActBlock(n_out, n_out))
            setattr(self, f"layer{i}", stage)
            n_in = n_out
        self.drop = nn.Dropout2d(pdrop)
        self.concat_pool = concat_pool
        self.proj = nn.Linear((1 + concat_pool) * n_in, num_classes)

    def forward(self, x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Maps images (B, *input_shape) to (hidden, logits): [h0, …, h5], each (B, C, H, W), and (B, num_classes).

        Shapes are given for images of 32 × 32.
        """
        hidden = self._hidden_from(0, torch.relu(self.bn1(self.conv1(x))))
        return hidden, self.proj(hidden[-1].flatten(1))

    def forward_from(self, layer: int, h: torch.Tensor) -> torch.Tensor:
        """Logits (B, num_classes), given the activations (B, C, H, W) of a hidden layer."""
        return self.proj(self._hidden_from(layer, h)[-1].flatten(1))

    def _hidden_from(self, layer, h):
        """The hidden layers from one on, whose activations are given."""
        hidden = [h]  # h0: (B, c0, 32, 32)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4)[layer:]:
            hidden.append(
                self.drop(stage(hidden[-1]))
            )  # (B, c0, 32, 32), (B, c1, 16, 16), (B, c2, 8, 8), (B, c3, 4, 4)
        if layer < 5:
            last, size = hidden[-1], hidden[-1].shape[-2:]
            pooled = F.max_pool2d(last, size)
            if self.concat_pool:
                pooled = torch.cat([pooled, F.avg_pool2d(last, size)], dim=1)
            hidden.append(self.drop(pooled))  # h5: (B, 2 c3, 1, 1)
        return hidden
