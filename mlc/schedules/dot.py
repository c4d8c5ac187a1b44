"""Instructions that sum up products of few narrow integers in 32-bit lanes, as tensor intrinsics.

    acc[lane] += sum over q < group of data[q] * weight[lane, q]

with `data` spread over all lanes, all modulo 2^32. None of them saturates on 8-bit values:

| CPU | instruction | data | weights | group | lanes |
|---|---|---|---|---|---|
| 64-bit Arm with `dotprod` | `sdot` | int8 | int8 | 4 | 4 |
| 64-bit Arm | `smull`, sums of pairs | int8 | int8 | 4 | 4 |
| AVX-512 VNNI | `vpdpbusd` | uint8 | int8 | 4 | 16, 8, 4 |
| AVX-VNNI | `vpdpbusd` | uint8 | int8 | 4 | 8, 4 |
| AVX-512BW | `vpmaddwd`, a sum | int16 | int16 | 2 | 16, 8, 4 |
| AVX2 | `vpmaddwd`, a sum | int16 | int16 | 2 | 8, 4 |
| SSE 4.1 | `pmaddwd`, a sum | int16 | int16 | 2 | 4 |

`vpmaddubsw` would take 8 bits on AVX2, but its sums of two products saturate at 16 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm import te, tir
from tvm.target import Target
from tvm.target.codegen import target_has_features
from tvm.topi.arm_cpu import tensor_intrin

if TYPE_CHECKING:
    from collections.abc import Callable


ARM, X86 = "conv2d_narrow_mlc.arm", "conv2d_narrow_mlc.x86"  # templates


@dataclass(frozen=True, kw_only=True)
class Dot:
    """An instruction, and the register tile that suits it.

    `data` and `weight` are dtypes of its operands; `lanes` those of its longest form, and a shorter one
    takes a shorter block of filters. Activations lie in `blocks` of channels, the largest that divides
    them; the last divides all channels that the template takes. Of `registers` vectors, a tile without
    a measurement takes `default`; `spare` ones hold neither sums nor weights.
    """

    template: str
    data: str
    weight: str
    group: int
    lanes: int
    blocks: tuple[int, ...]
    registers: int
    default: int
    spare: int
    intrinsic: Callable[[int], Any]

    def block(self, channels: int) -> int:
        """Return the block of channels, or of filters."""
        return next(size for size in self.blocks if channels % size == 0)

    def vector(self, block: int) -> int:
        """Return the lanes of the form for a block of filters."""
        return min(self.lanes, block)


def of_target() -> Dot | None:
    """Return the best instruction of the current target, None if it has none of them."""
    features = Target.current(allow_none=False).features
    if features.is_aarch64:
        return _ARM if features.has_asimd else None
    for dot, needed in _X86:
        if target_has_features(needed):
            return dot
    return None


def _neon(lanes: int) -> Any:
    if Target.current(allow_none=False).features.has_dotprod:
        return tensor_intrin.dot_int8_int8_int32_neon_82(int32_lanes=lanes, dtype="int")
    return tensor_intrin.dot_int8_int8_int32_neon()


def _vpdpbusd(lanes: int) -> Any:
    name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"

    def step(acc: Any, data: Any, weight: Any) -> Any:
        return _llvm(f"int32x{lanes}", name, acc, data, weight)

    return _declared("uint8", "int8", 4, lanes, step)


def _vpmaddwd(lanes: int) -> Any:
    name = {4: "sse2.pmadd.wd", 8: "avx2.pmadd.wd", 16: "avx512.pmaddw.d.512"}[lanes]

    def step(acc: Any, data: Any, weight: Any) -> Any:
        return acc + _llvm(f"int32x{lanes}", f"llvm.x86.{name}", data, weight)

    return _declared("int16", "int16", 2, lanes, step)


def _llvm(dtype: str, name: str, *operands: Any) -> Any:
    """Return the call of an LLVM intrinsic that has one signature only: none of its types is named."""
    return tir.call_llvm_pure_intrin(dtype, name, tir.const(0, "uint32"), *operands)


def _declared(
    data: str, weight: str, group: int, lanes: int, step: Callable[[Any, Any, Any], Any]
) -> Any:
    """Return the tensor intrinsic of `step`, which maps vectors (sums, data, weights) to new sums."""
    x = te.placeholder((group,), data, name="data")
    w = te.placeholder((lanes, group), weight, name="weight")
    q = te.reduce_axis((0, group), "q")
    total = te.compute(
        (lanes,),
        lambda lane: te.sum(x[q].astype("int32") * w[lane, q].astype("int32"), q),
        name="total",
    )
    sums, whole = f"int32x{lanes}", f"{data}x{lanes * group}"

    def body(ins: Any, outs: Any) -> Any:
        pixel, taps = ins
        (acc,) = outs
        word = tir.reinterpret("int32", pixel.vload([0], f"{data}x{group}"))
        spread = tir.reinterpret(whole, tir.Broadcast(word, lanes))
        weights = taps.vload([0, 0], f"{weight}x{lanes * group}")
        zero = tir.const(0, sums)

        def store(value: Any) -> Any:
            return acc.vstore([0], value)

        first = step(zero, spread, weights)
        return store(first), store(zero), store(step(acc.vload([0], sums), spread, weights))

    def buffer(tensor: Any, strides: list[Any]) -> Any:
        return tir.decl_buffer(
            tensor.shape, tensor.dtype, tensor.name, offset_factor=1, strides=strides
        )

    binds = {x: buffer(x, [1]), w: buffer(w, [group, 1])}
    return te.decl_tensor_intrin(
        total.op, body, binds=binds, default_buffer_params={"offset_factor": 1}
    )


_ARM = Dot(
    template=ARM, data="int8", weight="int8", group=4, lanes=4, blocks=(8, 4),
    # With a tile that leaves fewer registers free LLVM 22 moves sums around in the inner loop.
    registers=32, default=20, spare=1, intrinsic=_neon,
)  # fmt: skip
_VNNI_512 = Dot(
    template=X86, data="uint8", weight="int8", group=4, lanes=16, blocks=(16, 8, 4),
    registers=32, default=24, spare=1, intrinsic=_vpdpbusd,
)  # fmt: skip
_VNNI = Dot(
    template=X86, data="uint8", weight="int8", group=4, lanes=8, blocks=(8, 4),
    registers=16, default=16, spare=1, intrinsic=_vpdpbusd,
)  # fmt: skip
_WORDS_512 = Dot(
    template=X86, data="int16", weight="int16", group=2, lanes=16, blocks=(16, 8, 4),
    registers=32, default=18, spare=2, intrinsic=_vpmaddwd,
)  # fmt: skip
_WORDS = Dot(
    template=X86, data="int16", weight="int16", group=2, lanes=8, blocks=(8, 4),
    registers=16, default=12, spare=2, intrinsic=_vpmaddwd,
)  # fmt: skip
_WORDS_128 = Dot(
    template=X86, data="int16", weight="int16", group=2, lanes=4, blocks=(8, 4),
    registers=16, default=12, spare=2, intrinsic=_vpmaddwd,
)  # fmt: skip
_X86 = (
    (_VNNI_512, ["avx512vnni", "avx512vl"]),
    (_VNNI, ["avxvnni"]),
    (_WORDS_512, ["avx512bw", "avx512vl"]),
    (_WORDS, ["avx2"]),
    (_WORDS_128, ["sse4.1"]),
)
