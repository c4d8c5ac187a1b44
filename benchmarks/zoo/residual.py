"""Networks of residual blocks: ResNets and MobileNets."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.zoo.layers import CLASSES, SEED, ConvNorm, linear


class BasicBlock(nn.Module):
    """The two-convolution block of ResNet-18 (He et al. 2016, figure 5 left)."""

    expansion = 1

    def __init__(self, inner: int, width: int, stride: int):
        super().__init__()
        self.branch = nn.Sequential(
            ConvNorm((inner, width), 3, stride=stride, act=nn.ReLU),
            ConvNorm((width, width), 3, scale=0.3),
        )
        self.shortcut = projection(inner, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.branch(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    """The three-convolution block of ResNet-50, with the stride on the 3x3 (v1.5)."""

    expansion = 4

    def __init__(self, inner: int, width: int, stride: int):
        super().__init__()
        outer = width * self.expansion
        self.branch = nn.Sequential(
            ConvNorm((inner, width), act=nn.ReLU),
            ConvNorm((width, width), 3, stride=stride, act=nn.ReLU),
            ConvNorm((width, outer), scale=0.3),
        )
        self.shortcut = projection(inner, outer, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.branch(x) + self.shortcut(x))


def projection(inner: int, outer: int, stride: int) -> nn.Module:
    """Return the shortcut: the identity, or a 1x1 convolution where the shape changes."""
    if stride == 1 and inner == outer:
        return nn.Identity()
    return ConvNorm((inner, outer), stride=stride)


def resnet(block: type[BasicBlock | Bottleneck], depths: tuple[int, ...]) -> nn.Sequential:
    """Return a ResNet for 224x224 images; `depths` is the number of blocks in each stage."""
    layers: list[nn.Module] = [
        ConvNorm((3, 64), 7, stride=2, act=nn.ReLU, rectified=False),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]
    channels = 64
    for stage, depth in enumerate(depths):
        for index in range(depth):
            stride = 2 if stage and not index else 1
            layers.append(block(channels, 64 << stage, stride))
            channels = (64 << stage) * block.expansion
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(channels, CLASSES)]
    return nn.Sequential(*layers, *head)


class SqueezeExcite(nn.Module):
    """Channel attention with a hard sigmoid (MobileNetV3, section 5.3)."""

    def __init__(self, channels: int):
        super().__init__()
        squeezed = divisible_by_8(channels / 4)
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.excite = nn.Conv2d(squeezed, channels, 1)
        nn.init.normal_(self.excite.bias, mean=2.0, std=0.5)  # gates mostly open: 5/6

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True)
        gate = self.excite(torch.relu(self.squeeze(pooled)))
        return x * nn.functional.hardsigmoid(gate)


def divisible_by_8(channels: float) -> int:
    """Round to a multiple of 8, at least 8, never down by more than 10 %."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class InvertedRow(NamedTuple):
    """One inverted residual block, as in table 2 of the MobileNetV3 paper."""

    kernel: int
    expanded: int
    outer: int
    squeeze: bool
    act: type[nn.Module]
    stride: int


class InvertedResidual(nn.Module):
    """Expand, depthwise, project; a shortcut where the shape stays (MobileNetV2, section 3.3)."""

    def __init__(self, inner: int, row: InvertedRow):
        super().__init__()
        kernel, wide, outer, squeeze, act, stride = row
        self.residual = stride == 1 and inner == outer
        layers: list[nn.Module] = []
        if wide != inner:
            layers.append(ConvNorm((inner, wide), act=act, rectified=False))
        layers.append(ConvNorm((wide, wide), kernel, stride=stride, groups=wide, act=act))
        if squeeze:
            layers.append(SqueezeExcite(wide))
        layers.append(ConvNorm((wide, outer), scale=0.5 if self.residual else 1.0))
        self.branch = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) if self.residual else self.branch(x)


def resnet18() -> nn.Module:
    """ResNet-18 (He et al. 2016): float32 [1, 3, 224, 224] to [1, 1000]."""
    torch.manual_seed(SEED)
    return resnet(BasicBlock, (2, 2, 2, 2)).eval()


def resnet50() -> nn.Module:
    """ResNet-50 v1.5: float32 [1, 3, 224, 224] to [1, 1000]."""
    torch.manual_seed(SEED)
    return resnet(Bottleneck, (3, 4, 6, 3)).eval()


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 1.0 (Sandler et al. 2018, table 2): float32 [1, 3, 224, 224] to [1, 1000]."""
    torch.manual_seed(SEED)
    layers: list[nn.Module] = [ConvNorm((3, 32), 3, stride=2, act=nn.ReLU6, rectified=False)]
    channels = 32
    for expansion, outer, repeats, first_stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for index in range(repeats):
            stride = 1 if index else first_stride
            row = InvertedRow(3, expansion * channels, outer, False, nn.ReLU6, stride)
            layers.append(InvertedResidual(channels, row))
            channels = outer
    layers.append(ConvNorm((channels, 1280), act=nn.ReLU6, rectified=False))
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(1280, CLASSES)]
    return nn.Sequential(*layers, *head).eval()


def mobilenet_v3_small() -> nn.Module:
    """MobileNetV3-Small 1.0 (Howard et al. 2019, table 2): [1, 3, 224, 224] to [1, 1000]."""
    torch.manual_seed(SEED)
    relu, swish = nn.ReLU, nn.Hardswish
    layers: list[nn.Module] = [ConvNorm((3, 16), 3, stride=2, act=swish, rectified=False)]
    channels = 16
    for row in (
        InvertedRow(3, 16, 16, True, relu, 2),
        InvertedRow(3, 72, 24, False, relu, 2),
        InvertedRow(3, 88, 24, False, relu, 1),
        InvertedRow(5, 96, 40, True, swish, 2),
        InvertedRow(5, 240, 40, True, swish, 1),
        InvertedRow(5, 240, 40, True, swish, 1),
        InvertedRow(5, 120, 48, True, swish, 1),
        InvertedRow(5, 144, 48, True, swish, 1),
        InvertedRow(5, 288, 96, True, swish, 2),
        InvertedRow(5, 576, 96, True, swish, 1),
        InvertedRow(5, 576, 96, True, swish, 1),
    ):
        layers.append(InvertedResidual(channels, row))
        channels = row.outer
    layers.append(ConvNorm((channels, 576), act=swish, rectified=False))
    head = [linear(576, 1024, rectified=True), nn.Hardswish(), linear(1024, CLASSES)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3  # the paper's reference code, unlike torch's 1e-5
    return model.eval()
