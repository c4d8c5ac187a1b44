"""The PTX simulator on hand-written kernels: arithmetic, branches, barriers, bounds, races."""

from __future__ import annotations

import numpy as np
import pytest

from mlc.emulate.ptx_machine import launch
from mlc.emulate.ptx_memory import Memory
from mlc.emulate.ptx_text import entries
from mlc.emulate.ptx_values import DTYPES, compute, result_type, source_types
from mlc.errors import RunError

HEADER = ".version 7.0\n.target sm_80\n.address_size 64\n"

# Each thread of a block puts a value in shared memory and takes its right neighbour's.
ROTATE = """
.visible .entry rotate(
	.param .u64 .ptr .align 1 rotate_param_0,
	.param .u64 .ptr .align 1 rotate_param_1
)
.maxntid 64, 1, 1
{
	.reg .pred %p<2>;
	.reg .b32 %r<9>;
	.reg .b64 %rd<9>;
	.shared .align 16 .b8 shmem$1[256];
	ld.param.b64 	%rd1, [rotate_param_0];
	ld.param.b64 	%rd2, [rotate_param_1];
	cvta.to.global.u64 	%rd3, %rd1;
	mov.u32 	%r1, %tid.x;
	mov.u32 	%r2, %ctaid.x;
	mad.lo.s32 	%r3, %r2, 64, %r1;
	mul.wide.u32 	%rd4, %r3, 4;
	add.s64 	%rd5, %rd3, %rd4;
	ld.global.nc.b32 	%r4, [%rd5];
	mov.b64 	%rd6, shmem$1;
	mul.wide.u32 	%rd7, %r1, 4;
	add.s64 	%rd7, %rd6, %rd7;
	st.shared.b32 	[%rd7], %r4;
	bar.sync 	0;
	add.s32 	%r5, %r1, 1;
	and.b32 	%r5, %r5, 63;
	mul.wide.u32 	%rd8, %r5, 4;
	add.s64 	%rd8, %rd6, %rd8;
	ld.shared.b32 	%r6, [%rd8];
	add.s64 	%rd2, %rd2, %rd4;
	st.global.b32 	[%rd2], %r6;
	ret;
}
"""

# Counts down by divergent loops: thread t writes t * (t + 1) / 2; odd threads then add 100.
DIVERGE = """
.visible .entry diverge(
	.param .u64 .ptr .align 1 diverge_param_0,
	.param .u32 diverge_param_1
)
{
	.reg .pred %p<3>;
	.reg .b32 %r<9>;
	.reg .b64 %rd<4>;
	ld.param.b64 	%rd1, [diverge_param_0];
	ld.param.b32 	%r8, [diverge_param_1];
	mov.u32 	%r1, %tid.x;
	mov.b32 	%r2, 0;
	mov.u32 	%r3, %tid.x;
$L_head:
	setp.eq.b32 	%p1, %r3, 0;
	@%p1 bra 	$L_done;
	add.s32 	%r2, %r2, %r3;
	add.s32 	%r3, %r3, -1;
	bra.uni 	$L_head;
$L_done:
	and.b32 	%r4, %r1, 1;
	setp.ne.b32 	%p2, %r4, 0;
	@!%p2 bra 	$L_even;
	add.s32 	%r2, %r2, %r8;
$L_even:
	mul.wide.u32 	%rd2, %r1, 4;
	add.s64 	%rd3, %rd1, %rd2;
	st.global.b32 	[%rd3], %r2;
	ret;
}
"""


# Halves of thread numbers: both, the other way round, then the high one alone.
HALVES = """
.visible .entry halves(
	.param .u64 .ptr .align 1 halves_param_0
)
{
	.reg .b16 %rs<4>;
	.reg .b32 %r<5>;
	.reg .b64 %rd<4>;
	ld.param.b64 	%rd1, [halves_param_0];
	mov.u32 	%r1, %tid.x;
	mul.lo.s32 	%r2, %r1, 196611;
	mov.b32 	{%rs1, %rs2}, %r2;
	mov.b32 	{_, %rs3}, %r2;
	mov.b32 	%r3, {%rs2, %rs1};
	mov.b32 	%r4, {%rs3, %rs3};
	add.s32 	%r4, %r4, %r3;
	mul.wide.u32 	%rd2, %r1, 4;
	add.s64 	%rd3, %rd1, %rd2;
	st.global.b32 	[%rd3], %r4;
	ret;
}
"""


def execute(text, arrays, grid=(1, 1, 1), block=(64, 1, 1), extra=()):
    (entry,) = entries(HEADER + text).values()
    memory = Memory(arrays, "tensor")
    addresses = [memory.address(k) for k in range(len(arrays))]
    launch(entry, grid, block, [*addresses, *extra], memory)


def rotated(text=ROTATE):
    given = np.arange(192, dtype=np.float32)
    out = np.zeros(192, np.float32)
    execute(text, [given, out], grid=(3, 1, 1))
    return given, out


def test_threads_of_several_blocks_share_memory_block_by_block():
    given, out = rotated()
    np.testing.assert_array_equal(out, np.roll(given.reshape(3, 64), -1, axis=1).reshape(-1))


def test_a_removed_barrier_is_a_race():
    without = ROTATE.replace("\tbar.sync \t0;\n", "")
    with pytest.raises(RunError, match="a race in shared memory: a thread reads what another"):
        rotated(without)


def test_the_barrier_of_a_warp_does_not_order_another():
    with pytest.raises(RunError, match="a race"):
        rotated(ROTATE.replace("bar.sync \t0", "bar.warp.sync \t-1"))


def test_the_barrier_of_a_warp_orders_its_own_threads():
    own = ROTATE.replace("bar.sync \t0", "bar.warp.sync \t-1")
    given, out = np.arange(32, dtype=np.float32), np.zeros(32, np.float32)
    execute(own.replace("%r5, 63", "%r5, 31"), [given, out], block=(32, 1, 1))
    np.testing.assert_array_equal(out, np.roll(given, -1))


def test_a_second_write_without_a_barrier_races_with_the_readers():
    again = ROTATE.replace(
        "\tadd.s64 \t%rd2, %rd2, %rd4;",
        "\tst.shared.b32 \t[%rd7], %r6;\n\tadd.s64 \t%rd2, %rd2, %rd4;",
    )
    with pytest.raises(RunError, match="writes what another reads"):
        rotated(again)


def test_threads_that_write_one_place_race():
    one = ROTATE.replace("mul.wide.u32 \t%rd7, %r1, 4", "mul.wide.u32 \t%rd7, %r2, 4")
    with pytest.raises(RunError, match="writes what another writes"):
        rotated(one)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("and.b32 \t%r5, %r5, 63", "and.b32 \t%r5, %r5, 127", "byte 256 of a shared array of 256"),
        ("ld.shared.b32 \t%r6, [%rd8]", "ld.shared.b32 \t%r6, [%rd8+-4]", "outside of shared"),
        ("[%rd2], %r6", "[%rd2+4], %r6", "bytes 768 to 771 of tensor 1, which has 768"),
        ("[%rd2], %r6", "[%rd2+-4], %r6", "tensor"),
        ("[%rd2], %r6", "[%rd2+2], %r6", "tensor 1"),
        ("st.global.b32", "st.global.v9", "does not know"),
        ("mov.u32 \t%r2, %ctaid.x", "vote.sync.any \t%r2, %ctaid.x", "does not know the instruction"),
    ],
)  # fmt: skip
def test_what_must_not_happen_is_refused(old, new, message):
    assert old in ROTATE
    with pytest.raises(RunError, match=message):
        rotated(ROTATE.replace(old, new))


def test_a_barrier_that_not_all_reach_is_refused():
    some = ROTATE.replace(
        "\tbar.sync \t0;",
        "\tsetp.eq.b32 \t%p1, %r1, 5;\n\t@%p1 bra \t$L_end;\n\tbar.sync \t0;",
    ).replace("\tret;", "$L_end:\n\tret;")
    with pytest.raises(RunError, match="wait at a barrier"):
        rotated(some)


def test_threads_diverge_and_meet_again():
    out = np.zeros(40, np.int32)
    execute(DIVERGE, [out], block=(10, 4, 1), extra=[100])
    thread = np.arange(10)
    expected = thread * (thread + 1) // 2 + 100 * (thread % 2)
    np.testing.assert_array_equal(out[:10], expected)
    assert not out[10:].any()


def test_registers_are_joined_and_taken_apart():
    out = np.zeros(32, np.uint32)
    execute(HALVES, [out], block=(32, 1, 1))
    whole = np.arange(32, dtype=np.uint32) * np.uint32(196611)  # 0x30003
    low, high = whole & 0xFFFF, whole >> 16
    np.testing.assert_array_equal(out, (high | low << 16) + (high | high << 16))


def value(text: str, *sources: object) -> np.ndarray:
    words = tuple(text.split("."))
    kinds = source_types(words, len(sources))
    arrays = [np.atleast_1d(np.array(s, DTYPES[k])) for s, k in zip(sources, kinds, strict=True)]
    function = compute(words)
    assert function is not None
    return function(*arrays).astype(DTYPES[result_type(words)])


@pytest.mark.parametrize(
    ("text", "sources", "expected"),
    [
        ("add.s32", (2**31 - 1, 1), -(2**31)),
        ("mul.hi.u32", (2**31, 6), 3),
        ("mul.hi.s16", (-7281, 20000), (-7281 * 20000) >> 16),
        ("mul.wide.s32", (-3, 2**30), -3 * 2**30),
        ("mul.hi.u64", (2**63, 6), 3),
        ("mad.lo.s32", (3, -4, 5), -7),
        ("mad.wide.u16", (65535, 65535, 1), 65535 * 65535 + 1),
        ("div.s32", (-7, 2), -3),
        ("rem.s32", (-7, 2), -1),
        ("div.u32", (7, 2), 3),
        ("shl.b32", (3, 31), 2**31),
        ("shl.b32", (3, 32), 0),
        ("shr.s32", (-8, 40), -1),
        ("shr.u32", (2**31, 32), 0),
        ("bfe.u32", (0b110100, 2, 3), 0b101),
        ("bfe.s32", (0b110100, 2, 3), -3),
        ("prmt.b32", (0x33221100, 0x77665544, 0x7410), 0x77441100),
        ("shf.l.wrap.b32", (0x80000000, 1, 4), 0x18),
        ("selp.f32", (1.5, 2.5, False), 2.5),
        ("setp.lt.u32", (1, 2**32 - 1), True),
        ("setp.lt.s32", (1, -1), False),
        ("setp.lt.f32", (np.nan, 1), False),
        ("setp.ltu.f32", (np.nan, 1), True),
        ("setp.ne.f32", (np.nan, 1), False),
        ("setp.neu.f32", (np.nan, 1), True),
        ("setp.nan.f32", (np.nan, 1), True),
        ("setp.gt.and.s32", (2, 1, False), False),
        ("max.f32", (np.nan, 1), 1),
        ("max.NaN.f32", (np.nan, 1), np.nan),
        ("min.s32", (-1, 1), -1),
        ("cvt.rzi.s32.f32", (-2.7,), -2),
        ("cvt.rni.s32.f32", (2.5,), 2),
        ("cvt.rzi.s32.f32", (1e20,), 2**31 - 1),
        ("cvt.rzi.u8.f32", (-3.0,), 0),
        ("cvt.rmi.f32.f32", (-2.1,), -3),
        ("cvt.sat.f32.f32", (1.5,), 1),
        ("cvt.rn.f16.f32", (65536.0,), np.inf),
        ("cvt.rn.f16x2.f32", (1.0, -2.0), 0x3C00C000),
        ("cvt.rn.f16x2.f32", (65536.0, 0.0), 0x7C000000),
        ("cvt.s64.s32", (-1,), -1),
        ("cvt.u64.u32", (2**32 - 1,), 2**32 - 1),
        ("fma.rn.f32", (1 + 2**-23, 1 - 2**-23, -1), -(2.0**-46)),
        ("fma.rm.f32", (1, 1, 2**-30), 1),
        ("fma.rp.f32", (1, 1, 2**-30), np.nextafter(np.float32(1), np.float32(2))),
        ("ex2.approx.ftz.f32", (-140.0,), 0),
        ("rsqrt.approx.f32", (4.0,), 0.5),
        ("neg.s32", (5,), -5),
        ("not.b16", (0,), 65535),
    ],
)
def test_arithmetic_means_what_the_reference_says(text, sources, expected):
    (found,) = value(text, *sources)
    assert np.array_equal(found, np.array(expected, found.dtype), equal_nan=found.dtype.kind == "f")
