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

from dataclasses import dataclass

from benchmarks.zoo.branches import densenet121, inception_v1, squeezenet
from benchmarks.zoo.layers import CLASSES
from benchmarks.zoo.residual import mobilenet_v2, mobilenet_v3_small, resnet18, resnet50
from benchmarks.zoo.small import lstm_classifier, mlp
from benchmarks.zoo.transformers import bert_encoder, encoder_768, transformer_encoder, vit_tiny

__all__ = [
    "CLASSES",
    "MODELS",
    "ModelSpec",
    "bert_encoder",
    "densenet121",
    "encoder_768",
    "inception_v1",
    "lstm_classifier",
    "mlp",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "resnet18",
    "resnet50",
    "squeezenet",
    "transformer_encoder",
    "vit_tiny",
]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model of the zoo: `factory` and `inputs` are arguments of `mlc export`."""

    factory: str
    inputs: tuple[str, ...]
    description: str


_IMAGE = ("input:1,3,224,224",)
_MODELS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("resnet18", _IMAGE, "ResNet-18: 3x3 convolutions with shortcuts, 11.7 M parameters"),
    ("resnet50", _IMAGE, "ResNet-50 v1.5: bottleneck blocks, 25.6 M parameters"),
    ("mobilenet_v2", _IMAGE, "MobileNetV2: depthwise convolutions, ReLU6, 3.5 M parameters"),
    ("mobilenet_v3_small", _IMAGE, "MobileNetV3-Small: squeeze-excite, 2.5 M parameters"),
    ("squeezenet", _IMAGE, "SqueezeNet 1.1: small convolutions side by side, 1.2 M parameters"),
    ("densenet121", _IMAGE, "DenseNet-121: every layer reads all before it, 8.0 M parameters"),
    ("inception_v1", _IMAGE, "GoogLeNet with batch normalisation: four branches, 7.0 M parameters"),
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
        "encoder_768",
        ("input:1,128,768",),
        "six post-norm transformer layers of BERT-base's width, 42.5 M parameters",
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
