"""Tables and graphs: recommenders, graph networks, experts, points."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.architectures.parts import Architecture, lively


class _WideAndDeep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.EmbeddingBag(50, 1, mode="sum")
        self.deep = nn.Embedding(50, 6)
        self.mlp = nn.Sequential(
            nn.Linear(5 * 6 + 4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1)
        )

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        deep = torch.cat([self.deep(ids).flatten(1), dense], 1)
        return torch.sigmoid(self.wide(ids) + self.mlp(deep))


def wide_and_deep() -> nn.Module:
    """A linear model beside a perceptron over embeddings (Cheng et al. 2016)."""
    return lively(_WideAndDeep())


class _Dlrm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bags = nn.ModuleList([nn.EmbeddingBag(20 + i, 8, mode="mean") for i in range(3)])
        self.bottom = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(8 + 6, 12), nn.ReLU(), nn.Linear(12, 1), nn.Sigmoid())

    def forward(self, dense: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
        x = self.bottom(dense)
        rows = [bag(ids) for bag, ids in zip(self.bags, (first, second, third), strict=True)]
        features = torch.stack([x, *rows], 1)
        products = features @ features.transpose(1, 2)
        row, column = torch.tril_indices(4, 4, -1)
        return self.top(torch.cat([x, products[:, row, column]], 1))


def dlrm() -> nn.Module:
    """Embedding bags and their pairwise products (Naumov et al. 2019)."""
    return _Dlrm()


class _DeepFm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.factors = nn.Embedding(40, 1), nn.Embedding(40, 5)
        self.mlp = nn.Sequential(nn.Linear(30, 8), nn.Dropout(), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, ids: Tensor) -> Tensor:
        v = self.factors(ids)
        pairs = (v.sum(1) ** 2 - (v**2).sum(1)).sum(1, keepdim=True) / 2
        return torch.sigmoid(self.linear(ids).sum(1) + pairs + self.mlp(v.flatten(1)))


def deep_fm() -> nn.Module:
    """Factorization machine with a perceptron (Guo et al. 2017)."""
    return _DeepFm()


class _TwoTower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(30, 8, padding_idx=0), nn.Embedding(60, 8)
        self.tower = nn.Sequential(nn.Linear(8, 12), nn.SELU(), nn.Linear(12, 6))

    def forward(self, user: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        a = F.normalize(self.tower(self.users(user)), dim=-1)
        b = F.normalize(self.tower(self.items(items)), dim=-1)
        return torch.topk(torch.einsum("nd,nkd->nk", a, b), 3)


def two_tower() -> nn.Module:
    """Retrieval by cosine: the three nearest items."""
    return _TwoTower()


class _Gcn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        a = (adjacency > 0).float() + torch.eye(adjacency.shape[0])
        scale = a.sum(1).rsqrt()
        a = scale[:, None] * a * scale[None]
        return (a @ self.second(torch.relu(a @ self.first(x)))).log_softmax(1)


def gcn() -> nn.Module:
    """Graph convolution with a normalised dense adjacency (Kipf and Welling 2016)."""
    return _Gcn()


class _Sage(nn.Module):
    """Messages gathered along edges [2, e] and added up at their targets."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.other = nn.Linear(6, 8), nn.Linear(6, 8)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges[0], edges[1]
        total = torch.zeros(x.shape[0], 6).index_add(0, target, x[source])
        ones = torch.ones(edges.shape[1])
        count = torch.zeros(x.shape[0]).scatter_add(0, target, ones).clamp(min=1)
        return F.normalize(torch.relu(self.own(x) + self.other(total / count[:, None])))


def graph_sage() -> nn.Module:
    """Means over neighbours by gather and scatter-add (Hamilton et al. 2017)."""
    return _Sage()


class _Gat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(6, 8, bias=False)
        self.left, self.right = nn.Linear(8, 1), nn.Linear(8, 1)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges[0], edges[1]
        y = self.project(x)
        scores = F.leaky_relu(self.left(y)[source] + self.right(y)[target], 0.2)[:, 0]
        top = torch.full((x.shape[0],), -1e9).scatter_reduce(0, target, scores, "amax")
        weights = torch.exp(scores - top[target])
        total = torch.zeros(x.shape[0]).scatter_add(0, target, weights)
        messages = y[source] * (weights / total[target].clamp(min=1e-9))[:, None]
        index = target[:, None].expand(-1, 8)
        return F.elu(torch.zeros_like(y).scatter_add(0, index, messages))


def gat() -> nn.Module:
    """Attention over the edges of each node (Velickovic et al. 2017)."""
    return _Gat()


class _PointNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.local = nn.Sequential(nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 5))

    def forward(self, points: Tensor) -> Tensor:
        y = self.local(points)
        near = torch.cdist(points.transpose(1, 2), points.transpose(1, 2)).topk(3, largest=False)
        index = near.indices.flatten(1)[:, None].expand(-1, 16, -1)
        around = y.gather(2, index).unflatten(2, (-1, 3)).amax(-1)
        return self.head(torch.cat([y.amax(2), around.mean(2)], 1))


def point_net() -> nn.Module:
    """Points with their three nearest neighbours (Qi et al. 2017)."""
    return lively(_PointNet())


class _Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(8, 4)
        self.up = nn.Parameter(torch.randn(4, 8, 16) * 0.3)
        self.down = nn.Parameter(torch.randn(4, 16, 8) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        best = self.gate(x).softmax(-1).topk(2, -1)
        weights = best.values / best.values.sum(-1, keepdim=True)
        hidden = F.silu(torch.einsum("td,tkdh->tkh", x, self.up[best.indices]))
        return (
            torch.einsum("tkh,tkhd->tkd", hidden, self.down[best.indices]) * weights[..., None]
        ).sum(1)


def mixture_of_experts() -> nn.Module:
    """The two best of four experts per token (Shazeer et al. 2017)."""
    return _Experts()


class _FtTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(5, 16)), nn.Parameter(torch.randn(5, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        filled = torch.where(torch.isnan(x), torch.zeros_like(x), x)
        return self.head(self.encoder(filled[..., None] * self.weight + self.bias)[:, -1])


def ft_transformer() -> nn.Module:
    """Columns of a table as tokens (Gorishniy et al. 2021)."""
    return lively(_FtTransformer())


ARCHITECTURES = (
    Architecture(factory=wide_and_deep, inputs=("ids:int64:3,5", "dense:3,4")),
    Architecture(
        factory=dlrm,
        inputs=("dense:2,5", "first:int64:2,3", "second:int64:2,1", "third:int64:2,4"),
        sample="dynamo",
    ),
    Architecture(factory=deep_fm, inputs=("ids:int64:3,6",)),
    Architecture(factory=two_tower, inputs=("user:int64:2", "items:int64:2,9")),
    Architecture(factory=gcn, inputs=("x:9,6", "adjacency:9,9")),
    Architecture(factory=graph_sage, inputs=("x:9,6", "edges:int64:2,21")),
    Architecture(factory=gat, inputs=("x:9,6", "edges:int64:2,21")),
    Architecture(factory=point_net, inputs=("2,3,19",)),
    Architecture(factory=mixture_of_experts, inputs=("7,8",)),
    Architecture(factory=ft_transformer, inputs=("2,5",)),
)
