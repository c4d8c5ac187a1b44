"""Detectors: pyramids, heads, and the decoding of boxes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.architectures.parts import Architecture, conv_norm, lively


class _Pyramid(nn.Module):
    """Three levels of features, merged from the top down (Lin et al. 2017)."""

    def __init__(self, width: int):
        super().__init__()
        sizes = (8, 12, 16)
        self.stages = nn.ModuleList(
            [conv_norm(a, b, stride=2) for a, b in zip((3, *sizes), sizes, strict=False)]
        )
        self.lateral = nn.ModuleList([nn.Conv2d(size, width, 1) for size in sizes])
        self.smooth = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in sizes])

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        top = self.lateral[-1](levels[-1])
        merged = [top]
        for lateral, level in zip(self.lateral[-2::-1], levels[-2::-1], strict=True):
            top = lateral(level) + F.interpolate(top, size=level.shape[-2:], mode="nearest")
            merged.insert(0, top)
        return [smooth(level) for smooth, level in zip(self.smooth, merged, strict=True)]


class _Ssd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pyramid = _Pyramid(12)
        self.classes, self.boxes = nn.Conv2d(12, 3 * 5, 3, padding=1), nn.Conv2d(12, 12, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        levels = self.pyramid(x)
        flat = [self.classes(y).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 5) for y in levels]
        moves = [self.boxes(y).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 4) for y in levels]
        anchors = torch.cat([_anchors(y.shape[-2], y.shape[-1]) for y in levels])
        move = torch.cat(moves, 1)
        center = anchors[:, :2] + move[..., :2] * 0.1 * anchors[:, 2:]
        size = anchors[:, 2:] * torch.exp(move[..., 2:] * 0.2)
        corners = torch.cat([center - size / 2, center + size / 2], -1).clamp(0, 1)
        return corners, torch.cat(flat, 1).softmax(-1)


def _anchors(rows: int, columns: int) -> Tensor:
    y, x = torch.meshgrid(
        (torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij"
    )
    places = torch.stack([x, y], -1).reshape(-1, 1, 2).expand(-1, 3, 2)
    sizes = torch.tensor([[1.0, 1.0], [1.5, 0.7], [0.7, 1.5]]) / rows
    return torch.cat([places, sizes.expand(rows * columns, 3, 2)], -1).reshape(-1, 4)


def ssd() -> nn.Module:
    """Feature pyramid, anchors, decoded boxes and class scores (Liu et al. 2016)."""
    return lively(_Ssd())


class _Yolo(nn.Module):
    """Spatial pyramid pooling, boxes as distributions over 8 distances (Li et al. 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            conv_norm(3, 8, act=nn.SiLU, stride=2), conv_norm(8, 16, act=nn.SiLU, stride=2)
        )
        self.mix = conv_norm(64, 16, 1, nn.SiLU)
        self.head = nn.Conv2d(16, 4 * 8 + 6, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pools = [self.stem(x)]
        for _ in range(3):
            pools.append(F.max_pool2d(pools[-1], 5, 1, 2))
        y = self.head(self.mix(torch.cat(pools, 1)))
        n, _, h, w = y.shape
        sides, classes = y.flatten(2).split([32, 6], 1)
        spread = sides.view(n, 4, 8, h * w).softmax(2)
        distance = (spread * torch.arange(8.0).view(1, 1, 8, 1)).sum(2)
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        cell = torch.stack([columns.flatten(), rows.flatten()]) + 0.5
        low, high = cell - distance[:, :2], cell + distance[:, 2:]
        boxes = torch.cat([(low + high) / 2, high - low], 1) * 4
        scores, kinds = classes.sigmoid().max(1)
        best = scores.topk(5, 1)
        chosen = boxes.gather(2, best.indices[:, None].expand(-1, 4, -1))
        return chosen, best.values, kinds.gather(1, best.indices)


def yolo() -> nn.Module:
    """Head without anchors; the five best boxes by score."""
    return lively(_Yolo())


class _RetinaHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pyramid = _Pyramid(16)
        self.tower = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 10, 1)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.tower(level).sigmoid() for level in self.pyramid(x)]


def retinanet() -> nn.Module:
    """One head with group normalisation over all levels (Lin et al. 2017)."""
    return lively(_RetinaHead())


class _Detr(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_norm(3, 16, stride=4), nn.Conv2d(16, 24, 1))
        self.transformer = nn.Transformer(24, 4, 1, 1, 48, batch_first=True)
        self.queries = nn.Parameter(torch.randn(6, 24))
        self.rows, self.columns = (nn.Parameter(torch.rand(12, 12)) for _ in range(2))
        self.classes, self.boxes = nn.Linear(24, 5), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.stem(x)
        n, _, h, w = y.shape
        across = self.columns[:w].unsqueeze(0).repeat(h, 1, 1)
        along = self.rows[:h].unsqueeze(1).repeat(1, w, 1)
        position = torch.cat([across, along], -1).flatten(0, 1)
        queries = self.queries.unsqueeze(0).expand(n, -1, -1)
        out = self.transformer(position + y.flatten(2).transpose(1, 2), queries)
        return self.classes(out), self.boxes(out).sigmoid()


def detr() -> nn.Module:
    """Object queries through torch's own transformer (Carion et al. 2020)."""
    return lively(_Detr())


ARCHITECTURES = (
    Architecture(factory=ssd, inputs=("1,3,40,56",)),
    Architecture(factory=yolo, inputs=("1,3,32,48",), sample="dynamo"),
    Architecture(factory=retinanet, inputs=("1,3,33,47",)),
    Architecture(factory=detr, inputs=("1,3,32,40",)),
)
