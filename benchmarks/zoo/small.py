"""A recurrent network for text, and dense layers for tables."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from benchmarks.zoo.layers import SEED, linear, randomise_batch_norm


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
