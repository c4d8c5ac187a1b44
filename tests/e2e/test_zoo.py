"""The benchmark models: the sizes of the papers, activations in a sane range."""

import sys
from pathlib import Path

import pytest

from mlc.torch_export.arguments import parse_inputs

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")

sys.path.append(str(Path(__file__).resolve().parents[2]))
from benchmarks import zoo  # noqa: E402 - needs torch, and the repository's root on the path
from benchmarks.zoo.branches import ConvReLU  # noqa: E402

PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "mobilenet_v2": 3_504_872,
    "mobilenet_v3_small": 2_542_856,
    "squeezenet": 1_235_496,
    "densenet121": 7_978_856,
    # 6,998,552 with biases (Caffe's); normalisation has two parameters a channel instead of one.
    "inception_v1": 6_998_552 + 7_280,
    "vit_tiny": 5_717_416,
    "bert_encoder": 11_104_768,  # BERT-mini's 11,170,560 without the pooler
    "transformer_encoder": 4 * 3_152_384,
    "encoder_768": 6 * 7_087_872,
}
OUTPUTS = {
    "bert_encoder": (1, 128, 256),
    "transformer_encoder": (1, 128, 512),
    "encoder_768": (1, 128, 768),
    "lstm_classifier": (1, 5),
    "mlp": (1, 10),
}
WATCHED = (torch.nn.Linear, torch.nn.BatchNorm2d, torch.nn.LayerNorm, ConvReLU)


def example_inputs(name):
    generator = torch.Generator().manual_seed(1)
    for spec in parse_inputs(zoo.MODELS[name].inputs):
        if spec.dtype == "int64":
            yield torch.randint(0, 2, spec.shape, generator=generator)
        else:
            yield torch.randn(spec.shape, generator=generator)


@pytest.mark.parametrize("name", zoo.MODELS)
def test_model(name):
    spec = zoo.MODELS[name]
    assert spec.factory == f"benchmarks.zoo:{name}"
    model = getattr(zoo, name)()
    assert not model.training
    if name in PARAMETERS:
        assert sum(tensor.numel() for tensor in model.parameters()) == PARAMETERS[name]

    spreads = []

    def watch(_module, _inputs, output):
        spreads.append(float(output.std()))

    for module in model.modules():
        if isinstance(module, WATCHED):
            module.register_forward_hook(watch)
    with torch.no_grad():
        output = model(*example_inputs(name))
    assert tuple(output.shape) == OUTPUTS.get(name, (1, zoo.CLASSES))
    assert torch.isfinite(output).all()
    assert spreads
    assert 0.03 < min(spreads) <= max(spreads) < 10


def test_weights_are_the_same_every_time():
    first, second = (zoo.mobilenet_v3_small().state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_batch_norm_statistics_are_not_neutral():
    norms = [m for m in zoo.resnet18().modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 20
    for norm in norms:
        assert norm.running_mean.std() > 0.05
        assert norm.running_var.std() > 0.05
        assert norm.weight.std() > 0.02
