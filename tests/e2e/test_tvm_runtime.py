"""TVM's runtime through its C interface: the header's numbers, errors, and what is freed when."""

from __future__ import annotations

import gc
import importlib.util
import re
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest

from mlc.artifact import load
from mlc.runtime import tvm_runtime
from mlc.runtime.session import executor
from mlc.runtime.session import open as open_session


def test_the_codes_are_those_of_the_header():
    found = importlib.util.find_spec("tvm")
    header = Path(found.origin).with_name("include") / "tvm" / "runtime" / "c_runtime_api.h"
    names = dict(re.findall(r"^  (kTVM\w+) = (\d+)U,", header.read_text(), re.MULTILINE))
    own = {
        "kTVMNullptr": tvm_runtime._NULL, "kTVMModuleHandle": tvm_runtime._MODULE,
        "kTVMPackedFuncHandle": tvm_runtime._FUNCTION, "kTVMStr": tvm_runtime._TEXT,
        "kTVMNDArrayHandle": tvm_runtime._TENSOR, "kTVMArgBool": tvm_runtime._BOOL,
    }  # fmt: skip
    assert {name: int(names[name]) for name in own} == own


def test_what_is_not_there_is_an_error(conv, tmp_path):
    tvm = tvm_runtime.runtime()
    with pytest.raises(tvm_runtime.TvmError, match=r"no function tvm\.graph"):
        tvm.function("tvm.graph_executor.make")
    with pytest.raises(tvm_runtime.TvmError, match=r"absent\.so"):
        tvm.load(tmp_path / "absent.so")
    with open_session(conv.artifact) as session, pytest.raises(tvm_runtime.TvmError, match="jump"):
        session._executor["jump"]


def test_a_function_that_fails_says_why():
    tvm = tvm_runtime.runtime()
    with pytest.raises(tvm_runtime.TvmError, match="Check failed"):
        tvm.function("tvm.graph_executor.create")("{}")


def test_a_tensor_is_a_view_and_keeps_the_array():
    buffer = np.zeros(80, np.uint8)  # TVM takes memory that is aligned to 64 bytes only
    alive = weakref.ref(buffer)
    array = buffer[-buffer.ctypes.data % 64 :][:16].view(np.float32)
    tensor = tvm_runtime.runtime().tensor(array)
    assert tensor.address == array.ctypes.data
    del buffer, array
    gc.collect()
    assert alive() is not None
    del tensor
    gc.collect()
    assert alive() is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_executor_holds_the_artifact_and_lets_it_go(conv):
    def mapped() -> bool:
        gc.collect()
        return str(conv.artifact) in Path("/proc/self/maps").read_text()

    made = executor(load(conv.artifact), "tvm.graph_executor.create")
    assert mapped()
    made["run"]()
    results = [made["get_output"](0) for _ in range(2)]
    assert results[0].address == results[1].address
    del made, results
    assert not mapped()
