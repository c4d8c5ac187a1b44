"""What the families share: the row of a table, and weights that show a wrong folding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A factory of a module, and its inputs as `mlc export --input` takes them.

    `sample` is the exporter by which it is tried in CI; `needs` the package that the factory
    imports besides torch.
    """

    factory: Callable[[], nn.Module]
    inputs: tuple[str, ...]
    sample: str | None = None
    needs: str | None = None

    @property
    def name(self) -> str:
        return self.factory.__name__

    @property
    def family(self) -> str:
        return self.factory.__module__.rpartition(".")[2]

    @property
    def path(self) -> str:
        """The factory as `mlc export` takes it."""
        return f"{self.factory.__module__}:{self.name}"


def lively(module: Module) -> Module:
    """Draw the statistics and affine parameters of every normalisation, which start out neutral."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(getattr(part, "running_mean", None), Tensor):
                part.running_mean.normal_(0, 0.2)
                part.running_var.uniform_(0.5, 1.5)
            if "Norm" in type(part).__name__ and isinstance(getattr(part, "weight", None), Tensor):
                part.weight.uniform_(0.5, 1.5)
                if isinstance(getattr(part, "bias", None), Tensor):
                    part.bias.normal_(0, 0.2)
    return module


def conv_norm(
    inputs: int, outputs: int, kernel: int = 3, act: type[nn.Module] = nn.ReLU, **options: int
) -> nn.Sequential:
    """Convolution that keeps the size at stride 1, batch normalisation, activation."""
    padding = options.pop("padding", options.get("dilation", 1) * (kernel // 2))
    conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), act())
