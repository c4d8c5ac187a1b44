"""Transformer encoders, of images, of tokens and of plain vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from benchmarks.zoo.layers import CLASSES, SEED, layer_norm, linear


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


def encoder_768() -> nn.Module:
    """Half of BERT-base's layers (Devlin et al. 2019, section 3): float32 [1, 128, 768], same out."""
    torch.manual_seed(SEED)
    layers = (EncoderLayer(768, 12, act=nn.GELU, fused=False, eps=1e-12) for _ in range(6))
    return nn.Sequential(*layers).eval()
