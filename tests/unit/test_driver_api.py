"""Calls of NVIDIA's driver arrive as its C interface has them: a library of 60 lines stands in for it."""

from __future__ import annotations

import shutil
import subprocess
from ctypes import c_int32, c_uint64
from pathlib import Path

import numpy as np
import pytest

from mlc.errors import MissingToolError, RunError
from mlc.gpu.device import Launch
from mlc.runtime.driver_api import Driver

SOURCE = r"""
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>
typedef int CUresult; typedef int CUdevice; typedef unsigned long long CUdeviceptr;
typedef std::function<void()> Launch;
static char context, module_, function_, stream_;
static int current, live, loaded, clock_, capturing;
static std::vector<Launch> captured;
extern "C" {
CUresult cuInit(unsigned flags) { return flags ? 1 : getenv("FAKE_BROKEN") ? 100 : 0; }
CUresult cuDeviceGetCount(int* n) { *n = getenv("FAKE_EMPTY") ? 0 : 2; return 0; }
CUresult cuDeviceGet(CUdevice* d, int k) { *d = 40 + k; return 0; }
CUresult cuDeviceGetName(char* s, int n, CUdevice d) {
  strncpy(s, "A fake", n); return d != 40 || n < 7; }
CUresult cuStreamCreate(void** s, unsigned flags) { *s = &stream_; live++; return flags; }
CUresult cuStreamDestroy_v2(void* s) { live--; return s != &stream_; }
CUresult cuStreamBeginCapture_v2(void* s, int mode) {
  captured.clear(); capturing = s == &stream_ && mode == 1; return !capturing; }
CUresult cuStreamEndCapture(void* s, void** g) {
  capturing = 0; *g = new std::vector<Launch>(captured); live++; return s != &stream_; }
CUresult cuGraphInstantiateWithFlags(void** e, void* g, unsigned long long flags) {
  *e = new std::vector<Launch>(*(std::vector<Launch>*)g); live++; return flags; }
CUresult cuGraphDestroy(void* g) { delete (std::vector<Launch>*)g; live--; return 0; }
CUresult cuGraphExecDestroy(void* g) { delete (std::vector<Launch>*)g; live--; return 0; }
CUresult cuGraphLaunch(void* g, void* s) {
  for (auto& one : *(std::vector<Launch>*)g) one();
  return s != &stream_; }
CUresult cuEventCreate(void** e, unsigned flags) { *e = new float(0); live++; return flags; }
CUresult cuEventRecord(void* e, void* stream) { *(float*)e = ++clock_ * 2.0f; return stream != &stream_; }
CUresult cuEventElapsedTime(float* ms, void* a, void* b) { *ms = *(float*)b - *(float*)a; return 0; }
CUresult cuEventDestroy_v2(void* e) { delete (float*)e; live--; return 0; }
CUresult cuDeviceGetAttribute(int* v, int what, CUdevice d) {
  *v = what == 75 ? 8 : what == 76 ? 6 : -1; return d != 40; }
CUresult cuDevicePrimaryCtxRetain(void** c, CUdevice d) { *c = &context; return d != 40; }
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice d) { return d != 40 || live || loaded ? 7 : 0; }
CUresult cuCtxSetCurrent(void* c) { current = c == &context; return !current; }
CUresult cuCtxSynchronize() { return !current; }
CUresult cuModuleLoadData(void** m, const void* image) {
  *m = &module_; loaded++; return memcmp(image, "\177ELF\0code", 9) ? 218 : 0; }
CUresult cuModuleGetFunction(void** f, void* m, const char* name) {
  *f = &function_; return m != &module_ || strcmp(name, "scale"); }
CUresult cuModuleUnload(void* m) { loaded--; return m != &module_; }
CUresult cuMemAlloc_v2(CUdeviceptr* p, size_t n) {
  if (n > (1ull << 40)) return 2;
  live++; *p = (CUdeviceptr)malloc(n); return n == 0; }
CUresult cuMemFree_v2(CUdeviceptr p) { live--; free((void*)p); return 0; }
CUresult cuMemcpyHtoD_v2(CUdeviceptr p, const void* h, size_t n) { memcpy((void*)p, h, n); return 0; }
CUresult cuMemcpyDtoH_v2(void* h, CUdeviceptr p, size_t n) { memcpy(h, (void*)p, n); return 0; }
CUresult cuLaunchKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                        unsigned bz, unsigned shared, void* stream, void** params, void** extra) {
  if (f != &function_ || shared || stream != &stream_ || extra) return 1;
  int* data = *(int**)params[0]; int factor = *(int*)params[1];
  auto run = [=] {
    unsigned sizes[] = {gx, gy, gz, bx, by, bz};
    for (int k = 0; k < 6; ++k) data[k] = data[k] * factor + sizes[k]; };
  if (capturing) captured.push_back(run); else run();
  return 0; }
CUresult cuGetErrorString(CUresult e, const char** s) { *s = e == 2 ? "out of memory" : 0; return 0; }
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder: Path = tmp_path_factory.mktemp("driver")
    source, output = folder / "fake.cc", folder / "libfake.so"
    source.write_text(SOURCE)
    subprocess.run([compiler, "-shared", "-fPIC", source, "-o", output], check=True, timeout=120)
    return str(output)


def test_memory_code_and_launches_arrive(library):
    driver = Driver(library)
    assert (driver.name(), driver.capability()) == ("A fake", (8, 6))
    address = driver.allocate(24)
    driver.upload(address, np.arange(6, dtype=np.int32))
    module = driver.load(b"\x7fELF\0code")
    function = driver.function(module, "scale")
    step = Launch(function="scale", grid=(1, 2, 3), block=(4, 5, 6), arguments=())
    driver.launch(driver.prepare(function, step, [c_uint64(address), c_int32(-100)]))
    driver.synchronize()
    found = np.zeros(6, np.int32)
    driver.download(found, address)
    np.testing.assert_array_equal(found, np.arange(6) * -100 + np.arange(1, 7))
    driver.free(address)
    driver.unload(module)
    driver.close()  # fails where anything was left


def test_a_graph_holds_launches_and_runs_them_again(library):
    driver = Driver(library)
    address = driver.allocate(24)
    driver.upload(address, np.zeros(6, np.int32))
    module = driver.load(b"\x7fELF\0code")
    function = driver.function(module, "scale")
    steps = [
        Launch(function="scale", grid=(k, k, k), block=(1, 1, 1), arguments=()) for k in (1, 2)
    ]
    arguments = [c_uint64(address), c_int32(10)]
    graph = driver.record_graph([driver.prepare(function, step, arguments) for step in steps])
    found = np.ones(6, np.int32)
    for expected in ([0] * 6, [12] * 3 + [11] * 3):  # recorded only, then run
        driver.synchronize()
        driver.download(found, address)
        np.testing.assert_array_equal(found, expected)
        driver.replay(graph)
    driver.forget_graph(graph)
    driver.free(address)
    driver.unload(module)
    driver.close()


def test_times_are_those_of_the_gpu(library):
    driver = Driver(library)
    marks = [driver.event() for _ in range(3)]
    for mark in marks:
        driver.record(mark)
    assert driver.elapsed(marks[0], marks[1]) == pytest.approx(0.002)  # of milliseconds
    assert driver.elapsed(marks[0], marks[2]) == pytest.approx(0.004)
    for mark in marks:
        driver.forget(mark)
    driver.close()


def test_errors_are_said_in_the_drivers_words(library):
    driver = Driver(library)
    with pytest.raises(RunError, match="cuMemAlloc_v2 failed: out of memory"):
        driver.allocate(1 << 50)
    with pytest.raises(RunError, match="cuModuleLoadData failed: error 218"):
        driver.load(b"nonsense!")


@pytest.mark.parametrize(
    ("variable", "said"), [("FAKE_EMPTY", "finds no GPU"), ("FAKE_BROKEN", "does not start")]
)
def test_a_driver_without_a_gpu_is_said_to_be_one(library, monkeypatch, variable, said):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(MissingToolError, match=said):
        Driver(library)
