"""`mlc export` from a module on disk to a file that onnxruntime runs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from mlc import events
from mlc.errors import MissingToolError, ModelError, UsageError
from mlc.options import ExportOptions
from mlc.torch_export import ExportReport, export
from mlc.torch_export.arguments import EXPORTERS
from mlc.torch_export.write import TensorInfo

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

MODELS = """
import sys
import torch
from torch import nn

print("printed while importing")


def net():
    print("printed by the factory")
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))


class Lookup(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(2, 4)

    def forward(self, ids, kind=None, mask=None):
        rows = self.table(ids)
        if kind is not None:
            rows = rows + 100.0
        return rows * mask[..., None] if mask is not None else rows


class Pair(nn.Module):
    def forward(self, x):
        return x + 1, x.sum()


class Branch(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x - 1


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


def program():
    return torch.export.export(nn.Linear(4, 2), (torch.ones(1, 4),))


def broken():
    raise RuntimeError("no weights here")


def leaves():
    sys.exit(3)


def number():
    return 3


ready = nn.Linear(4, 2)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder with `models_here.py` in it, freshly importable."""
    return enter(tmp_path, monkeypatch)


def enter(path, monkeypatch):
    (path / "models_here.py").write_text(MODELS)
    (path / "needy.py").write_text("import surely_not_installed\n")
    (path / "wrong.py").write_text("def f(:\n")
    monkeypatch.chdir(path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in ("models_here", "needy", "wrong"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return path


def run_export(factory, *inputs, on_event=events.ignore, **changes):
    name = factory if ":" in factory else f"models_here:{factory}"
    return export(
        ExportOptions(factory=name, inputs=inputs, output="out.onnx", **changes), on_event
    )


class Exported(NamedTuple):
    folder: Path
    report: ExportReport


@pytest.fixture(scope="module", params=EXPORTERS)
def lookup(request, tmp_path_factory):
    """`Lookup` by each exporter, once for all tests that only look at the file."""
    inputs = ("mask:1,6", "ids:int64:1,6")  # neither the order of forward, nor all of it
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = enter(tmp_path_factory.mktemp("lookup"), monkeypatch)
        return Exported(folder, run_export("Lookup", *inputs, exporter=request.param, opset=18))


def run_onnx(path="out.onnx", **feeds):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def left_behind(folder):
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".py")


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_module_runs_the_same_in_onnxruntime(folder, capfd, exporter):
    seen = []
    report = run_export("net", "image:1,3,8,8", exporter=exporter, on_event=seen.append)
    assert report.inputs == (TensorInfo("image", "float32", (1, 3, 8, 8)),)
    assert report.outputs == (TensorInfo("output", "float32", (1, 4, 6, 6)),)
    assert report.bytes == (folder / "out.onnx").stat().st_size
    assert [event.name for event in seen] == ["build", "export"]
    assert left_behind(folder) == ["out.onnx"]
    assert capfd.readouterr().out == ""

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        net = sys.modules["models_here"].net().eval()
        image = torch.randn(1, 3, 8, 8)
        expected = net(image).numpy()
    (got,) = run_onnx(image=image.numpy())
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_ids_are_valid_and_names_bind_parameters(lookup):
    assert [info.name for info in lookup.report.inputs] == ["ids", "mask"]
    assert lookup.report.inputs[0].dtype == "int64"
    feeds = {"ids": np.array([[0, 1, 0, 1, 0, 1]]), "mask": np.zeros((1, 6), np.float32)}
    (got,) = run_onnx(lookup.folder / "out.onnx", **feeds)
    assert not got.any()


def test_other_names_bind_by_position(folder):
    report = run_export("Lookup", "tokens:int64:1,6", exporter="torchscript")
    assert [info.name for info in report.inputs] == ["tokens"]


def test_weights_follow_the_seed(folder):
    digests = set()
    for seed in (0, 0, 1):
        run_export("net", "1,3,8,8", exporter="torchscript", seed=seed)
        digests.add((folder / "out.onnx").read_bytes())
    assert len(digests) == 2


def test_torch_generator_and_import_path_are_given_back(folder):
    state, path = torch.random.get_rng_state(), list(sys.path)
    run_export("net", "1,3,8,8", exporter="torchscript")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert sys.path == path


def test_two_outputs_are_named(folder):
    report = run_export("Pair", "1,4", exporter="torchscript")
    assert [(info.name, info.shape) for info in report.outputs] == [
        ("output_0", (1, 4)),
        ("output_1", ()),
    ]


def test_exported_program_needs_no_inputs(folder):
    report = run_export("program")
    assert [(info.name, info.shape) for info in report.inputs] == [("input", (1, 4))]
    assert run_onnx(input=np.ones((1, 4), np.float32))[0].shape == (1, 2)


def test_exported_program_checks_inputs(folder):
    with pytest.raises(UsageError, match=r"float32 \[1, 4\], not int64 \[1, 4\]"):
        run_export("program", "x:int64:1,4")
    with pytest.raises(UsageError, match="not 2 inputs"):
        run_export("program", "1,4", "1,4")
    with pytest.raises(UsageError, match="only go through the dynamo"):
        run_export("program", exporter="torchscript")


def test_a_module_itself_will_do(folder):
    assert run_export("ready", "1,4", exporter="torchscript").outputs[0].shape == (1, 2)


def test_large_weights_get_their_own_file(folder, monkeypatch):
    monkeypatch.setattr("mlc.torch_export.write.EXTERNAL_DATA_BYTES", 0)
    report = run_export("Lookup", "ids:int64:1,2")
    files = left_behind(folder)
    assert files[0] == "out.onnx"
    assert report.bytes == sum((folder / name).stat().st_size for name in files)
    assert run_onnx(ids=np.array([[0, 1]]))[0].shape == (1, 2, 4)
    with pytest.raises(ModelError, match="too large"):
        run_export("Lookup", "ids:int64:1,2", exporter="torchscript")


def test_no_path_of_this_machine_is_in_the_file(lookup):
    assert str(lookup.folder).encode() not in (lookup.folder / "out.onnx").read_bytes()


def test_opset_is_what_was_asked_for(lookup):
    assert lookup.report.opset == 18
    assert onnx.load(lookup.folder / "out.onnx").opset_import[0].version == 18


@pytest.mark.parametrize(
    ("factory", "message", "hint"),
    [
        ("nowhere_at_all:f", "no Python module 'nowhere_at_all'", "run from the folder"),
        ("models_here.sub:f", "no Python module 'models_here.sub'", "run from the folder"),
        ("needy:f", "surely_not_installed", "install the package"),
        ("wrong:f", "SyntaxError", "python -c 'import wrong'"),
        ("models_here:ne", "no 'ne'", "did you mean 'net'?"),
        ("models_here:MODELS", "no 'MODELS'", "choices: "),
        ("models_here:__name__", "is a str, not callable", "package.module:callable"),
        ("models_here:broken", "RuntimeError: no weights here", "without arguments"),
        ("models_here:leaves", "SystemExit: 3", "without arguments"),
        ("models_here:number", "returned a int", "torch.nn.Module"),
    ],
)
def test_wrong_factory(folder, factory, message, hint):
    with pytest.raises(UsageError) as caught:
        run_export(factory, "1,4")
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert left_behind(folder) == []


def test_wrong_inputs(folder):
    with pytest.raises(UsageError, match="no --input"):
        run_export("net")
    with pytest.raises(UsageError, match="too many positional"):
        run_export("net", "1,3,8,8", "1")
    with pytest.raises(UsageError, match="missing a required argument: 'ids'"):
        run_export("Lookup", "mask:1,6")
    with pytest.raises(UsageError, match="called the same: mask, kind, mask"):
        run_export("Lookup", "mask:int64:1,6", "1,6", "1,6")
    with pytest.raises(ModelError, match="does not run on these inputs") as caught:
        run_export("net", "1,5,8,8")
    assert "forward(input)" in caught.value.hint
    assert left_behind(folder) == []


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_exporter_failure_names_the_operator_and_the_other_exporter(folder, capfd, exporter):
    (folder / "out.onnx").write_text("an earlier file")
    with pytest.raises(ModelError, match="bessel_j0") as caught:
        run_export("Bessel", "1,4", exporter=exporter)
    other = next(name for name in EXPORTERS if name != exporter)
    assert f"--exporter {other}" in caught.value.hint
    assert "\n" not in caught.value.message
    assert "Traceback" in caught.value.detail
    assert (folder / "out.onnx").read_text() == "an earlier file"
    assert left_behind(folder) == ["out.onnx"]
    assert capfd.readouterr().out == ""


def test_a_branch_that_the_trace_fixes_is_said_aloud(folder):
    seen = []
    run_export("Branch", "1,4", exporter="torchscript", on_event=seen.append)
    notices = [event for event in seen if isinstance(event, events.Notice)]
    assert [notice.level for notice in notices] == ["warning"]
    assert "models_here.py, line" in notices[0].text


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_nothing_half_written_stays(folder, monkeypatch, failure):
    def write_half(model, args, path, **_options):
        Path(path).write_bytes(b"half")
        Path(path + ".data").write_bytes(b"half")
        raise failure

    monkeypatch.setattr(torch.onnx, "export", write_half)
    expected = UsageError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        run_export("ready", "1,4")
    assert left_behind(folder) == []


def test_ctrl_c_is_not_an_exporter_failure(folder, monkeypatch):
    failure = AttributeError("what torch raises when an import of its own is interrupted")
    failure.__context__ = KeyboardInterrupt()

    def garble(*_args, **_options):
        raise failure

    monkeypatch.setattr(torch.onnx, "export", garble)
    with pytest.raises(KeyboardInterrupt):
        run_export("ready", "1,4")


def test_dynamo_needs_onnxscript(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingToolError, match="onnxscript"):
        run_export("ready", "1,4")


def test_json_leaves_stdout_to_the_result(folder):
    script = "from mlc.cli.export import export; export()"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            script,
            "models_here:net",
            "--input=1,3,8,8",
            "--json",
            "--exporter=torchscript",
        ],
        env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin", "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout)
    assert result["path"] == "net.onnx"
    assert result["inputs"] == [{"name": "input", "dtype": "float32", "shape": [1, 3, 8, 8]}]
    assert "printed by the factory" in done.stderr
    assert (folder / "net.onnx").stat().st_size == result["bytes"]
