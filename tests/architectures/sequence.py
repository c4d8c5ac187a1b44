"""Signals and series: recurrent, convolutional over time, speech, state spaces."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.architectures.parts import Architecture, lively


class _Tagger(nn.Module):
    def __init__(self, layer: type[nn.RNNBase]):
        super().__init__()
        self.table = nn.Embedding(30, 12)
        self.layers = layer(12, 10, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(20, 7)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layers(self.table(ids))[0]).log_softmax(-1)


def lstm_tagger() -> nn.Module:
    """Two bidirectional LSTM layers over embeddings."""
    return _Tagger(nn.LSTM)


def gru_tagger() -> nn.Module:
    """Two bidirectional GRU layers over embeddings."""
    return _Tagger(nn.GRU)


class _LstmStep(nn.Module):
    """One step of a decoder with additive attention (Bahdanau et al. 2014)."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(8 + 12, 16)
        self.query, self.key, self.score = nn.Linear(16, 10), nn.Linear(12, 10), nn.Linear(10, 1)

    def forward(self, x: Tensor, h: Tensor, c: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.score(torch.tanh(self.query(h).unsqueeze(1) + self.key(memory)))
        context = (scores.softmax(1) * memory).sum(1)
        return self.cell(torch.cat([x, context], 1), (h, c))


def attention_decoder_step() -> nn.Module:
    """An LSTM cell that attends to a memory."""
    return _LstmStep()


class _TcnBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, dilation: int):
        super().__init__()
        self.padding = 2 * dilation
        self.conv = nn.Conv1d(inputs, outputs, 3, dilation=dilation)
        self.norm = nn.BatchNorm1d(outputs)
        self.shortcut = nn.Conv1d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(F.pad(x, (self.padding, 0))))
        return F.relu(y) + self.shortcut(x)


def tcn() -> nn.Module:
    """Causal dilated convolutions with shortcuts (Bai et al. 2018)."""
    return lively(nn.Sequential(_TcnBlock(5, 8, 1), _TcnBlock(8, 8, 2), _TcnBlock(8, 6, 4)))


class _WaveNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 12, 1)
        self.gates = nn.ModuleList([nn.Conv1d(12, 24, 2, dilation=2**i) for i in range(4)])
        self.mixes = nn.ModuleList([nn.Conv1d(12, 24, 1) for _ in range(4)])
        self.last = nn.Sequential(nn.ReLU(), nn.Conv1d(12, 16, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.first(x), 0
        for power, (gate, mix) in enumerate(zip(self.gates, self.mixes, strict=True)):
            left, right = gate(F.pad(x, (2**power, 0))).chunk(2, 1)
            residual, skip = mix(left.tanh() * right.sigmoid()).chunk(2, 1)
            x, total = x + residual, total + skip
        return self.last(total)


def wavenet() -> nn.Module:
    """Gated dilated convolutions with skips (van den Oord et al. 2016)."""
    return _WaveNet()


class _Spectrogram(nn.Module):
    """Short-time Fourier transform as a convolution, mel bands, logarithm: [n, t] to [n, m, f]."""

    def __init__(self, size: int = 64, hop: int = 16, bands: int = 10):
        super().__init__()
        self.hop, self.size = hop, size
        angles = torch.outer(torch.arange(size // 2 + 1.0), torch.arange(float(size)))
        angles *= 2 * math.pi / size
        basis = torch.cat([angles.cos(), -angles.sin()]) * torch.hann_window(size)
        self.register_buffer("basis", basis[:, None])
        self.register_buffer("mel", torch.rand(bands, size // 2 + 1))

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x[:, None], (self.size // 2, self.size // 2), mode="reflect")
        real, imaginary = F.conv1d(padded, self.basis, stride=self.hop).chunk(2, 1)
        return torch.log10((self.mel @ (real**2 + imaginary**2)).clamp(min=1e-5))


class _Keyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.front = _Spectrogram()
        self.body = nn.Sequential(
            nn.Conv2d(1, 12, (3, 5), padding=(1, 2)), nn.BatchNorm2d(12), nn.ReLU6(),
            nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.Hardswish(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(12, 6),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.front(x)[:, None])


def keyword_spotting() -> nn.Module:
    """Audio samples through a spectrogram to depthwise convolutions (Zhang et al. 2017)."""
    return lively(_Keyword())


class _Stft(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.stft(
            x, 32, 8, window=torch.hann_window(32), center=False, return_complex=True
        )
        return torch.view_as_real(spectrum).square().sum(-1).clamp(min=1e-6).log()


def stft() -> nn.Module:
    """torch's own short-time Fourier transform."""
    return _Stft()


class _DeepSpeech(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, 6, (5, 3), (2, 2), (2, 1)), nn.BatchNorm2d(6), nn.Hardtanh(0, 20)
        )
        self.rnn = nn.GRU(6 * 10, 12, bidirectional=True)
        self.head = nn.Linear(12, 9)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).flatten(1, 2).permute(2, 0, 1)
        y = self.rnn(y)[0]
        return self.head(y.view(y.shape[0], y.shape[1], 2, 12).sum(2)).log_softmax(-1)


def deep_speech() -> nn.Module:
    """Convolution and GRU over a spectrogram (Amodei et al. 2016)."""
    return lively(_DeepSpeech())


class _Conformer(nn.Module):
    def __init__(self, width: int = 24):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(4)])
        self.feed = nn.Sequential(nn.Linear(width, 48), nn.SiLU(), nn.Linear(48, width))
        self.attend = nn.MultiheadAttention(width, 4, batch_first=True)
        self.point = nn.Conv1d(width, 2 * width, 1)
        self.depth = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.feed(self.norms[0](x))
        y = self.norms[1](x)
        x = x + self.attend(y, y, y)[0]
        y = F.glu(self.point(self.norms[2](x).transpose(1, 2)), 1)
        x = x + F.silu(self.norm(self.depth(y))).transpose(1, 2)
        return self.norms[3](x)


def conformer() -> nn.Module:
    """Attention and convolution in one block (Gulati et al. 2020)."""
    return lively(_Conformer())


class _Seq2Seq(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(40, 24), nn.Embedding(40, 24)
        self.transformer = nn.Transformer(24, 4, 1, 2, 48, batch_first=True, norm_first=True)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        steps = target.shape[1]
        mask = torch.triu(torch.full((steps, steps), float("-inf")), 1)
        out = self.transformer(
            self.source(source), self.target(target), tgt_mask=mask, tgt_is_causal=True
        )
        return out @ self.target.weight.T


def seq2seq() -> nn.Module:
    """Encoder and decoder with cross attention and a causal mask (Vaswani et al. 2017)."""
    return lively(_Seq2Seq())


class _Mamba(nn.Module):
    """Selective state space, its recurrence written step by step (Gu and Dao 2023, section 3)."""

    def __init__(self, width: int = 12, states: int = 4):
        super().__init__()
        self.inner, self.states = 2 * width, states
        self.project = nn.Linear(width, 2 * self.inner)
        self.conv = nn.Conv1d(self.inner, self.inner, 4, padding=3, groups=self.inner)
        self.select = nn.Linear(self.inner, 1 + 2 * states)
        self.step = nn.Linear(1, self.inner)
        self.log_a = nn.Parameter(torch.rand(self.inner, states))
        self.skip = nn.Parameter(torch.ones(self.inner))
        self.out = nn.Linear(self.inner, width)

    def forward(self, x: Tensor) -> Tensor:
        y, gate = self.project(x).chunk(2, -1)
        y = F.silu(self.conv(y.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)
        rate, b, c = self.select(y).split([1, self.states, self.states], -1)
        rate = F.softplus(self.step(rate)).unsqueeze(-1)
        keep, add = torch.exp(-rate * self.log_a.exp()), rate * b.unsqueeze(2) * y.unsqueeze(-1)
        state, outs = torch.zeros_like(keep[:, 0]), []
        for t in range(x.shape[1]):
            state = keep[:, t] * state + add[:, t]
            outs.append((state * c[:, t].unsqueeze(1)).sum(-1))
        return self.out((torch.stack(outs, 1) + y * self.skip) * F.silu(gate))


def mamba() -> nn.Module:
    """A selective scan over ten steps."""
    return _Mamba()


class _FNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.feed = nn.Sequential(nn.Linear(16, 32), nn.GELU("tanh"), nn.Linear(32, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x + torch.view_as_real(torch.fft.fft(torch.fft.fft(x), dim=1))[..., 0])
        return x + self.feed(x)


def fnet() -> nn.Module:
    """Fourier transforms instead of attention (Lee-Thorp et al. 2021)."""
    return lively(_FNet())


class _Beats(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 24 + 6)) for _ in range(3)]
        )

    def forward(self, x: Tensor) -> Tensor:
        level = x.abs().amax(1, keepdim=True) + 1e-3
        rest, forecast = x / level, torch.zeros(1, 6)
        for block in self.blocks:
            back, ahead = block(rest).split([24, 6], 1)
            rest, forecast = rest - back, forecast + ahead
        return forecast * level


def n_beats() -> nn.Module:
    """Doubly residual forecasting (Oreshkin et al. 2019)."""
    return _Beats()


ARCHITECTURES = (
    Architecture(factory=lstm_tagger, inputs=("ids:int64:2,7",)),
    Architecture(factory=gru_tagger, inputs=("ids:int64:2,7",), sample="torchscript"),
    Architecture(factory=attention_decoder_step, inputs=("2,8", "2,16", "2,16", "2,9,12")),
    Architecture(factory=tcn, inputs=("1,5,31",)),
    Architecture(factory=wavenet, inputs=("1,1,50",)),
    Architecture(factory=keyword_spotting, inputs=("1,640",)),
    Architecture(factory=stft, inputs=("2,100",)),
    Architecture(factory=deep_speech, inputs=("1,1,19,15",)),
    Architecture(factory=conformer, inputs=("1,17,24",)),
    Architecture(factory=seq2seq, inputs=("source:int64:2,9", "target:int64:2,5")),
    Architecture(factory=mamba, inputs=("1,10,12",)),
    Architecture(factory=fnet, inputs=("1,12,16",)),
    Architecture(factory=n_beats, inputs=("2,24",)),
)
