"""Layers that several families share, their weights random but sane."""

from __future__ import annotations

import math

from torch import nn

SEED = 0
CLASSES = 1000


class ConvNorm(nn.Sequential):
    """Convolution without bias, batch normalisation, optional activation: NCHW to NCHW.

    Weights keep the variance of the input (He et al. 2015, section 2.2): `rectified` says that
    the input went through a ReLU, which halves its second moment. `scale` is the mean of the
    normalisation's weight; branches that are added to a shortcut take less than 1.
    """

    def __init__(
        self,
        channels: tuple[int, int],
        kernel: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        act: type[nn.Module] | None = None,
        rectified: bool = True,
        scale: float = 1.0,
    ):
        inner, outer = channels
        conv = nn.Conv2d(
            inner, outer, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        )
        fan_in = inner // groups * kernel**2
        nn.init.normal_(conv.weight, std=math.sqrt((2.0 if rectified else 1.0) / fan_in))
        norm = nn.BatchNorm2d(outer)
        randomise_batch_norm(norm, scale)
        super().__init__(conv, norm, *([act()] if act else []))


def randomise_batch_norm(norm: nn.BatchNorm1d | nn.BatchNorm2d, scale: float = 1.0) -> None:
    """Move statistics and affine parameters off their neutral values (0 and 1), slightly."""
    nn.init.normal_(norm.running_mean, std=0.1)
    nn.init.uniform_(norm.running_var, 0.8, 1.25)
    nn.init.uniform_(norm.weight, 0.8 * scale, 1.2 * scale)
    nn.init.normal_(norm.bias, std=0.1)


def linear(inner: int, outer: int, *, rectified: bool = False) -> nn.Linear:
    """Return a linear layer that keeps the variance of its input, with a small random bias."""
    layer = nn.Linear(inner, outer)
    nn.init.normal_(layer.weight, std=math.sqrt((2.0 if rectified else 1.0) / inner))
    nn.init.normal_(layer.bias, std=0.05)
    return layer


def layer_norm(width: int, eps: float) -> nn.LayerNorm:
    """Return a layer normalisation with weights and biases off their neutral values, slightly."""
    norm = nn.LayerNorm(width, eps=eps)
    nn.init.uniform_(norm.weight, 0.8, 1.2)
    nn.init.normal_(norm.bias, std=0.1)
    return norm
