"""The target files and LLVM agree: on features, on their names, and on TVM's target strings."""

from __future__ import annotations

from typing import Any

import pytest

from mlc.cpu import CODEGEN_FEATURES, host_cpu
from mlc.cpu_names import FEATURES
from mlc.target import Target, all_targets, for_cpu, resolve


@pytest.fixture(scope="module")
def tvm() -> Any:
    # TVM reads this variable when it is used: nothing may be downloaded.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOPHUB_LOCATION", "NONE")
        import tvm

        yield tvm


def llvm_features(tvm: Any, text: str) -> set[str]:
    found = tvm.target.codegen.llvm_get_cpu_features(tvm.target.Target(text))
    return {str(feature) for feature in found}


@pytest.mark.parametrize("target", all_targets(), ids=lambda target: target.name)
def test_a_file_lists_what_llvm_uses_for_its_cpu(target: Target, tvm: Any) -> None:
    expected = llvm_features(tvm, target.tvm) & CODEGEN_FEATURES
    assert target.features == tuple(sorted(expected))


def test_the_baseline_is_what_llvm_uses_for_x86_64(tvm: Any) -> None:
    # The last resort of `for_cpu`, which has no file.
    from mlc.cpu import parse_cpuinfo

    target = for_cpu(parse_cpuinfo("", "x86_64"))
    assert set(target.features) == llvm_features(tvm, target.tvm) & CODEGEN_FEATURES


@pytest.mark.parametrize(("arch", "features"), FEATURES.items())
def test_llvm_knows_every_feature_by_this_name(
    arch: str, features: frozenset[str], tvm: Any
) -> None:
    triple = f"-mtriple={arch}-linux-gnu"
    unknown = [
        feature
        for feature in sorted(features)
        if feature not in llvm_features(tvm, f"llvm {triple} -mcpu=generic -mattr=+{feature}")
    ]
    assert unknown == []


@pytest.mark.parametrize(
    "text",
    [
        "llvm",
        "llvm -mcpu haswell -mattr=+fma4,+avxvnni -num-cores 4",
        "llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a72 -mattr=+neon -device=arm_cpu",
    ],
)
def test_tvm_reads_the_canonical_string(text: str, tvm: Any) -> None:
    target = resolve(text)
    attributes = tvm.target.Target(target.tvm).attrs
    assert str(attributes["mcpu"]) == target.mcpu
    assert str(attributes["mtriple"]) == target.triple
    assert tuple(map(str, attributes.get("mattr", []))) == target.mattr


@pytest.mark.parametrize(
    "target",
    [t for t in all_targets() if t.arch in ("aarch64", "arm")],
    ids=lambda target: target.name,
)
def test_arm_targets_get_the_schedules_for_arm(target: Target, tvm: Any) -> None:
    made = tvm.target.Target(target.tvm)
    assert list(made.keys) == ["arm_cpu", "cpu"]
    assert bool(made.features.is_aarch64) == (target.arch == "aarch64")
    assert bool(made.features.has_dotprod) == ("dotprod" in target.features)


def test_tvm_takes_a_triple_of_arm64_for_32_bits(tvm: Any) -> None:
    # Why apple-m1.toml and `llvm` on a Mac say aarch64.
    made = tvm.target.Target("llvm -mtriple=arm64-apple-macos11 -mcpu=apple-a14")
    assert not made.features.is_aarch64


def test_this_machine_has_all_that_llvm_uses_for_it(tvm: Any) -> None:
    used = llvm_features(tvm, resolve("llvm").tvm) & CODEGEN_FEATURES
    assert used <= host_cpu().features
