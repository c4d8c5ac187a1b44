"""Code for Arm: the files that come out, the schedules chosen, and that bytes repeat."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from mlc import artifact, build
from mlc.codegen.link import find_linker
from mlc.errors import MissingToolError, TargetError
from mlc.target import for_cpu, resolve
from tests import models
from tests.compiler.conftest import calls_of, typed
from tests.unit.test_target import arm_cpu

ELF_ARM, ELF_AARCH64 = 40, 183  # e_machine
SOFT_FLOAT, HARD_FLOAT = 0x200, 0x400  # e_flags of ELF for Arm
MACHO_ARM64 = 0x0100000C  # cputype
CROSS = {"rpi4": ELF_AARCH64, "graviton3": ELF_AARCH64, "armv7": ELF_ARM}


def machine_of(code: bytes) -> tuple[int, int]:
    """Return (bits, e_machine) of an ELF shared library."""
    assert code[:4] == b"\x7fELF"
    kind, machine = struct.unpack_from("<HH", code, 16)
    assert kind == 3, "it is no shared library"
    return (32 if code[4] == 1 else 64), machine


def library_of(path: Path) -> bytes:
    with artifact.Mapped(path).member(artifact.LIBRARY) as view:
        return bytes(view)


def require_linker(name: str) -> None:
    try:
        find_linker(resolve(name).triple)
    except MissingToolError as error:
        pytest.skip(f"{error.message}: {error.hint}")


def test_code_for_armhf_passes_floats_as_armhf_does(compiled: Any) -> None:
    """The dynamic linker of a hard-float system refuses a library that is not flagged so."""
    require_linker("armv7")
    code = library_of(compiled(models.conv_net(), target="armv7", cache=False).path)
    (flags,) = struct.unpack_from("<I", code, 0x24)  # e_flags
    assert flags & HARD_FLOAT
    assert not flags & SOFT_FLOAT


@pytest.mark.parametrize("name", CROSS)
def test_the_library_is_for_the_target_and_its_bytes_repeat(
    name: str, compiled: Any, quick_target: str
) -> None:
    require_linker(name)
    first = compiled(models.conv_net(), target=name, cache=False)
    again = compiled(models.conv_net(), target=name, cache=False)
    assert first.path.read_bytes() == again.path.read_bytes()
    bits = 32 if name == "armv7" else 64
    assert machine_of(library_of(first.path)) == (bits, CROSS[name])
    assert first.manifest["target"]["name"] == name
    assert tuple(first.manifest["target"]["features"]) == resolve(name).features


def test_a_mac_gets_a_mach_o_library_whose_bytes_repeat(compiled: Any) -> None:
    require_linker("apple-m1")
    first = compiled(models.conv_net(), target="apple-m1", cache=False)
    again = compiled(models.conv_net(), target="apple-m1", cache=False)
    assert first.path.read_bytes() == again.path.read_bytes()
    magic, cpu, _, filetype = struct.unpack_from("<IIII", library_of(first.path))
    assert (magic, cpu, filetype) == (0xFEEDFACF, MACHO_ARM64, 6)


@pytest.mark.skipif(
    not shutil.which("clang++") or not shutil.which("ld.lld"), reason="needs clang and lld"
)
def test_clang_and_lld_link_without_a_c_library(
    compiled: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("clang++", "ld.lld"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(tmp_path))
    made = compiled(models.conv_net(), target="rpi4", cache=False)
    code = library_of(made.path)
    assert machine_of(code) == (64, ELF_AARCH64)
    assert b"libm.so.6\0" in code
    assert b"libc.so.6\0" in code
    assert str(tmp_path).encode() not in code


@pytest.mark.parametrize("name", ["graviton3", "graviton4", "unknown"])
def test_sve_is_left_out_because_llvm_aborts_on_tails(name: str, tvm: Any) -> None:
    """The reason for `without` in the target files is LLVM 22's; here the same layer compiles."""
    if name == "unknown":  # as the emulator's newest CPU says of itself
        all_of_it = ("neon", "fp-armv8", "fullfp16", "i8mm", "sve", "sve2", "f32mm", "f64mm")
        chosen = for_cpu(arm_cpu(0, *all_of_it))
    else:
        chosen = resolve(name)
        assert "-sve" in chosen.mattr
    assert not [feature for feature in chosen.features if feature.startswith("sve")]
    from tvm import relay

    from mlc.schedules import dense

    data, weight = relay.var("x", shape=(1, 8)), relay.var("w", shape=(2, 8, 4))
    module = typed(relay.nn.relu(dense.packed(data, weight, 5)))
    with build.tvm_target(chosen, 3) as target, tvm.transform.PassContext(opt_level=3):
        code = relay.build(module, target).get_lib().get_source("asm")
    assert "fmla\tv" in code or "fmadd" in code
    assert "\tz0." not in code


def test_targets_share_no_kernels(compiled: Any) -> None:
    require_linker("rpi4")
    made = [compiled(models.conv_net(), target=name) for name in ("rpi4", "rpi5", "arm64")]
    symbols = [set(one.manifest["kernels"]) for one in made]
    assert len(set.union(*symbols)) == sum(map(len, symbols))


def test_it_is_not_verified_here_and_that_is_said(compiled: Any) -> None:
    require_linker("rpi4")
    said: list[Any] = []
    made = compiled(models.conv_net(), target="rpi4", verify=True, on_event=said.append)
    assert made.manifest["verification"] is None
    (warning,) = [event for event in said if getattr(event, "level", "") == "warning"]
    assert "cannot run code for rpi4" in warning.text
    assert "--emulate" in warning.text


@pytest.mark.parametrize(
    ("triple", "message"),
    [("riscv64-linux-gnu", "does not know riscv64"), ("mips", "does not know mips")],
)
def test_an_unknown_instruction_set_is_a_target_error(triple: str, message: str, tvm: Any) -> None:
    with pytest.raises(TargetError, match=message):
        build.tvm_target(resolve(f"llvm -mtriple={triple}"), 3)


@pytest.mark.parametrize("attribute", ["+dotprd", "-dotprd", "+avx2"])
def test_an_unknown_feature_is_a_target_error(attribute: str, tvm: Any) -> None:
    text = f"llvm -mtriple=aarch64-linux-gnu -mattr=+neon,{attribute}"
    with pytest.raises(TargetError, match=f"knows no feature '{attribute[1:]}'"):
        build.tvm_target(resolve(text), 3)


def conv(tvm: Any, channels: int, groups: int = 1, **attributes: Any) -> Any:
    from tvm import relay

    data = relay.var("x", shape=(1, channels, 14, 14))
    weight = relay.const(models.floats(32, channels // groups, 3, 3))
    return typed(
        relay.nn.conv2d(
            data, weight, groups=groups, kernel_size=(3, 3), channels=32, padding=1, **attributes
        )
    )


@pytest.mark.parametrize(
    ("channels", "groups", "attributes", "operator"),
    [
        (16, 1, {}, "nn.contrib_conv2d_NCHWc"),
        (16, 1, {"dilation": (2, 2)}, "nn.contrib_conv2d_NCHWc"),
        (32, 32, {}, "nn.contrib_depthwise_conv2d_NCHWc"),
        (32, 32, {"dilation": (2, 2)}, "nn.contrib_depthwise_conv2d_NCHWc"),
        (16, 2, {}, "nn.contrib_conv2d_NCHWc"),
    ],
)
@pytest.mark.parametrize("name", ["rpi4", "graviton3", "apple-m1", "armv7"])
def test_convolutions_are_blocked_without_records(
    name: str, channels: int, groups: int, attributes: dict[str, Any], operator: str, tvm: Any
) -> None:
    from mlc.passes.layout import alter_layout

    with build.tvm_target(resolve(name), 3), tvm.transform.PassContext(opt_level=3):
        altered = alter_layout(conv(tvm, channels, groups, **attributes))
    assert [call.op.name for call in calls_of(altered) if "conv2d" in call.op.name] == [operator]


@pytest.mark.parametrize(
    ("filters", "attributes", "template"),
    [
        ((32, 16, 1, 1), {}, "conv2d_1x1_mlc.x86"),
        ((16, 1, 3, 3), {"groups": 16}, "depthwise_conv2d_mlc.x86"),
    ],
)
@pytest.mark.parametrize("name", ["rpi4", "armv7"])
def test_our_templates_are_arms_too(
    name: str, filters: tuple[int, ...], attributes: dict[str, Any], template: str, tvm: Any
) -> None:
    from tvm import relay
    from tvm.relay.backend import te_compiler

    data, weight = relay.var("x", shape=(1, 16, 9, 9)), relay.var("w", shape=filters)
    sizes = {"channels": filters[0], "kernel_size": filters[2:]}
    call = calls_of(typed(relay.nn.conv2d(data, weight, **sizes, **attributes)))[0]
    inputs = [tvm.te.placeholder(tuple(map(int, a.checked_type.shape))) for a in call.args]
    with build.tvm_target(resolve(name), 3) as target:
        chosen, _ = te_compiler.select_implementation(
            call.op, call.attrs, inputs, call.checked_type, target
        )
    assert chosen.name == template


@pytest.mark.parametrize(("name", "count"), [("rpi4", 32), ("armv7", 16), ("x86-64-v3", 16)])
def test_a_machine_has_its_own_registers(name: str, count: int, tvm: Any) -> None:
    from mlc.schedules import gemm

    with build.tvm_target(resolve(name), 3):
        assert gemm.registers() == count


def test_tvms_own_choice_for_arm_is_still_another(tvm: Any) -> None:
    """The reason for `mlc.schedules.arm`: when this fails, it may go."""
    from tvm.relay.op.strategy import arm_cpu

    call = calls_of(conv(tvm, 16))[0]
    inputs = [tvm.te.placeholder(tuple(map(int, a.checked_type.shape))) for a in call.args]
    with build.tvm_target(resolve("rpi4"), 3) as target:
        offered = arm_cpu.conv2d_strategy_arm_cpu(call.attrs, inputs, call.checked_type, target)
    (specialization,) = offered.specializations
    priority = {str(row.name): int(row.plevel) for row in specialization.implementations}
    assert priority["conv2d_nchw_spatial_pack.arm_cpu"] >= priority["conv2d_nchw.x86"]
