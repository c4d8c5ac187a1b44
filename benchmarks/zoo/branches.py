"""Networks that concatenate branches or layers: GoogLeNet, SqueezeNet, DenseNet."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from benchmarks.zoo.layers import CLASSES, SEED, ConvNorm, linear, randomise_batch_norm


class Inception(nn.Module):
    """Four branches side by side (Szegedy et al. 2015, figure 2b), each convolution normalised.

    `widths` is a row of the paper's table 1: 1x1; 3x3 reduce, 3x3; 5x5 reduce, 5x5; pool proj.
    """

    def __init__(self, inner: int, widths: tuple[int, ...]):
        super().__init__()
        one, reduce3, three, reduce5, five, pooled = widths

        def conv(inner: int, outer: int, kernel: int = 1) -> nn.Module:
            return ConvNorm((inner, outer), kernel, act=nn.ReLU)

        pool = nn.MaxPool2d(3, stride=1, padding=1)
        self.branches = nn.ModuleList(
            [
                conv(inner, one),
                nn.Sequential(conv(inner, reduce3), conv(reduce3, three, 3)),
                nn.Sequential(conv(inner, reduce5), conv(reduce5, five, 5)),
                nn.Sequential(pool, conv(inner, pooled)),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class ConvReLU(nn.Sequential):
    """Convolution with bias, then ReLU; weights keep the second moment of a rectified input."""

    def __init__(self, inner: int, outer: int, kernel: int = 1, stride: int = 1, padding: int = 0):
        conv = nn.Conv2d(inner, outer, kernel, stride, padding)
        nn.init.normal_(conv.weight, std=math.sqrt(2.0 / (inner * kernel**2)))
        nn.init.normal_(conv.bias, std=0.05)
        super().__init__(conv, nn.ReLU())


class Fire(nn.Module):
    """Squeeze with 1x1, expand with 1x1 and 3x3 side by side (SqueezeNet, section 3.2)."""

    def __init__(self, inner: int, squeezed: int, expanded: int):
        super().__init__()
        self.squeeze = ConvReLU(inner, squeezed)
        self.one = ConvReLU(squeezed, expanded)
        self.three = ConvReLU(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x)
        return torch.cat([self.one(x), self.three(x)], dim=1)


class NormConv(nn.Sequential):
    """Batch normalisation, ReLU, convolution without bias (DenseNet, section 3)."""

    def __init__(self, inner: int, outer: int, kernel: int = 1):
        norm = nn.BatchNorm2d(inner)
        randomise_batch_norm(norm)
        conv = nn.Conv2d(inner, outer, kernel, padding=kernel // 2, bias=False)
        nn.init.normal_(conv.weight, std=math.sqrt(2.0 / (inner * kernel**2)))
        super().__init__(norm, nn.ReLU(), conv)


class DenseLayer(nn.Sequential):
    """1x1 to four times `growth` channels, 3x3 to `growth`; appended to what came in."""

    def __init__(self, inner: int, growth: int):
        super().__init__(NormConv(inner, 4 * growth), NormConv(4 * growth, growth, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, super().forward(x)], dim=1)


def pool() -> nn.Module:
    """Return a 3x3 maximum with stride 2, rounded up as in Caffe, where these networks come from."""
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)


def inception_v1() -> nn.Module:
    """GoogLeNet (Szegedy et al. 2015, table 1): float32 [1, 3, 224, 224] to [1, 1000].

    Batch normalisation in the place of biases and of local response normalisation, as everyone
    has trained it since; no auxiliary classifiers.
    """
    torch.manual_seed(SEED)

    layers: list[nn.Module] = [
        ConvNorm((3, 64), 7, stride=2, act=nn.ReLU, rectified=False),
        pool(),
        ConvNorm((64, 64), act=nn.ReLU),
        ConvNorm((64, 192), 3, act=nn.ReLU),
        pool(),
    ]
    channels = 192
    for widths in (
        (64, 96, 128, 16, 32, 32),
        (128, 128, 192, 32, 96, 64),
        (),
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
        (),
        (256, 160, 320, 32, 128, 128),
        (384, 192, 384, 48, 128, 128),
    ):
        if not widths:
            layers.append(pool())
            continue
        layers.append(Inception(channels, widths))
        channels = sum(widths[k] for k in (0, 2, 4, 5))
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(channels, CLASSES, rectified=True)]
    return nn.Sequential(*layers, *head).eval()


def squeezenet() -> nn.Module:
    """SqueezeNet 1.1 (Iandola et al. 2016, and its repository): [1, 3, 224, 224] to [1, 1000]."""
    torch.manual_seed(SEED)

    return nn.Sequential(
        ConvReLU(3, 64, 3, stride=2),
        pool(),
        Fire(64, 16, 64),
        Fire(128, 16, 64),
        pool(),
        Fire(128, 32, 128),
        Fire(256, 32, 128),
        pool(),
        Fire(256, 48, 192),
        Fire(384, 48, 192),
        Fire(384, 64, 256),
        Fire(512, 64, 256),
        ConvReLU(512, CLASSES),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ).eval()


def densenet121() -> nn.Module:
    """DenseNet-121, growth 32 (Huang et al. 2017, table 1): [1, 3, 224, 224] to [1, 1000]."""
    torch.manual_seed(SEED)
    growth, channels = 32, 64
    layers: list[nn.Module] = [
        ConvNorm((3, channels), 7, stride=2, act=nn.ReLU, rectified=False),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]
    for stage, depth in enumerate((6, 12, 24, 16)):
        if stage:
            layers += [NormConv(channels, channels // 2), nn.AvgPool2d(2)]
            channels //= 2
        for _ in range(depth):
            layers.append(DenseLayer(channels, growth))
            channels += growth
    norm = nn.BatchNorm2d(channels)
    randomise_batch_norm(norm)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(channels, CLASSES, rectified=True)]
    return nn.Sequential(*layers, norm, nn.ReLU(), *head).eval()
