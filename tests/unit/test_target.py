"""`mlc.target`: names, raw TVM strings, the host and the schema of the target files."""

from __future__ import annotations

import json
import re
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlc import target as target_module
from mlc.cli.targets import targets as targets_command
from mlc.cpu import CODEGEN_FEATURES, HostCpu, parse_cpuinfo
from mlc.errors import TargetError
from mlc.target import (
    Target,
    all_targets,
    for_cpu,
    is_foreign,
    load_target,
    missing_features,
    resolve,
    runs_on,
)

HASWELL = """\
processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 63
model name\t: Intel(R) Xeon(R) CPU E5-2680 v3 @ 2.50GHz
flags\t\t: fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush dts \
acpi mmx fxsr sse sse2 ss ht tm pbe syscall nx pdpe1gb rdtscp lm constant_tsc arch_perfmon pebs \
bts rep_good nopl xtopology nonstop_tsc cpuid aperfmperf pni pclmulqdq dtes64 monitor ds_cpl vmx \
smx est tm2 ssse3 sdbg fma cx16 xtpr pdcm pcid dca sse4_1 sse4_2 x2apic movbe popcnt aes xsave \
avx f16c rdrand lahf_lm abm cpuid_fault epb fsgsbase tsc_adjust bmi1 avx2 smep bmi2 erms invpcid \
cqm xsaveopt cqm_llc cqm_occup_llc dtherm ida arat pln pts
"""
SKYLAKE_X = """\
processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 85
model name\t: Intel(R) Core(TM) i9-7900X CPU @ 3.30GHz
flags\t\t: fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush dts \
acpi mmx fxsr sse sse2 ss ht tm pbe syscall nx pdpe1gb rdtscp lm constant_tsc art arch_perfmon \
pebs bts rep_good nopl xtopology nonstop_tsc cpuid aperfmperf pni pclmulqdq dtes64 monitor ds_cpl \
vmx est tm2 ssse3 sdbg fma cx16 xtpr pdcm pcid dca sse4_1 sse4_2 x2apic movbe popcnt \
tsc_deadline_timer aes xsave avx f16c rdrand lahf_lm abm 3dnowprefetch cpuid_fault epb fsgsbase \
tsc_adjust bmi1 avx2 smep bmi2 erms invpcid mpx avx512f avx512dq rdseed adx smap clflushopt clwb \
intel_pt avx512cd avx512bw avx512vl xsaveopt xsavec xgetbv1 xsaves dtherm ida arat pln pts
"""
ZEN3 = """\
processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 1
model name\t: AMD EPYC 7763 64-Core Processor
flags\t\t: fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx \
fxsr sse sse2 ht syscall nx mmxext fxsr_opt pdpe1gb rdtscp lm constant_tsc rep_good nopl \
tsc_reliable nonstop_tsc cpuid extd_apicid aperfmperf pni pclmulqdq ssse3 fma cx16 pcid sse4_1 \
sse4_2 movbe popcnt aes xsave avx f16c rdrand hypervisor lahf_lm cmp_legacy svm cr8_legacy abm \
sse4a misalignsse 3dnowprefetch osvw topoext invpcid_single vmmcall fsgsbase bmi1 avx2 smep bmi2 \
erms invpcid rdseed adx smap clflushopt clwb sha_ni xsaveopt xsavec xgetbv1 xsaves clzero \
xsaveerptr rdpru arat npt nrip_save umip vaes vpclmulqdq rdpid fsrm
"""
ZEN4 = """\
processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 97
model name\t: AMD Ryzen 9 7950X 16-Core Processor
flags\t\t: fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx \
fxsr sse sse2 ht syscall nx mmxext fxsr_opt pdpe1gb rdtscp lm constant_tsc rep_good nopl \
nonstop_tsc cpuid extd_apicid aperfmperf rapl pni pclmulqdq monitor ssse3 fma cx16 sse4_1 sse4_2 \
movbe popcnt aes xsave avx f16c rdrand lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a \
misalignsse 3dnowprefetch osvw ibs skinit wdt tce topoext perfctr_core bmi1 avx2 smep bmi2 erms \
invpcid cqm rdt_a avx512f avx512dq rdseed adx smap avx512ifma clflushopt clwb avx512cd sha_ni \
avx512bw avx512vl xsaveopt xsavec xgetbv1 xsaves avx512_bf16 clzero irperf xsaveerptr rdpru \
wbnoinvd avx512vbmi umip pku ospke avx512_vbmi2 gfni vaes vpclmulqdq avx512_vnni avx512_bitalg \
avx512_vpopcntdq rdpid overflow_recov succor smca fsrm flush_l1d
"""
GRAVITON3 = """\
processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt \
fcma lrcpc dcpop sha3 sm3 sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs paca pacg \
dcpodp svei8mm svebf16 i8mm bf16 dgh rng
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: 0xd40
CPU revision\t: 1
"""

ZEN4_CPU = parse_cpuinfo(ZEN4, "x86_64")


def without(cpu: HostCpu, *features: str) -> HostCpu:
    return replace(cpu, features=cpu.features - set(features))


# The host


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (HASWELL, "haswell"),
        (SKYLAKE_X, "skylake-avx512"),
        (SKYLAKE_X.replace("avx512vl", "avx512vl avx512_vnni"), "cascadelake"),
        (ZEN3, "znver3"),
        (ZEN4, "znver4"),
        (ZEN4.replace(": 25\nmodel\t\t: 97", ": 26\nmodel\t\t: 2"), "x86-64-v4"),  # no avx_vnni
        (ZEN4.replace("model\t\t: 97", "model\t\t: 129"), "x86-64-v4"),  # an unknown model
        (ZEN4.replace("AuthenticAMD", "HygonGenuine"), "x86-64-v4"),
        (ZEN4.replace(" avx512f", ""), "x86-64-v3"),  # a hypervisor hides it
        (ZEN3.replace(" avx ", " "), "x86-64-v2"),
        (ZEN3.replace(" sse4_2", ""), "x86-64"),
        ("", "x86-64"),
    ],
)
def test_the_host_gets_the_best_target_that_it_can_run(text: str, name: str) -> None:
    found = for_cpu(parse_cpuinfo(text, "x86_64"))
    assert found.name == name
    assert found.tvm == f"llvm -mtriple=x86_64-linux-gnu -mcpu={name}"


def test_a_zen_5_is_recognised() -> None:
    zen5 = replace(ZEN4_CPU, family=26, model=2, features=ZEN4_CPU.features | {"avxvnni"})
    assert for_cpu(zen5).name == "znver5"


def test_a_sapphire_rapids_without_amx_falls_back_to_its_predecessor() -> None:
    features = frozenset(resolve("sapphirerapids").features)
    cpu = replace(ZEN4_CPU, vendor="GenuineIntel", family=6, model=0x8F, features=features)
    assert for_cpu(cpu).name == "sapphirerapids"
    assert for_cpu(without(cpu, "amx-tile", "amx-int8", "amx-bf16")).name == "icelake-server"


def arm_cpu(part: int, *features: str, vendor: str = "ARM", system: str = "linux") -> HostCpu:
    return replace(
        ZEN4_CPU,
        arch="aarch64",
        vendor=vendor,
        family=8,
        model=part,
        features=frozenset(features),
        system=system,
    )


@pytest.mark.parametrize(
    ("cpu", "name"),
    [
        (parse_cpuinfo(GRAVITON3, "aarch64"), "graviton3"),
        (arm_cpu(0xD08, "fp-armv8", "neon"), "rpi4"),
        (arm_cpu(0xD0B, *resolve("rpi5").features), "rpi5"),
        (arm_cpu(0xD0C, *resolve("graviton2").features), "graviton2"),
        (arm_cpu(0xD4F, *resolve("graviton4").features), "graviton4"),
        (arm_cpu(0xD0B, "fp-armv8", "neon"), "aarch64"),  # a hypervisor hides dotprod
        (arm_cpu(0xD08, "fp-armv8", "neon", vendor="Ampere"), "aarch64"),
        (arm_cpu(0xD08, "fp-armv8", "neon", system="darwin"), "aarch64"),
    ],
)
def test_an_arm_host_gets_its_file_or_a_generic_core(cpu: HostCpu, name: str) -> None:
    assert for_cpu(cpu).name == name


def test_an_unknown_arm_core_gets_the_features_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    found = for_cpu(replace(parse_cpuinfo(GRAVITON3, "aarch64"), vendor="unknown"))
    assert found.name == "aarch64"
    assert found.tvm == (
        "llvm -mtriple=aarch64-linux-gnu -mcpu=generic -mattr=+bf16,+complxnum,+dotprod,+flagm,"
        "+fp-armv8,+fp16fml,+fullfp16,+i8mm,+lse,+lse2,+neon,+rcpc,+rcpc-immo,+rdm,+sha3"
    )
    assert resolve(found.tvm).id == found.id


def test_a_mac_gets_its_own_triple(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    found = for_cpu(arm_cpu(2, "neon", "fp-armv8", vendor="Apple", system="darwin"))
    assert found.triple == "aarch64-apple-darwin"
    assert (found.arch, found.system) == ("aarch64", "darwin")


def test_an_unknown_instruction_set_is_refused_with_a_way_out() -> None:
    with pytest.raises(TargetError, match="riscv64") as caught:
        for_cpu(parse_cpuinfo("", "riscv64"))
    assert "-mtriple=riscv64-linux-gnu" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["llvm", "native", "host", " llvm "])
def test_llvm_is_this_machine(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_module, "host_cpu", lambda: ZEN4_CPU)
    found = resolve(name)
    assert found == resolve("znver4")
    assert found.description.startswith("This machine (AMD Ryzen 9 7950X")


# Names and raw strings


def test_a_name_of_a_file() -> None:
    found = resolve("znver4")
    assert found.tvm == "llvm -mtriple=x86_64-linux-gnu -mcpu=znver4"
    assert "avx512vnni" in found.features
    assert found.kind == "cpu"
    assert found.arch == "x86_64"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("zenver4", "znver4"), ("x86-64-v5", "x86-64-v4"), ("sapphire-rapids", "sapphirerapids")],
)
def test_a_wrong_name_comes_back_with_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(TargetError, match=re.escape(repr(wrong))) as caught:
        resolve(wrong)
    assert f"did you mean {right!r}" in str(caught.value.hint)
    assert "mlc targets" in str(caught.value.hint)


@pytest.mark.parametrize(
    "name", ["", "cudas", "rpi9", "cuda -arch=sm_80", "../targets/znver4", "LLVM"]
)
def test_unknown_names_are_refused_with_the_choices(name: str) -> None:
    with pytest.raises(TargetError, match="unknown target") as caught:
        resolve(name)
    assert "znver4" in str(caught.value.hint)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    "text",
    [
        "llvm -mtriple=x86_64-linux-gnu -mcpu=znver4",
        "llvm -mcpu=znver4 -mtriple=x86_64-linux-gnu",
        "llvm  --mcpu=znver4   --mtriple x86_64-linux-gnu",
        "llvm -mcpu znver4 -mtriple x86_64-linux-gnu",
    ],
)
def test_every_spelling_of_a_target_is_the_same_target(text: str) -> None:
    assert resolve(text) == resolve("znver4")
    assert resolve(text).id == resolve("znver4").id


def test_a_raw_string_in_full() -> None:
    found = resolve(
        "llvm -num-cores 4 -mcpu=haswell -mattr=+fma4,+avxvnni,+fast-gather -mtriple=x86_64-linux-gnu"
        " -keys=cpu -fast-math"
    )
    assert found.name == found.mcpu == "haswell"
    assert found.mattr == ("+avxvnni", "+fast-gather", "+fma4")
    assert found.extra == ("-fast-math", "-keys=cpu", "-num-cores=4")
    assert found.tvm == (
        "llvm -mtriple=x86_64-linux-gnu -mcpu=haswell -mattr=+avxvnni,+fast-gather,+fma4"
        " -fast-math -keys=cpu -num-cores=4"
    )
    assert set(found.features) == {*resolve("haswell").features, "avxvnni", "fma4"}
    assert resolve(found.tvm) == found


def test_a_raw_string_without_a_triple_is_for_this_kind_of_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(target_module, "host_cpu", lambda: parse_cpuinfo(GRAVITON3, "aarch64"))
    monkeypatch.setattr("sys.platform", "linux")
    found = resolve("llvm -mcpu=neoverse-v1")
    assert found.tvm == "llvm -mtriple=aarch64-linux-gnu -mcpu=neoverse-v1"
    assert resolve("llvm -num-cores=2").name == "aarch64"


@pytest.mark.parametrize(
    "text",
    [
        "llvm -mcpu=diamondrapids",
        "llvm -mattr=+avx2",
        "llvm -mcpu=znver4 -mattr=-avx512f",
        "llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a57 -mattr=+neon",
    ],
)
def test_features_that_only_llvm_knows_are_not_guessed(text: str) -> None:
    found = resolve(text)
    assert found.features == ()
    assert runs_on(replace(found, triple="x86_64-linux-gnu"), ZEN4_CPU) is None


def test_a_cpu_means_what_it_is_on_its_instruction_set() -> None:
    assert resolve("llvm -mtriple=aarch64-linux-gnu -mcpu=generic").features == ("fp-armv8", "neon")
    assert "vfp3" in resolve("llvm -mtriple=armv7-linux-gnueabihf -mcpu=generic").features
    assert resolve("llvm -mtriple=armv7-linux-gnueabihf -mcpu=cortex-a72").features == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("llvm znver4", "'znver4' is not an option"),
        ("llvm -mcpu=", "'-mcpu=' is not an option, or lacks its value"),
        ("llvm -mcpu", "'-mcpu' is not an option, or lacks its value"),
        ("llvm -mcpu -mattr=+avx2", "'-mcpu' is not an option, or lacks its value"),
        ("llvm -", "'-' is not an option"),
        ("llvm -=x", "'-=x' is not an option"),
        ("llvm -mcpu=a -mcpu=b", "-mcpu is given twice"),
        ("llvm -opt-level=1 -opt-level 2", "-opt-level is given twice"),
        ("llvm -mattr=avx2", r"wants \+ or - before each name, not 'avx2'"),
        ("llvm -mattr=+avx2,", r"wants \+ or - before each name, not ''"),
        ("llvm -mattr=+", r"wants \+ or - before each name, not '\+'"),
        ("llvm -mattr=+avx2,-avx2", "both sets and removes avx2"),
        ("llvm -mcpu=native", "another CPU on every machine"),
    ],
)
def test_raw_strings_that_do_not_parse(text: str, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        resolve(text)


# Target, features and the id


def test_ids_are_safe_in_file_names_and_tell_targets_apart() -> None:
    texts = ["llvm -mcpu=a/b;c", "llvm -mcpu=" + "x" * 300, "llvm -mcpu=znver4 -opt-level=2"]
    found = [*all_targets(), *map(resolve, texts)]
    ids = {target.id for target in found}
    assert len(ids) == len(found)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,40}-[0-9a-f]{12}", one) for one in ids)


def test_an_id_never_changes() -> None:
    assert resolve("znver4").id == "znver4-a64223236606"


def test_a_target_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        resolve("znver4").mcpu = "znver5"  # type: ignore[misc]


def test_missing_features_are_sorted_and_only_those_that_code_uses() -> None:
    cpu = without(ZEN4_CPU, "fma", "avx512vnni")
    assert missing_features(resolve("znver4").features, cpu) == ("avx512vnni", "fma")
    assert missing_features(["shstk", "fast-gather", "64bit-mode", "avx2"], cpu) == ()


def test_code_runs_only_on_its_instruction_set() -> None:
    assert runs_on(resolve("x86-64-v2"), ZEN4_CPU) is True
    assert runs_on(resolve("znver5"), ZEN4_CPU) is False
    assert runs_on(resolve("x86-64-v2"), replace(ZEN4_CPU, arch="aarch64")) is False
    pi = arm_cpu(0xD08, "fp-armv8", "neon")
    assert runs_on(resolve("arm64"), pi) is True
    assert runs_on(resolve("rpi5"), pi) is False
    assert runs_on(resolve("armv7"), pi) is False
    assert is_foreign(resolve("apple-m1"), pi)
    assert not is_foreign(resolve("graviton4"), pi)


# The files


def test_all_targets_are_sorted_and_complete() -> None:
    names = [target.name for target in all_targets()]
    assert names == sorted(names)
    assert {"x86-64-v2", "x86-64-v3", "x86-64-v4", "haswell", "skylake", "znver2"} <= set(names)
    arm = {"arm64", "rpi4", "rpi5", "graviton2", "graviton3", "graviton4", "apple-m1", "armv7"}
    assert arm <= set(names)


TRIPLES = {
    "apple-m": "aarch64-apple-macos11",
    "arm": "aarch64-linux-gnu",
    "armv": "armv7-linux-gnueabihf",
    "graviton": "aarch64-linux-gnu",
    "rpi": "aarch64-linux-gnu",
}


CPUS = [target for target in all_targets() if target.kind == "cpu"]
GPUS = [target for target in all_targets() if target.kind == "cuda"]


@pytest.mark.parametrize("target", GPUS, ids=lambda target: target.name)
def test_each_gpu_has_an_architecture_and_limits(target: Target) -> None:
    assert re.fullmatch(r"sm_\d{2,3}", target.mcpu)
    assert (target.triple, target.features) == ("nvptx64-nvidia-cuda", ())
    assert target.gpu is not None
    assert (target.gpu.warp, target.gpu.max_threads) == (32, 1024)
    assert target.tvm.startswith(f"nvptx -mtriple=nvptx64-nvidia-cuda -mcpu={target.mcpu} ")
    assert runs_on(target, ZEN4_CPU) is False
    assert is_foreign(target, ZEN4_CPU)


def test_the_cards_have_the_architectures_that_nvidia_lists() -> None:
    known = {
        "v100": "sm_70", "t4": "sm_75", "a100": "sm_80", "a10": "sm_86", "jetson-orin": "sm_87",
        "l4": "sm_89", "rtx4090": "sm_89", "h100": "sm_90",
    }  # fmt: skip
    assert known.items() <= {target.name: target.mcpu for target in GPUS}.items()


def test_an_architecture_is_a_target() -> None:
    assert resolve("cuda:sm_80").tvm == resolve("a100").tvm
    assert resolve("cuda:sm_80").name == "cuda-sm_80"
    assert resolve("cuda:a100") == resolve("a100")


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("cuda", "needs --arch", "sm_70, sm_75"),
        ("cuda:sm_81", "unknown GPU architecture 'sm_81'", "did you mean 'sm_8"),
        ("cuda:80", "unknown GPU architecture", "sm_80"),
        ("a101", "unknown target", "did you mean 'a10"),
    ],
)
def test_unknown_gpus_are_refused_with_the_choices(name: str, message: str, hint: str) -> None:
    with pytest.raises(TargetError, match=message) as caught:
        resolve(name)
    assert hint in str(caught.value.hint)


GOOD_GPU = """\
name = "box"
kind = "cuda"
description = "A box"
sm = "sm_80"
shared_bytes = 49152
registers = 65536
warp = 32
max_threads = 1024
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('sm = "sm_80"', 'sm = "80"', "sm must look like sm_80"),
        ("warp = 32", "warp = 0", "warp must be positive"),
        ("warp = 32", 'warp = "32"', "warp must be of type int"),
        ("registers = 65536\n", "", "'registers' is missing"),
        ("warp = 32", "warp = 32\nmcpu = 'x'", "unknown key 'mcpu'"),
        ('name = "box"', 'name = "bag"', "the file's name says"),
    ],
)
def test_a_bad_gpu_file_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "box.toml"
    path.write_text(GOOD_GPU)
    assert load_target(path).mcpu == "sm_80"
    path.write_text(GOOD_GPU.replace(old, new))
    with pytest.raises(TargetError, match=re.escape(message)):
        load_target(path)


@pytest.mark.parametrize("target", CPUS, ids=lambda target: target.name)
def test_each_file_describes_a_usable_target(target: Target) -> None:
    assert target.triple == TRIPLES.get(target.name.rstrip("0123456789"), "x86_64-linux-gnu")
    assert target.name not in target_module.HOST_NAMES
    assert set(target.features) <= CODEGEN_FEATURES
    always = {"x86_64": {"sse2", "x87"}, "aarch64": {"fp-armv8", "neon"}, "arm": {"neon", "vfp3"}}
    assert always[target.arch] <= set(target.features)
    assert "\n" not in target.description
    assert len(target.description) <= 100


GOOD = """\
name = "box"
kind = "cpu"
description = "A box"
triple = "x86_64-linux-gnu"
mcpu = "znver4"
features = ["avx", "fma"]

[match]
vendor = "AuthenticAMD"
family = 25
models = [[0x10, 0x1f], [0x60, 0x60]]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "box.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_target_file(tmp_path: Path) -> None:
    found = load_target(write(tmp_path, GOOD))
    assert found == Target(
        name="box",
        kind="cpu",
        description="",
        triple="x86_64-linux-gnu",
        mcpu="znver4",
        features=("avx", "fma"),
    )
    assert found.description == "A box"


def test_features_can_be_left_out_of_the_code(tmp_path: Path) -> None:
    text = GOOD.replace('["avx", "fma"]', '["avx", "fma"]\nwithout = ["bmi2"]')
    found = load_target(write(tmp_path, text))
    assert found.mattr == ("-bmi2",)
    assert found.tvm.endswith("-mattr=-bmi2")


def test_a_raw_string_for_a_cpu_whose_file_leaves_features_out_does_not_claim_to_know() -> None:
    assert resolve("llvm -mtriple=aarch64-linux-gnu -mcpu=neoverse-v1").features == ()
    assert resolve(resolve("graviton3").tvm).features == ()  # LLVM is asked


def test_armhf_is_hard_float_unless_the_target_says_otherwise() -> None:
    assert resolve("armv7").tvm.endswith("-mfloat-abi=hard")
    soft = resolve("llvm -mtriple=armv7-linux-gnueabihf -mfloat-abi=soft").tvm
    assert soft.count("-mfloat-abi") == 1
    assert "float-abi" not in resolve("rpi4").tvm


def test_match_is_optional(tmp_path: Path) -> None:
    assert load_target(write(tmp_path, GOOD.partition("[match]")[0])).name == "box"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "box"', 'name = "bax"', "name is 'bax', but the file's name says 'box'"),
        ('name = "box"', "name = 3", "name must be of type str and not empty"),
        ('name = "box"\n', "", "the key 'name' is missing"),
        ('kind = "cpu"', 'kind = "gpu"', "unknown kind 'gpu'"),
        ('mcpu = "znver4"', 'mcpu = ""', "mcpu must be of type str and not empty"),
        ('mcpu = "znver4"', 'mpcu = "znver4"', "unknown key 'mpcu'"),
        ('["avx", "fma"]', "[]", "features must be of type list and not empty"),
        ('["avx", "fma"]', '"avx"', "features must be of type list"),
        ('["avx", "fma"]', '["fma", "avx"]', "features must be sorted, each once"),
        ('["avx", "fma"]', '["avx", "avx"]', "features must be sorted, each once"),
        ('["avx", "fma"]', '["avx", "fmaa"]', "unknown feature 'fmaa'"),
        ('["avx", "fma"]', '["avx", 3]', "unknown feature '3'"),
        ('["avx", "fma"]', '["avx", ["fma"]]', "unknown feature"),
        ('["avx", "fma"]', '["avx", "fma"]\nwithout = ["bmi3"]', "without must list features"),
        ('["avx", "fma"]', '["avx", "fma"]\nwithout = [["bmi2"]]', "without must list features"),
        ("family = 25", 'family = "25"', "family must be of type int"),
        ("family = 25", "family = true", "family must be of type int"),
        ("family = 25\n", "", "the key 'family' is missing"),
        ("family = 25", "family = 25\nstepping = 1", "unknown key 'stepping'"),
        ("[0x60, 0x60]", "[0x60, 0x10]", r"\[low, high\] ranges, not \[96, 16\]"),
        ("[0x60, 0x60]", "[0x60]", r"\[low, high\] ranges, not \[96\]"),
        ("[0x60, 0x60]", "0x60", r"\[low, high\] ranges, not 96"),
        ("[0x60, 0x60]", "[-1, 3]", r"\[low, high\] ranges"),
        ("[0x60, 0x60]", "[true, true]", r"\[low, high\] ranges"),
        ("[match]", "[match", "cannot read the target file"),
        (GOOD, "match = 3\n" + GOOD.partition("[match]")[0], "match must be a table"),
        ("A box", "A \x00 box", "cannot read the target file"),
    ],
)
def test_a_file_that_breaks_the_schema_is_refused(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(TargetError, match=message) as caught:
        load_target(path)
    assert str(path) in str(caught.value)


def test_a_mistyped_key_comes_back_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(TargetError) as caught:
        load_target(write(tmp_path, GOOD.replace("mcpu", "mpcu")))
    assert "did you mean 'mcpu'" in str(caught.value.hint)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="cannot read the target file"):
        load_target(tmp_path / "none.toml")


def test_an_installed_package_brings_its_own_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_module, "__file__", str(tmp_path / "mlc/target.py"))
    with pytest.raises(TargetError, match="folder targets is missing"):
        target_module.data_dir()
    (tmp_path / "targets").mkdir()
    assert target_module.data_dir() == tmp_path / "targets"
    (tmp_path / "mlc/_targets").mkdir(parents=True)
    assert target_module.data_dir() == tmp_path / "mlc/_targets"


# `mlc targets`


@pytest.fixture
def on_zen4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlc.cpu.host_cpu", lambda: ZEN4_CPU)
    monkeypatch.setattr(target_module, "host_cpu", lambda: ZEN4_CPU)


@pytest.mark.usefixtures("on_zen4")
def test_the_command_marks_what_runs_here() -> None:
    result = CliRunner().invoke(targets_command, [])
    assert result.exit_code == 0
    assert re.search(r"znver4 \(llvm\) +yes", result.stdout)
    assert re.search(r"haswell +yes", result.stdout)
    assert re.search(r"znver5 +no", result.stdout)
    assert "llvm -mtriple=x86_64-linux-gnu -mcpu=znver4\n" in result.stdout


@pytest.mark.usefixtures("on_zen4")
def test_the_command_as_json() -> None:
    data = json.loads(CliRunner().invoke(targets_command, ["--json"]).stdout)
    assert data["host"]["name"] == "znver4"
    assert [row["name"] for row in data["targets"]] == [target.name for target in all_targets()]
    rows = {row["name"]: row for row in data["targets"]}
    assert rows["znver4"]["runs_here"] is True
    assert rows["znver5"]["runs_here"] is False
    assert rows["znver5"]["missing_here"] == ["avxvnni"]
    assert rows["znver5"]["tvm"] == resolve("znver5").tvm


@pytest.mark.usefixtures("on_zen4")
@pytest.mark.parametrize(
    ("name", "verdict"), [("llvm", "yes"), ("znver5", "no"), ("llvm -mcpu=grandridge", "not known")]
)
def test_the_command_shows_one_target_in_full(name: str, verdict: str) -> None:
    text = CliRunner().invoke(targets_command, [name]).stdout
    assert re.search(rf"runs here +{verdict}", text)
    assert resolve(name).id in text
    data = json.loads(CliRunner().invoke(targets_command, [name, "--json"]).stdout)
    assert data["id"] == resolve(name).id


def test_the_command_refuses_an_unknown_name() -> None:
    result = CliRunner().invoke(targets_command, ["zenver4"])
    assert isinstance(result.exception, TargetError)
