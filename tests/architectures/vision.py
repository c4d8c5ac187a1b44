"""Image networks: classifiers, segmentation, generators, image to image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.architectures.parts import Architecture, conv_norm, lively


def vgg() -> nn.Module:
    """Plain stack of convolutions with pooling (Simonyan and Zisserman 2014)."""
    return lively(
        nn.Sequential(
            conv_norm(3, 12), conv_norm(12, 12), nn.MaxPool2d(2),
            conv_norm(12, 20), nn.MaxPool2d(3, 2, 1, ceil_mode=True),
            nn.AdaptiveAvgPool2d((3, 3)), nn.Flatten(), nn.Linear(180, 32), nn.ReLU(),
            nn.Dropout(), nn.Linear(32, 10),
        )
    )  # fmt: skip


class _Bottleneck(nn.Module):
    def __init__(self, channels: int, groups: int, stride: int):
        super().__init__()
        wide = 2 * channels
        self.branch = nn.Sequential(
            conv_norm(channels, channels, 1),
            conv_norm(channels, channels, groups=groups, stride=stride),
            conv_norm(channels, wide, 1, nn.Identity),
        )
        self.shortcut = conv_norm(channels, wide, 1, nn.Identity, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.branch(x) + self.shortcut(x))


def resnext() -> nn.Module:
    """Residual bottlenecks with grouped convolutions (Xie et al. 2017)."""
    stem = [conv_norm(3, 16, 7, stride=2), nn.MaxPool2d(3, 2, 1)]
    blocks = [_Bottleneck(16, 4, 1), _Bottleneck(32, 8, 2)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return lively(nn.Sequential(*stem, *blocks, *head))


class _Shuffle(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            conv_norm(half, half, 1),
            conv_norm(half, half, act=nn.Identity, groups=half),
            conv_norm(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        y = torch.cat([left, self.branch(right)], 1)
        n, c, h, w = y.shape
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def shufflenet() -> nn.Module:
    """Channel split and shuffle (Ma et al. 2018)."""
    return lively(
        nn.Sequential(conv_norm(3, 20, stride=2), _Shuffle(20), _Shuffle(20), nn.Conv2d(20, 7, 1))
    )


class _Dense(nn.Module):
    def __init__(self, inputs: int, growth: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, growth, 3, padding=1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1)


def densenet() -> nn.Module:
    """Concatenated features, normalisation before convolution (Huang et al. 2017)."""
    first = [nn.Conv2d(3, 8, 3, padding=1), _Dense(8, 5), _Dense(13, 5), nn.AvgPool2d(2)]
    return lively(nn.Sequential(*first, _Dense(18, 6), nn.Flatten(2), nn.Softmax(-1)))


class _MBConv(nn.Module):
    def __init__(self, channels: int, kernel: int):
        super().__init__()
        wide = 4 * channels
        self.expand = conv_norm(channels, wide, 1, nn.SiLU)
        self.depthwise = conv_norm(wide, wide, kernel, nn.SiLU, groups=wide)
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, 3, 1), nn.SiLU(), nn.Conv2d(3, wide, 1),
            nn.Sigmoid(),
        )  # fmt: skip
        self.project = conv_norm(wide, channels, 1, nn.Identity)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        return x + self.project(y * self.squeeze(y))


def efficientnet() -> nn.Module:
    """Inverted residuals with squeeze-and-excitation and SiLU (Tan and Le 2019)."""
    body = [conv_norm(3, 10, act=nn.SiLU, stride=2), _MBConv(10, 3), _MBConv(10, 5)]
    return lively(nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 9)))


class _ConvNextBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )
        self.gamma = nn.Parameter(torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x).permute(0, 2, 3, 1)
        return x + (self.gamma * self.mlp(self.norm(y))).permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    """Large depthwise kernels, normalised and mixed channels last (Liu et al. 2022)."""
    return lively(nn.Sequential(nn.Conv2d(3, 12, 4, 4), _ConvNextBlock(12), _ConvNextBlock(12)))


class _UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([conv_norm(3, 8), conv_norm(8, 16), conv_norm(16, 24)])
        self.up = nn.ModuleList(
            [nn.ConvTranspose2d(24, 16, 2, 2), nn.ConvTranspose2d(16, 8, 4, 2, 1)]
        )
        self.merge = nn.ModuleList([conv_norm(32, 16), conv_norm(16, 8)])
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for stage in self.down[:-1]:
            x = stage(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.down[-1](x)
        for grow, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skips.pop(), grow(x)], 1))
        return self.head(x).argmax(1, keepdim=True) + self.head(x)


def unet() -> nn.Module:
    """Encoder and decoder with skips and transposed convolutions (Ronneberger et al. 2015)."""
    return lively(_UNet())


class _DeepLab(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, 12, stride=2)
        self.rates = nn.ModuleList(
            [conv_norm(12, 8, 1), *(conv_norm(12, 8, dilation=rate) for rate in (2, 4))]
        )
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 8, 1), nn.ReLU())
        self.head = nn.Conv2d(32, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        pooled = F.interpolate(self.pooled(y), y.shape[-2:], mode="bilinear", align_corners=False)
        y = self.head(torch.cat([*(rate(y) for rate in self.rates), pooled], 1))
        return F.interpolate(y, x.shape[-2:], mode="bilinear", align_corners=True)


def deeplab() -> nn.Module:
    """Parallel dilated convolutions, bilinear upsampling (Chen et al. 2017)."""
    return lively(_DeepLab())


class _SuperResolution(nn.Module):
    def __init__(self, mode: str):
        super().__init__()
        self.mode = mode
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 5, padding=2), nn.PReLU(16), nn.Conv2d(16, 27, 3, padding=1),
            nn.PixelShuffle(3),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        coarse = F.interpolate(x, scale_factor=3, mode=self.mode, align_corners=False)
        return (self.body(x) + coarse).clamp(0, 1)


def super_resolution() -> nn.Module:
    """Pixel shuffle over a bicubic baseline (Shi et al. 2016)."""
    return _SuperResolution("bicubic")


class _Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels, affine=True), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def style_transfer() -> nn.Module:
    """Reflection padding, instance normalisation, nearest upsampling (Johnson et al. 2016)."""
    return lively(
        nn.Sequential(
            nn.ReflectionPad2d(4), nn.Conv2d(3, 8, 9, 2), nn.InstanceNorm2d(8, affine=True),
            nn.ReLU(), _Residual(8), nn.Upsample(scale_factor=2, mode="nearest"),
            nn.ReplicationPad2d(1), nn.Conv2d(8, 3, 3), nn.Tanh(),
        )
    )  # fmt: skip


def gan_generator() -> nn.Module:
    """Noise to image by transposed convolutions (Radford et al. 2015)."""

    def grow(inputs: int, outputs: int) -> list[nn.Module]:
        conv = nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False)
        return [conv, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)]

    first = [nn.Linear(20, 24 * 16), nn.Unflatten(1, (24, 4, 4))]
    last = [nn.ConvTranspose2d(8, 3, 5, 2, 2, output_padding=1), nn.Tanh()]
    return lively(nn.Sequential(*first, *grow(24, 16), *grow(16, 8), *last))


class _Vae(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1), nn.ELU(), nn.Conv2d(8, 12, 3, 2, 1), nn.Softplus(),
            nn.Flatten(), nn.Linear(12 * 49, 10),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(5, 12 * 49), nn.Unflatten(1, (12, 7, 7)),
            nn.ConvTranspose2d(12, 8, 4, 2, 1), nn.CELU(), nn.ConvTranspose2d(8, 1, 4, 2, 1),
        )  # fmt: skip

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, 1)
        return self.decoder(mean + noise * (log_variance / 2).exp()).sigmoid(), mean, log_variance


def vae() -> nn.Module:
    """Variational autoencoder, its noise an input (Kingma and Welling 2013)."""
    return _Vae()


class _MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.tokens = nn.Sequential(nn.Linear(tokens, 20), nn.GELU(), nn.Linear(20, tokens))
        self.channels = nn.Sequential(nn.Linear(width, 40), nn.GELU(), nn.Linear(40, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norms[1](x))


class _Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 8, 8)
        self.blocks = nn.Sequential(_MixerBlock(16, 24), _MixerBlock(16, 24))
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def mlp_mixer() -> nn.Module:
    """Two perceptrons, over tokens and over channels (Tolstikhin et al. 2021)."""
    return lively(_Mixer())


class _ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.first = nn.Parameter(torch.randn(1, 1, 32))
        self.position = nn.Parameter(torch.randn(1, 17, 32))
        layer = nn.TransformerEncoderLayer(
            32, 4, 64, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(x.shape[0], -1, -1), tokens], 1)
        return self.head(self.encoder(tokens + self.position)[:, 0])


def vit() -> nn.Module:
    """Patches as tokens of torch's own encoder layers (Dosovitskiy et al. 2020)."""
    return lively(_ViT())


class _WindowAttention(nn.Module):
    """Attention in windows of 4x4, shifted by 2, with a table of relative positions."""

    def __init__(self, width: int, heads: int, shift: int):
        super().__init__()
        self.heads, self.shift, self.window = heads, shift, 4
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table = nn.Parameter(torch.randn(49, heads))
        rows, columns = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
        places = torch.stack([rows.flatten(), columns.flatten()])
        apart = places[:, :, None] - places[:, None, :] + 3
        self.register_buffer("index", apart[0] * 7 + apart[1])

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        size = self.window
        y = torch.roll(self.norm(x), (-self.shift, -self.shift), (1, 2))
        y = y.view(n, h // size, size, w // size, size, c).permute(0, 1, 3, 2, 4, 5)
        y = y.reshape(-1, size * size, c)
        q, k, v = self.qkv(y).view(-1, 16, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(16, 16, self.heads).permute(2, 0, 1)
        scores = q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5 + bias
        y = self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, 16, c))
        y = y.view(n, h // size, w // size, size, size, c).permute(0, 1, 3, 2, 4, 5)
        return x + torch.roll(y.reshape(n, h, w, c), (self.shift, self.shift), (1, 2))


class _PatchMerging(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.reduce = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduce(torch.cat(corners, -1))


class _Swin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.body = nn.Sequential(
            _WindowAttention(16, 2, 0), _WindowAttention(16, 2, 2), _PatchMerging(16),
            _WindowAttention(32, 4, 0),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.patches(x).permute(0, 2, 3, 1)).mean((1, 2))


def swin() -> nn.Module:
    """Shifted windows and patch merging (Liu et al. 2021)."""
    return lively(_Swin())


class _Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_norm(1, 8, stride=2), conv_norm(8, 16, stride=2), nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
        )  # fmt: skip

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b = self.body(left), self.body(right)
        return F.cosine_similarity(a, b), F.normalize(a), F.pairwise_distance(a, b)


def siamese() -> nn.Module:
    """One tower for two images, compared by cosine and distance."""
    return lively(_Siamese())


class _SpatialTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.locate = nn.Sequential(conv_norm(1, 6, stride=2), nn.Flatten(), nn.Linear(6 * 256, 6))
        self.classify = nn.Sequential(conv_norm(1, 8, 5), nn.Flatten(), nn.Linear(8 * 1024, 4))

    def forward(self, x: Tensor) -> Tensor:
        theta = torch.tanh(self.locate(x)).view(-1, 2, 3)
        grid = F.affine_grid(theta, [x.shape[0], 1, 32, 32], align_corners=False)
        return self.classify(F.grid_sample(x, grid, align_corners=False))


def spatial_transformer() -> nn.Module:
    """The network chooses where to sample its image (Jaderberg et al. 2015)."""
    return lively(_SpatialTransformer())


class _LocalAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(3, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        q, k, v = self.qkv(x).chunk(3, 1)
        k, v = (F.unfold(y, 3, padding=1).view(n, 8, 9, h * w) for y in (k, v))
        scores = (q.view(n, 8, 1, h * w) * k).sum(1, keepdim=True).softmax(2)
        folded = F.fold((v * scores).view(n, 72, h * w), (h, w), 3, padding=1)
        return folded + (v * scores).sum(2).view(n, 8, h, w)


def local_attention() -> nn.Module:
    """Each pixel attends to its 3x3 neighbourhood, by unfold and fold."""
    return _LocalAttention()


class _Video(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.space = nn.Conv3d(3, 8, (1, 3, 3), (1, 2, 2), (0, 1, 1))
        self.norm = nn.BatchNorm3d(8)
        self.time = nn.Conv3d(8, 8, (3, 1, 1), padding=(1, 0, 0))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool3d(self.time(F.relu(self.norm(self.space(x)))), (1, 2, 2))
        return self.head(F.adaptive_avg_pool3d(y, 1).flatten(1))


def video() -> nn.Module:
    """Convolutions over space, then over time (Tran et al. 2018)."""
    return lively(_Video())


class _Radiance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(39, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, points: Tensor) -> Tensor:
        scaled = points[..., None, :] * (2.0 ** torch.arange(6.0))[:, None] * torch.pi
        waves = torch.cat([points[..., None, :], scaled.sin(), scaled.cos()], -2).flatten(-2)
        out = self.mlp(waves)
        color, density = out[..., :3].sigmoid(), F.softplus(out[..., 3])
        passed = density.cumsum(1) - density
        weights = torch.exp(-0.1 * passed) * (1 - torch.exp(-0.1 * density))
        return (weights[..., None] * color).sum(1)


def radiance_field() -> nn.Module:
    """Positional encoding, perceptron, volume rendering (Mildenhall et al. 2020)."""
    return _Radiance()


class _Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 16))
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.attend = nn.MultiheadAttention(16, 2, batch_first=True)
        self.last = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        rates = torch.exp(-torch.arange(8.0))
        angles = step[:, None].float() * rates
        time = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        y = F.silu(self.norm(self.first(x) + time[:, :, None, None]))
        tokens = F.avg_pool2d(y, 4).flatten(2).transpose(1, 2)
        mixed = self.attend(tokens, tokens, tokens, need_weights=False)[0].transpose(1, 2)
        mixed = mixed.reshape(y.shape[0], 16, y.shape[2] // 4, y.shape[3] // 4)
        return self.last(y + F.interpolate(mixed, scale_factor=4.0))


def diffusion_step() -> nn.Module:
    """Denoiser with time embedding, group normalisation, attention (Ho et al. 2020)."""
    return lively(_Denoiser())


ARCHITECTURES = (
    Architecture(factory=vgg, inputs=("1,3,33,35",)),
    Architecture(factory=resnext, inputs=("1,3,64,64",)),
    Architecture(factory=shufflenet, inputs=("2,3,33,32",)),
    Architecture(factory=densenet, inputs=("1,3,24,24",)),
    Architecture(factory=efficientnet, inputs=("1,3,48,48",)),
    Architecture(factory=convnext, inputs=("1,3,48,48",)),
    Architecture(factory=unet, inputs=("1,3,32,32",)),
    Architecture(factory=deeplab, inputs=("1,3,33,33",)),
    Architecture(factory=super_resolution, inputs=("1,3,17,19",)),
    Architecture(factory=style_transfer, inputs=("1,3,32,32",)),
    Architecture(factory=gan_generator, inputs=("2,20",)),
    Architecture(factory=vae, inputs=("x:1,1,28,28", "noise:1,5")),
    Architecture(factory=mlp_mixer, inputs=("1,3,32,32",)),
    Architecture(factory=vit, inputs=("1,3,32,32",), sample="torchscript"),
    Architecture(factory=swin, inputs=("1,3,32,32",), sample="torchscript"),
    Architecture(factory=siamese, inputs=("left:1,1,28,28", "right:1,1,28,28")),
    Architecture(factory=spatial_transformer, inputs=("1,1,32,32",)),
    Architecture(factory=local_attention, inputs=("1,3,10,12",)),
    Architecture(factory=video, inputs=("1,3,5,16,16",)),
    Architecture(factory=radiance_field, inputs=("7,9,3",)),
    Architecture(factory=diffusion_step, inputs=("x:1,3,16,16", "step:int64:1")),
)
