"""Names of CPU features: LLVM's, and what operating systems call the same things."""

from __future__ import annotations

# The first line is APX: no kernel flag covers these one by one, so they are never detected and code
# that needs them is refused rather than risked. `prefetchi` is left out for the same lack of a flag,
# which costs nothing: only prefetches of code use it, and TVM emits none.
_X86 = """
    ccmp cf egpr ndd nf ppx push2pop2 zu
    amx-bf16 amx-complex amx-fp16 amx-int8 amx-tile
    avx avx10.1 avx10.2 avx2 avx512bf16 avx512bitalg avx512bw avx512cd avx512dq avx512f avx512fp16
    avx512ifma avx512vbmi avx512vbmi2 avx512vl avx512vnni avx512vpopcntdq
    avxifma avxneconvert avxvnni avxvnniint16 avxvnniint8
    bmi bmi2 cmov cmpccxadd cx16 cx8 f16c fma fma4 gfni lzcnt movbe popcnt prfchw sahf
    sse sse2 sse3 sse4.1 sse4.2 sse4a ssse3 tbm x87 xop
"""
_AARCH64 = """
    bf16 complxnum cssc dotprod f32mm f64mm flagm fp-armv8 fp16fml fullfp16 i8mm lse lse128 lse2
    mops neon rcpc rcpc-immo rcpc3 rdm sha3 sve sve-bitperm sve2 sve2p1
"""
# 32 bits. Half precision (`fp16`) is left out: the kernel has no flag for it.
_ARM = "d32 dsp hwdiv hwdiv-arm neon thumb2 vfp2 vfp3 vfp4"

FEATURES = {
    "x86_64": frozenset(_X86.split()),
    "aarch64": frozenset(_AARCH64.split()),
    "arm": frozenset(_ARM.split()),
}
"""By instruction set, the features that `mlc.cpu.CODEGEN_FEATURES` describes."""

RENAMES = {
    "x86_64": {
        "3dnowprefetch": "prfchw",
        "abm": "lzcnt",
        "amx_bf16": "amx-bf16",
        "amx_complex": "amx-complex",
        "amx_fp16": "amx-fp16",
        "amx_int8": "amx-int8",
        "amx_tile": "amx-tile",
        "avx512_bf16": "avx512bf16",
        "avx512_bitalg": "avx512bitalg",
        "avx512_fp16": "avx512fp16",
        "avx512_vbmi2": "avx512vbmi2",
        "avx512_vnni": "avx512vnni",
        "avx512_vpopcntdq": "avx512vpopcntdq",
        "avx_ifma": "avxifma",
        "avx_ne_convert": "avxneconvert",
        "avx_vnni": "avxvnni",
        "avx_vnni_int16": "avxvnniint16",
        "avx_vnni_int8": "avxvnniint8",
        "bmi1": "bmi",
        "fpu": "x87",
        "lahf_lm": "sahf",
        "pni": "sse3",
        "sse4_1": "sse4.1",
        "sse4_2": "sse4.2",
    },
    "aarch64": {
        "asimd": "neon",
        "asimddp": "dotprod",
        "asimdfhm": "fp16fml",
        "asimdhp": "fullfp16",
        "asimdrdm": "rdm",
        "atomics": "lse",
        "fcma": "complxnum",
        "fp": "fp-armv8",
        "ilrcpc": "rcpc-immo",
        "lrcpc": "rcpc",
        "lrcpc3": "rcpc3",
        "svebitperm": "sve-bitperm",
        "svef32mm": "f32mm",
        "svef64mm": "f64mm",
        "uscat": "lse2",
    },
    "arm": {
        "edsp": "dsp",
        "idiva": "hwdiv-arm",
        "idivt": "hwdiv",
        "thumb": "thumb2",  # every CPU with NEON has the second version
        "vfp": "vfp2",
        "vfpd32": "d32",
        "vfpv3": "vfp3",
        "vfpv4": "vfp4",
    },
}
"""What Linux calls a feature, where that is not LLVM's name for it."""

# macOS has its own spelling: `hw.optional.arm.FEAT_DotProd: 1`, here without case and prefix.
MACOS_RENAMES = {
    "advsimd": "neon",
    "fcma": "complxnum",
    "fhm": "fp16fml",
    "fp16": "fullfp16",
    "lrcpc": "rcpc",
    "lrcpc2": "rcpc-immo",
}

# Linux's names of the bits of AT_HWCAP and AT_HWCAP2 on aarch64, lowest first: the order of
# `arch/arm64/include/uapi/asm/hwcap.h`, which only ever grows.
_HWCAP = """
    fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc
    dcpop sha3 sm3 sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs sb paca pacg
"""
_HWCAP2 = """
    dcpodp sve2 sveaes svepmull svebitperm svesha3 svesm4 flagm2 frint svei8mm svef32mm svef64mm
    svebf16 i8mm bf16 dgh rng bti mte ecv afp rpres mte3 sme smei16i64 smef64f64 smei8i32 smef16f32
    smeb16f32 smef32f32 smefa64 wfxt ebf16 sveebf16 cssc rprfm sve2p1 sme2 sme2p1 smei16i32
    smebi32i32 smeb16b16 smef16f16 mops hbc sveb16b16 lrcpc3 lse128
"""
HWCAP, HWCAP2 = tuple(_HWCAP.split()), tuple(_HWCAP2.split())

ARM_VENDORS = {
    0x41: "ARM",
    0x42: "Broadcom",
    0x43: "Cavium",
    0x46: "Fujitsu",
    0x48: "HiSilicon",
    0x4E: "NVIDIA",
    0x51: "Qualcomm",
    0x61: "Apple",
    0x6D: "Microsoft",
    0xC0: "Ampere",
}

# Arm's own cores (vendor 0x41); /proc/cpuinfo gives only the part number.
ARM_PARTS = {
    0xC07: "Cortex-A7",
    0xC09: "Cortex-A9",
    0xD03: "Cortex-A53",
    0xD08: "Cortex-A72",
    0xD0B: "Cortex-A76",
    0xD0C: "Neoverse-N1",
    0xD40: "Neoverse-V1",
    0xD49: "Neoverse-N2",
    0xD4F: "Neoverse-V2",
    0xD84: "Neoverse-V3",
    0xD8E: "Neoverse-N3",
}
