"""Models to measure and test with: plain torch modules, built from scratch, no downloads.

Each factory takes no argument and returns a module in eval mode. The architectures and parameter
counts are those of the papers; the weights are random, from a fixed seed. They are drawn so that
activations keep a sane range through the depth, and the statistics and affine parameters of every
normalisation layer differ from their neutral values, so that folding one wrongly shows.

`MODELS` lists them. A row is what `mlc export` needs, for example::

    mlc export benchmarks.zoo:resnet18 --input input:1,3,224,224

Dropout is left out: it does nothing at inference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

SEED = 0
CLASSES = 1000


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model of the zoo: `factory` and `inputs` are arguments of `mlc export`."""

    factory: str
    inputs: tuple[str, ...]
    description: str


# ---------------------------------------------------------------------------------------------
# Convolutional networks
# ---------------------------------------------------------------------------------------------


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


# ---------------------------------------------------------------------------------------------
# Transformers
# ---------------------------------------------------------------------------------------------


def layer_norm(width: int, eps: float) -> nn.LayerNorm:
    """Return a layer normalisation with weights and biases off their neutral values, slightly."""
    norm = nn.LayerNorm(width, eps=eps)
    nn.init.uniform_(norm.weight, 0.8, 1.2)
    nn.init.normal_(norm.bias, std=0.1)
    return norm


class Attention(nn.Module):
    """Multi-head self-attention, [batch, tokens, width] to the same shape.

    `fused` projects to queries, keys and values with one matrix (ViT, `nn.Transformer`) instead
    of three (BERT). `bias`, broadcast to [batch, heads, tokens, tokens], is added to the scores.
    """

    def __init__(self, width: int, heads: int, *, fused: bool):
        super().__init__()
        self.heads = heads
        self.scale = math.sqrt(width // heads)
        sizes = [3 * width] if fused else [width] * 3
        self.project = nn.ModuleList(linear(width, size) for size in sizes)
        self.out = linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        batch, tokens, width = x.shape
        parts = [layer(x) for layer in self.project]
        if len(parts) == 1:
            parts = list(parts[0].chunk(3, dim=-1))
        split = (batch, tokens, self.heads, width // self.heads)
        query, key, value = (part.reshape(split).transpose(1, 2) for part in parts)
        scores = query @ key.transpose(2, 3) / self.scale
        if bias is not None:
            scores = scores + bias
        mixed = scores.softmax(-1) @ value
        return self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))


class EncoderLayer(nn.Module):
    """Attention and feed-forward, each with a shortcut: [batch, tokens, width], same out.

    `norm_first` normalises the branches' inputs (ViT) instead of the sums (Vaswani et al. 2017).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        act: type[nn.Module],
        fused: bool = True,
        norm_first: bool = False,
        eps: float = 1e-5,
    ):
        super().__init__()
        self.norm_first = norm_first
        self.attention = Attention(width, heads, fused=fused)
        self.feed = nn.Sequential(
            linear(width, 4 * width), act(), linear(4 * width, width, rectified=True)
        )
        self.norms = nn.ModuleList(layer_norm(width, eps) for _ in range(2))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        first, second = self.norms
        if self.norm_first:
            x = x + self.attention(first(x), bias)
            return x + self.feed(second(x))
        x = first(x + self.attention(x, bias))
        return second(x + self.feed(x))


class VisionTransformer(nn.Module):
    """ViT with a class token: float32 [batch, 3, 224, 224] to [batch, 1000]."""

    def __init__(self, width: int, depth: int, heads: int, patch: int = 16):
        super().__init__()
        tokens = (224 // patch) ** 2 + 1
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        nn.init.normal_(self.patches.weight, std=1 / math.sqrt(3 * patch**2))
        self.class_token = nn.Parameter(torch.randn(1, 1, width) * 0.5)
        self.positions = nn.Parameter(torch.randn(1, tokens, width) * 0.5)
        self.layers = nn.ModuleList(
            EncoderLayer(width, heads, act=nn.GELU, norm_first=True, eps=1e-6) for _ in range(depth)
        )
        self.norm = layer_norm(width, 1e-6)
        self.head = linear(width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        patches = self.patches(image).flatten(2).transpose(1, 2)
        first = self.class_token.expand(patches.shape[0], -1, -1)
        x = torch.cat([first, patches], dim=1) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)[:, 0])


class BertEncoder(nn.Module):
    """BERT without its pooler: ids and mask, int64 [batch, tokens], to [batch, tokens, width].

    The mask is 1 at tokens to attend to and 0 at padding; all tokens are of the first segment.
    """

    def __init__(self, width: int, depth: int, heads: int, vocabulary: int = 30_522):
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(512, width)
        self.segments = nn.Embedding(2, width)
        self.norm = layer_norm(width, 1e-12)
        self.layers = nn.ModuleList(
            EncoderLayer(width, heads, act=nn.GELU, fused=False, eps=1e-12) for _ in range(depth)
        )

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        places = self.positions.weight[: ids.shape[1]]
        x = self.norm(self.words(ids) + places + self.segments.weight[0])
        bias = (1.0 - mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        for layer in self.layers:
            x = layer(x, bias)
        return x


def vit_tiny() -> nn.Module:
    """DeiT-tiny, patch 16 (Touvron et al. 2021, table 1): [1, 3, 224, 224] to [1, 1000]."""
    torch.manual_seed(SEED)
    return VisionTransformer(width=192, depth=12, heads=3).eval()


def bert_encoder() -> nn.Module:
    """BERT-mini (Turc et al. 2019): ids and mask int64 [1, 128] to float32 [1, 128, 256]."""
    torch.manual_seed(SEED)
    return BertEncoder(width=256, depth=4, heads=4).eval()


def transformer_encoder() -> nn.Module:
    """Four post-norm layers (Vaswani et al. 2017, section 3.1): float32 [1, 128, 512], same out."""
    torch.manual_seed(SEED)
    return nn.Sequential(*(EncoderLayer(512, 8, act=nn.ReLU) for _ in range(4))).eval()


# ---------------------------------------------------------------------------------------------
# Recurrent and dense
# ---------------------------------------------------------------------------------------------


class LstmClassifier(nn.Module):
    """Embedding, one LSTM layer, linear on the last state: int64 [batch, tokens] to [batch, 5]."""

    def __init__(self, vocabulary: int = 10_000, width: int = 64, classes: int = 5):
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.head = linear(width, classes)

    def forward(self, ids: Tensor) -> Tensor:
        states, _ = self.lstm(self.words(ids))
        return self.head(states[:, -1])


def lstm_classifier() -> nn.Module:
    """LSTM text classifier: token ids int64 [1, 32] to float32 [1, 5]."""
    torch.manual_seed(SEED)
    return LstmClassifier().eval()


def mlp() -> nn.Module:
    """Wide network for tabular data, normalised between layers: float32 [1, 512] to [1, 10]."""
    torch.manual_seed(SEED)
    layers: list[nn.Module] = []
    widths = (512, 2048, 2048, 1024)
    for index, (inner, outer) in enumerate(pairwise(widths)):
        norm = nn.BatchNorm1d(outer)
        randomise_batch_norm(norm)
        layers += [linear(inner, outer, rectified=index > 0), norm, nn.ReLU()]
    return nn.Sequential(*layers, linear(widths[-1], 10, rectified=True)).eval()


_IMAGE = ("input:1,3,224,224",)
_MODELS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("resnet18", _IMAGE, "ResNet-18: 3x3 convolutions with shortcuts, 11.7 M parameters"),
    ("resnet50", _IMAGE, "ResNet-50 v1.5: bottleneck blocks, 25.6 M parameters"),
    ("mobilenet_v2", _IMAGE, "MobileNetV2: depthwise convolutions, ReLU6, 3.5 M parameters"),
    ("mobilenet_v3_small", _IMAGE, "MobileNetV3-Small: squeeze-excite, 2.5 M parameters"),
    ("vit_tiny", _IMAGE, "DeiT-tiny: pre-norm vision transformer, 5.7 M parameters"),
    (
        "bert_encoder",
        ("ids:int64:1,128", "mask:int64:1,128"),
        "BERT-mini without pooler: embeddings, masked attention, 11.1 M parameters",
    ),
    (
        "transformer_encoder",
        ("input:1,128,512",),
        "four post-norm transformer layers of width 512, 12.6 M parameters",
    ),
    (
        "lstm_classifier",
        ("ids:int64:1,32",),
        "embedding, LSTM of 64 and a linear head, 0.7 M parameters",
    ),
    ("mlp", ("input:1,512",), "wide dense layers for tabular data, 7.4 M parameters"),
)

MODELS: dict[str, ModelSpec] = {
    name: ModelSpec(factory=f"benchmarks.zoo:{name}", inputs=inputs, description=description)
    for name, inputs, description in _MODELS
}
