"""Real networks from end to end, and a model that is large: compiled, verified, within bounds."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import mlc as library

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
SLOW = pytest.mark.slow
TORCH = pytest.mark.torch

LIGHT_MODELS = {  # in CI?
    "light_bvlc_alexnet": False,
    "light_densenet121": False,
    "light_inception_v1": False,
    "light_inception_v2": False,
    "light_resnet50": False,
    "light_shufflenet": True,
    "light_squeezenet": True,
    "light_vgg19": False,
    "light_zfnet512": False,
}
ZOO_MODELS = (
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "squeezenet",
    "densenet121",
    "inception_v1",
    "vit_tiny",
    "bert_encoder",
    "transformer_encoder",
    "encoder_768",
    "mlp",
    "lstm_classifier",
)
SHORT_TEXT = ("ids:int64:1,6",)


def compile_and_verify(mlc, model: Path, folder: Path) -> dict:
    """Compile, which verifies; return the manifest."""
    done = mlc("compile", model, "-o", "model.mlc", "--json", cwd=folder)
    report = json.loads(done.stdout)
    result = report["manifest"]["verification"]
    assert result["passed"]
    assert all(check["cosine"] > 0.9999 for check in result["outputs"])
    return report["manifest"]


def test_the_list_of_light_models_is_complete():
    assert {path.stem for path in LIGHT.glob("*.onnx")} == set(LIGHT_MODELS)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if ci else SLOW) for n, ci in LIGHT_MODELS.items()]
)
def test_light_model(mlc, tmp_path, name):
    manifest = compile_and_verify(mlc, LIGHT / f"{name}.onnx", tmp_path)
    assert manifest["model"]["nodes"] > 10


ZOO_PARAMETERS = [
    pytest.param("lstm_classifier", "dynamo", SHORT_TEXT, marks=TORCH, id="in CI"),
    pytest.param("lstm_classifier", "torchscript", None, marks=(TORCH, SLOW)),
    *(pytest.param(name, "dynamo", None, marks=(TORCH, SLOW)) for name in ZOO_MODELS),
]


@pytest.mark.parametrize(("name", "exporter", "inputs"), ZOO_PARAMETERS)
def test_zoo_model(mlc, tmp_path, name, exporter, inputs):
    if not importlib.util.find_spec("torch"):
        pytest.skip("needs the torch extra")
    from benchmarks.zoo import MODELS

    spec = MODELS[name]
    model = tmp_path / f"{name}.onnx"
    report = library.export(spec.factory, inputs or spec.inputs, model, exporter=exporter)
    manifest = compile_and_verify(mlc, model, tmp_path)
    shapes = [entry["shape"] for entry in manifest["signature"]["inputs"]]
    assert shapes == [list(info.shape) for info in report.inputs]


LAYERS, WIDTH = 3, 6500  # 507 MB of float32: still small enough for the cache of artifacts


def large_model(folder: Path) -> Path:
    """Dense layers with ReLU between them; the weights beside the model, written one by one."""
    nodes, weights = [], []
    with (folder / "large.onnx.data").open("wb") as data:
        for layer in range(LAYERS):
            rows = np.random.default_rng(layer).standard_normal((WIDTH, WIDTH), np.float32)
            rows *= np.float32(2 / WIDTH**0.5)
            tensor = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=rows.shape)
            tensor.data_location = TensorProto.EXTERNAL
            facts = {"location": "large.onnx.data", "offset": data.tell(), "length": rows.nbytes}
            for key, value in facts.items():
                tensor.external_data.add(key=key, value=str(value))
            data.write(rows.data)
            weights.append(tensor)
            nodes.append(helper.make_node("Gemm", [f"r{layer}", f"w{layer}"], [f"d{layer}"]))
            nodes.append(helper.make_node("Relu", [f"d{layer}"], [f"r{layer + 1}"]))
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("r0", TensorProto.FLOAT, [1, WIDTH])],
        [helper.make_tensor_value_info(f"r{LAYERS}", TensorProto.FLOAT, [1, WIDTH])],
        weights,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "large.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


WRAPPER = """
import json, resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", "mlc", *sys.argv[1:]], stdout=subprocess.PIPE)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024  # Linux: kB
print(json.dumps({"code": done.returncode, "peak": peak, "report": json.loads(done.stdout)}))
"""


@SLOW
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has another unit")
def test_large_model(mlc, environment, tmp_path, record_property):
    """The peak is that of the largest process in the tree (`getrusage` takes the maximum)."""
    model = large_model(tmp_path)
    size = model.stat().st_size + (tmp_path / "large.onnx.data").stat().st_size
    assert size > 500e6
    env = {**environment, "MLC_CACHE_DIR": str(tmp_path / "cache")}
    for again in (False, True):
        command = [sys.executable, "-c", WRAPPER, "compile", model.name, "--json"]
        done = subprocess.run(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, check=True)
        facts = json.loads(done.stdout)
        assert facts["code"] == 0
        assert facts["report"]["from_cache"] == again
        assert facts["report"]["manifest"]["verification"]["passed"]
        seconds = facts["report"]["seconds"]
        record_property(f"peak_bytes_{again}", facts["peak"])
        line = f"from cache {again}: peak {facts['peak'] / 1e6:.0f} MB, {seconds:.1f} s\n"
        sys.stdout.write(line)  # `pytest -s` shows it
        assert facts["peak"] < min(4 * size, 2.5e9)
    assert facts["report"]["bytes"] < 1.05 * size
    mlc("run", "large.mlc", "--random", cwd=tmp_path)
