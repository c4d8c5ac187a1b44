"""`make bench-compile`: how long compiling takes, cold and cached, and how it grows with nodes.

Every figure is a whole `mlc compile` process, verification included. The first network is also compiled
several times in turn with TVM's own importer and build (-O3, the same CPU, nothing verified). The growth is
measured on chains of small residual blocks: their kernels are few, so what grows is the work per node.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

NODES = (100, 1000, 5000)
# Runs a command and prints the peak memory (kB) of the largest process below it.
PEAK = """
import resource, subprocess, sys
code = subprocess.run([sys.executable, *sys.argv[1:]]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
ROUNDS = 5  # of the first network, in turn with STOCK
STOCK = """
import os, sys
os.environ["TOPHUB_LOCATION"] = "NONE"  # no network
from mlc import target, tvm_env
tvm_env.stand_in_onnx_mapping()
import onnx, tvm
from tvm import relay
module, weights = relay.frontend.from_onnx(onnx.load(sys.argv[1]), freeze_params=True)
with tvm.transform.PassContext(opt_level=3):
    built = relay.build(module, target.resolve("llvm").tvm, params=weights)
built.export_library(sys.argv[2])
"""
NETWORKS = ("resnet18", "mobilenet_v3_small")


def chain(nodes: int, path: Path) -> None:
    """Write a chain of conv-relu-add blocks with about `nodes` nodes."""
    helper, rng = onnx.helper, np.random.default_rng(0)
    graph_nodes, weights, last = [], [], "x"
    for k in range(nodes // 3):
        kernel = (rng.standard_normal((16, 16, 3, 3)) * 0.001).astype(np.float32)
        weights.append(onnx.numpy_helper.from_array(kernel, f"w{k}"))
        graph_nodes += [
            helper.make_node("Conv", [last, f"w{k}"], [f"c{k}"], f"conv{k}", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"c{k}"], [f"r{k}"], f"relu{k}"),
            helper.make_node("Add", [f"r{k}", last], [f"a{k}"], f"add{k}"),
        ]
        last = f"a{k}"
    shape = [1, 16, 14, 14]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        graph_nodes, "chain", [info("x", 1, shape)], [info(last, 1, shape)], weights
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))


def compile_once(model: Path, output: Path, cache: Path) -> tuple[float, float, dict[str, Any]]:
    """Return (wall seconds of the process, peak MB of its largest process, JSON result)."""
    command = ["-m", "mlc", "compile", str(model), "-o", str(output), "--json", "-q"]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *command],
        check=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "MLC_CACHE_DIR": str(cache)},
    )
    seconds = time.perf_counter() - started
    result, peak = done.stdout.splitlines()
    return seconds, int(peak) / 1024, json.loads(result)


def stock(model: Path, output: Path) -> float:
    """Return the wall seconds of a process in which TVM's own importer and build make a library."""
    started = time.perf_counter()
    command = [sys.executable, "-c", STOCK, str(model), str(output)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def in_turn(model: Path, folder: Path) -> None:
    """Print the median times of cold compiles and of `stock`, taken in turn."""
    ours, theirs = [], []
    for k in range(ROUNDS):
        ours.append(compile_once(model, folder / "out.mlc", folder / f"cache-{k}")[0])
        theirs.append(stock(model, folder / "out.so"))
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    print(
        f"{model.stem} cold, {ROUNDS} in turn: mlc {_spread(ours)} s, stock TVM {_spread(theirs)} s, "
        f"ratio {_spread(ratios)}"
    )


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def models(folder: Path) -> dict[str, Path]:
    """Return the models to compile by name: two exported ones, one of onnx's, and the chains."""
    from benchmarks.zoo import MODELS
    from mlc import api

    found = {}
    for name in NETWORKS:
        spec = MODELS[name]
        found[name] = folder / f"{name}.onnx"
        # TVM's importer refuses what the other exporter makes of a global pooling.
        api.export(spec.factory, spec.inputs, found[name], exporter="torchscript")
    light = Path(onnx.__file__).parent / "backend/test/data/light"
    found["densenet121 (onnx light)"] = light / "light_densenet121.onnx"
    for nodes in NODES:
        path = folder / f"chain{nodes}.onnx"
        chain(nodes, path)
        found[f"chain of {nodes} nodes"] = path
    return found


def main() -> None:
    table = Table(title="mlc compile, whole process, verified", title_justify="left")
    for column in ("model", "nodes", "kernels", "cold s", "again s", "MB at most"):
        table.add_column(column, justify="left" if column == "model" else "right")
    with tempfile.TemporaryDirectory(prefix="mlc-bench-") as name:
        folder = Path(name)
        found = models(folder)
        in_turn(found[NETWORKS[0]], folder)
        for label, model in found.items():
            cache, output = folder / f"cache-{label}", folder / "out.mlc"
            cold, peak, report = compile_once(model, output, cache)
            again, _, _ = compile_once(model, output, cache)
            manifest = report["manifest"]
            table.add_row(
                label, str(manifest["model"]["nodes"]), str(len(manifest["kernels"])),
                f"{cold:.1f}", f"{again:.2f}", f"{peak:.0f}",
            )  # fmt: skip
            print(f"{label}: cold {cold:.1f} s, again {again:.2f} s", file=sys.stderr, flush=True)
    Console().print(table)


if __name__ == "__main__":
    main()
