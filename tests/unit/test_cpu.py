"""`mlc.cpu`: what the operating system says about a CPU, in LLVM's names."""

from __future__ import annotations

import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from mlc import cpu
from mlc.cpu import CODEGEN_FEATURES, parse_cpuinfo, parse_hwcap, parse_sysctl
from mlc.cpu_names import FEATURES, HWCAP, HWCAP2, RENAMES


def x86(flags: str) -> frozenset[str]:
    return parse_cpuinfo(f"processor\t: 0\nflags\t\t: {flags}\n", "x86_64").features


def arm(flags: str) -> frozenset[str]:
    return parse_cpuinfo(f"processor\t: 0\nFeatures\t: {flags}\n", "aarch64").features


@pytest.mark.parametrize(
    ("flag", "feature"),
    [
        ("3dnowprefetch", "prfchw"),
        ("abm", "lzcnt"),
        ("amx_bf16", "amx-bf16"),
        ("amx_int8", "amx-int8"),
        ("amx_tile", "amx-tile"),
        ("avx", "avx"),
        ("avx2", "avx2"),
        ("avx512_bf16", "avx512bf16"),
        ("avx512_bitalg", "avx512bitalg"),
        ("avx512_fp16", "avx512fp16"),
        ("avx512_vbmi2", "avx512vbmi2"),
        ("avx512_vnni", "avx512vnni"),
        ("avx512_vpopcntdq", "avx512vpopcntdq"),
        ("avx512f", "avx512f"),
        ("avx512ifma", "avx512ifma"),
        ("avx512vbmi", "avx512vbmi"),
        ("avx_vnni", "avxvnni"),
        ("bmi1", "bmi"),
        ("bmi2", "bmi2"),
        ("fma", "fma"),
        ("fpu", "x87"),
        ("lahf_lm", "sahf"),
        ("pni", "sse3"),
        ("sse4_1", "sse4.1"),
        ("sse4_2", "sse4.2"),
        ("sse4a", "sse4a"),
    ],
)
def test_x86_flags_get_the_names_that_llvm_has_for_them(flag: str, feature: str) -> None:
    assert x86(flag) == {feature}


@pytest.mark.parametrize(
    ("flag", "feature"),
    [
        ("asimd", "neon"),
        ("asimddp", "dotprod"),
        ("asimdfhm", "fp16fml"),
        ("asimdhp", "fullfp16"),
        ("asimdrdm", "rdm"),
        ("atomics", "lse"),
        ("bf16", "bf16"),
        ("fcma", "complxnum"),
        ("fp", "fp-armv8"),
        ("i8mm", "i8mm"),
        ("ilrcpc", "rcpc-immo"),
        ("lrcpc", "rcpc"),
        ("sve", "sve"),
        ("sve2", "sve2"),
        ("uscat", "lse2"),
    ],
)
def test_arm_flags_get_the_names_that_llvm_has_for_them(flag: str, feature: str) -> None:
    assert arm(flag) == {feature}


@pytest.mark.parametrize(
    "flag", ["aes", "clzero", "hypervisor", "pku", "rdpru", "rdrand", "sha_ni", "vme", "wbnoinvd"]
)
def test_flags_that_no_compiler_uses_by_itself_are_left_out(flag: str) -> None:
    assert x86(flag) == frozenset()


def test_features_of_another_instruction_set_are_not_taken() -> None:
    assert x86("neon asimd sve") == frozenset()
    assert arm("avx2 fma") == frozenset()
    assert parse_cpuinfo("flags : avx2", "riscv64").features == frozenset()


def test_every_rename_leads_to_a_codegen_feature() -> None:
    for arch, known in FEATURES.items():
        assert set(RENAMES[arch].values()) <= known
        assert known <= CODEGEN_FEATURES


def test_an_x86_cpu() -> None:
    text = (
        "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\n"
        "model name\t: AMD EPYC 9354\nstepping\t: 1\nflags\t\t: fpu sse avx2\n\n"
    )
    found = parse_cpuinfo(text + text.replace(": 0", ": 1", 1), "x86_64")
    assert found == cpu.HostCpu(
        arch="x86_64",
        vendor="AuthenticAMD",
        family=25,
        model=17,
        name="AMD EPYC 9354",
        features=frozenset({"x87", "sse", "avx2"}),
        cores=2,
    )


@pytest.mark.parametrize(
    ("implementer", "part", "vendor", "name"),
    [
        ("0x41", "0xd0c", "ARM", "Neoverse-N1"),
        ("0x41", "0xd08", "ARM", "Cortex-A72"),
        ("0x41", "0xfff", "ARM", "ARM part 0xfff"),
        ("0xc0", "0xac3", "Ampere", "Ampere part 0xac3"),
        ("0x99", "0xd0c", "unknown", "unknown part 0xd0c"),
    ],
)
def test_an_arm_cpu_is_named_by_its_part(
    implementer: str, part: str, vendor: str, name: str
) -> None:
    text = (
        f"processor : 0\nFeatures : fp asimd\nCPU implementer : {implementer}\n"
        f"CPU architecture: 8\nCPU part : {part}\n"
    )
    found = parse_cpuinfo(text, "aarch64")
    assert (found.vendor, found.name, found.family, found.model) == (
        vendor,
        name,
        8,
        int(part, 16),
    )


RPI4 = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3
"""
BOARD_32_BITS = """\
processor\t: 0
model name\t: ARMv7 Processor rev 5 (v7l)
Features\t: half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm
CPU implementer\t: 0x41
CPU architecture: 7
CPU part\t: 0xc07
"""


def test_a_raspberry_pi_4() -> None:
    found = parse_cpuinfo(RPI4, "aarch64")
    assert found.features == {"fp-armv8", "neon"}
    assert (found.name, found.arch, found.system) == ("Cortex-A72", "aarch64", "linux")


def test_a_board_of_32_bits() -> None:
    found = parse_cpuinfo(BOARD_32_BITS, "arm")
    assert found.arch == "arm"
    assert found.features == FEATURES["arm"]
    assert parse_cpuinfo(BOARD_32_BITS, "aarch64").features == {"neon"}


def test_hwcap_bits_say_what_the_flags_say() -> None:
    # Numbers of include/uapi/asm/hwcap.h: asimddp is bit 20, sve 22; of the second word, sve2 is
    # bit 1, i8mm 13, bf16 14, ebf16 32.
    assert parse_hwcap(1 << 20 | 1 << 22, 0) == {"dotprod", "sve"}
    assert parse_hwcap(0, 1 << 1 | 1 << 13 | 1 << 14 | 1 << 32) == {"sve2", "i8mm", "bf16"}
    assert parse_hwcap(0, 0) == frozenset()
    assert (len(HWCAP), HWCAP[31], HWCAP2[32], HWCAP2[43]) == (32, "pacg", "ebf16", "mops")
    assert parse_hwcap(2**64 - 1, 2**64 - 1) == FEATURES["aarch64"]


def test_on_arm_the_kernel_is_asked_rather_than_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    words = {16: 1 << 1, 26: 1 << 13}
    library = SimpleNamespace(getauxval=SimpleNamespace())

    def getauxval(kind: int) -> int:
        return words[kind]

    library.getauxval = getauxval
    monkeypatch.setattr(cpu.ctypes, "CDLL", lambda _name: library)
    assert cpu._hwcap_features() == {"neon", "i8mm"}
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert cpu._hwcap_features() == frozenset()


@pytest.mark.parametrize("arch", ["x86_64", "aarch64", "arm", "riscv64", ""])
@pytest.mark.parametrize(
    "text", ["", "\n\n", "no colon here", ":::", "model : nonsense\ncpu family :\nflags"]
)
def test_text_that_says_nothing_gives_an_unknown_cpu(text: str, arch: str) -> None:
    found = parse_cpuinfo(text, arch)
    assert found.features == frozenset()
    assert found.cores == 1
    assert found.model == 0


def test_apple_silicon() -> None:
    text = (
        "hw.logicalcpu: 8\nhw.cpufamily: 458787763\nhw.cpusubfamily: 2\n"
        "hw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_FP16: 1\n"
        "hw.optional.arm.FEAT_BF16: 0\nhw.optional.arm.FEAT_LSE: 1\n"
        "hw.optional.arm.FEAT_LRCPC2: 1\nmachdep.cpu.brand_string: Apple M1\n"
    )
    found = parse_sysctl(text, "aarch64")
    assert found.name == "Apple M1"
    assert found.vendor == "Apple"
    assert found.system == "darwin"
    assert found.cores == 8
    assert found.features == {"dotprod", "fp-armv8", "fullfp16", "lse", "neon", "rcpc-immo"}


@pytest.mark.parametrize(
    ("machine", "arch"),
    [
        ("x86_64", "x86_64"),
        ("AMD64", "x86_64"),
        ("arm64", "aarch64"),
        ("armv7l", "arm"),
        ("riscv64", "riscv64"),
    ],
)
def test_architectures_are_spelled_as_in_triples(
    machine: str, arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert cpu.host_arch() == arch


def test_this_machine_can_be_read() -> None:
    found = cpu.host_cpu()
    assert found.arch == cpu.host_arch()
    assert found.cores == cpu.usable_cores() >= 1
    assert found.features <= CODEGEN_FEATURES


def test_no_sysctl_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise FileNotFoundError("sysctl")

    monkeypatch.setattr(subprocess, "run", broken)
    assert cpu._sysctl() == ""
    assert parse_sysctl("", "aarch64").cores == 1


def test_the_cpu_and_the_targets_load_nothing_heavy() -> None:
    code = (
        "import sys, mlc.cpu, mlc.target; mlc.target.resolve('znver4');"
        "print(sorted({'tvm', 'numpy', 'onnx', 'click', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
