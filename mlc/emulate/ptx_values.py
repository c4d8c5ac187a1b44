"""What PTX's arithmetic instructions compute, on numpy arrays with one element a thread.

Meanings follow NVIDIA's "PTX ISA" reference. Not bit-exact everywhere: a fused multiply-add of
float32 is computed in float64 and rounded twice, and approximations (`ex2.approx`) are numpy's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Callable

Array = np.ndarray[Any, Any]
DTYPES: dict[str, np.dtype[Any]] = {
    "pred": np.dtype(np.bool_),
    **{f"{kind}{bits}": np.dtype(f"u{bits // 8}") for kind in "ub" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"f{bits}": np.dtype(f"f{bits // 8}") for bits in (16, 32, 64)},
}
_PAIR = "f16x2"  # of which only conversions are known
_ROUND = {"rn": np.rint, "rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


def compute(words: tuple[str, ...]) -> Callable[..., Array] | None:
    """Return the function of an instruction's sources, None for one that is no arithmetic.

    The function's arguments have the dtypes of `source_types`; its result that of `result_type`.
    """
    name, kind = words[0], words[-1]
    if name in _FAMILIES:
        return _FAMILIES[name](words)
    if kind in ("f16", "f32", "f64") and name in _FLOAT:
        return _flushed(_FLOAT[name]) if "ftz" in words else _FLOAT[name]
    return _PLAIN.get(name)


def source_types(words: tuple[str, ...], count: int) -> list[str]:
    """Return the types of an instruction's `count` sources."""
    name, kind = words[0], words[-1]
    if name == "mad" and "wide" in words:
        return [kind, kind, _twice(kind)]
    special = {
        "selp": [kind, kind, "pred"], "setp": [kind, kind, "pred"], "shl": [kind, "u32"],
        "shr": [kind, "u32"], "bfe": [kind, "u32", "u32"], "shf": [kind, kind, "u32"],
    }  # fmt: skip
    return special.get(name, [kind] * count)[:count]


def result_type(words: tuple[str, ...]) -> str:
    """Return the type of an instruction's result."""
    if words[0] == "setp":
        return "pred"
    if words[0] in ("mul", "mad") and "wide" in words:
        return _twice(words[-1])
    if words[0] == "cvt":
        return "b32" if words[-2] == _PAIR else words[-2]
    return words[-1]


def _twice(kind: str) -> str:
    return f"{kind[0]}{2 * int(kind[1:])}"


_COMPARE: dict[str, Callable[[Array, Array], Array]] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "lo": np.less, "ls": np.less_equal, "hi": np.greater,
    "hs": np.greater_equal,
}  # fmt: skip
_JOIN = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def _setp(words: tuple[str, ...]) -> Callable[..., Array]:
    name, is_float = words[1], words[-1][0] == "f"
    unordered = is_float and name not in _COMPARE
    join = next((_JOIN[word] for word in words[2:-1] if word in _JOIN), None)

    def found(a: Array, b: Array, *others: Array) -> Array:
        with np.errstate(invalid="ignore"):
            if name in ("nan", "num"):
                nan = np.isnan(a) | np.isnan(b)
                result = nan if name == "nan" else ~nan
            else:
                result = _COMPARE[name.removesuffix("u") if unordered else name](a, b)
                if is_float and name == "ne":
                    result &= ~(np.isnan(a) | np.isnan(b))
                if unordered:
                    result |= np.isnan(a) | np.isnan(b)
        return join(result, others[0]) if join else result

    return found


def _pair(upper: Array, lower: Array) -> Array:
    """Return two numbers as halves of one register, the first as the upper one."""
    with np.errstate(over="ignore"):
        halves = [x.astype(np.float16).view(np.uint16).astype(np.uint32) for x in (upper, lower)]
    return (halves[0] << 16) | halves[1]


def _cvt(words: tuple[str, ...]) -> Callable[..., Array]:
    if words[-2] == _PAIR:
        return _pair
    to, source = DTYPES[words[-2]], DTYPES[words[-1]]
    rounding = next((word for word in words[1:-2] if word in _ROUND), "")
    saturate = "sat" in words

    def found(a: Array) -> Array:
        with np.errstate(all="ignore"):
            if to.kind == "f":
                whole = source.kind == "f" and rounding.endswith("i")
                value = (_ROUND[rounding](a) if whole else a).astype(to)
                return (
                    np.clip(np.nan_to_num(value, nan=0.0), 0, 1).astype(to) if saturate else value
                )
            if source.kind == "f":
                limits = np.iinfo(to)
                value = np.nan_to_num(_ROUND[rounding or "rzi"](a.astype(np.float64)), nan=0.0)
                inside = (value > float(limits.min)) & (value < float(limits.max))
                edge = np.where(value > 0, limits.max, limits.min).astype(to)
                return np.where(inside, np.where(inside, value, 0).astype(to), edge)
            return a.astype(to)

    return found


def _product(words: tuple[str, ...]) -> Callable[..., Array]:
    kind = DTYPES[words[-1]]
    if kind.kind == "f":
        return _FLOAT["mul"] if words[0] == "mul" else _fma(words)
    bits = kind.itemsize * 8
    wide = np.dtype(f"{kind.kind}{kind.itemsize * 2}") if bits < 64 else np.dtype(object)

    def found(a: Array, b: Array, *addend: Array) -> Array:
        if "wide" in words:
            value = a.astype(wide) * b.astype(wide)
        elif "hi" in words:
            value = ((a.astype(wide) * b.astype(wide)) >> bits).astype(kind)
        else:
            value = a * b
        return value + addend[0] if addend else value

    return found


def _fma(words: tuple[str, ...]) -> Callable[..., Array]:
    kind = DTYPES[words[-1]]
    wide = np.float64 if kind.itemsize <= 4 else np.longdouble
    toward = {"rm": -np.inf, "rp": np.inf}.get(words[1])

    def found(a: Array, b: Array, c: Array) -> Array:
        with np.errstate(all="ignore"):
            exact = a.astype(wide) * b + c
            value = exact.astype(kind)
            if toward is None:
                return value
            beyond = value > exact if toward < 0 else value < exact
            return np.where(beyond, np.nextafter(value, kind.type(toward)), value)

    return found


def _flushed(function: Callable[..., Array]) -> Callable[..., Array]:
    """Return the function with subnormal operands and results taken for zero."""

    def flush(a: Array) -> Array:
        small = np.abs(a) < np.finfo(a.dtype).tiny
        return np.where(small, np.zeros_like(a), a)

    return lambda *sources: flush(function(*map(flush, sources)))


def _quiet(function: Callable[..., Array]) -> Callable[..., Array]:
    def found(*sources: Array) -> Array:
        with np.errstate(all="ignore"):
            return function(*sources)

    return found


_OF_FLOATS: dict[str, Callable[..., Array]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "abs": np.abs,
    "neg": np.negative, "sqrt": np.sqrt, "rcp": np.reciprocal, "ex2": np.exp2, "lg2": np.log2,
    "sin": np.sin, "cos": np.cos, "tanh": np.tanh, "copysign": lambda a, b: np.copysign(b, a),
    "rsqrt": lambda a: (1 / np.sqrt(a)).astype(a.dtype),
}  # fmt: skip
_FLOAT = {name: _quiet(function) for name, function in _OF_FLOATS.items()}


def _limit(words: tuple[str, ...]) -> Callable[..., Array]:
    """Return min or max; of floats one that is no NaN, if there is one."""
    strict = "NaN" in words or words[-1][0] != "f"
    return {"min": (np.fmin, np.minimum), "max": (np.fmax, np.maximum)}[words[0]][strict]


def _ratio(words: tuple[str, ...]) -> Callable[..., Array]:
    if words[-1][0] == "f":
        return _FLOAT["div"]
    return _divide if words[0] == "div" else _remainder


def _divide(a: Array, b: Array) -> Array:
    by = np.where(b == 0, b.dtype.type(1), b)
    quotient = a // by
    if a.dtype.kind == "i":  # C's division rounds to zero
        quotient = quotient + ((a % by != 0) & ((a < 0) != (by < 0)))
    result: Array = quotient.astype(a.dtype)
    return result


def _remainder(a: Array, b: Array) -> Array:
    result: Array = a - _divide(a, b) * b
    return result


def _shift(a: Array, by: Array, *, left: bool) -> Array:
    bits = a.dtype.itemsize * 8
    most = bits - 1 if a.dtype.kind == "i" and not left else bits
    by = np.minimum(by, most)
    inside = np.minimum(by, bits - 1).astype(a.dtype)
    moved = a << inside if left else a >> inside
    shifted: Array = np.where(by < bits, moved, a.dtype.type(0))
    return shifted


def _extract(a: Array, start: Array, length: Array) -> Array:
    bits = a.dtype.itemsize * 8
    length = np.minimum(length, bits)
    top = _shift(a, np.maximum(bits - (start & 255) - length, 0).astype(np.uint32), left=True)
    value = _shift(top, (bits - length).astype(np.uint32), left=False)
    extracted: Array = np.where(length == 0, a.dtype.type(0), value)
    return extracted


def _select(a: Array, b: Array, condition: Array) -> Array:
    return np.where(condition, a, b)


def _permute(a: Array, b: Array, selector: Array) -> Array:
    pool = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
    value = np.zeros_like(a)
    for k in range(4):
        choice = (selector >> np.uint32(4 * k)) & np.uint32(15)
        if (choice & 8).any():
            raise RunError("the simulator does not know prmt with a sign")
        byte = (pool >> (choice.astype(np.uint64) * np.uint64(8))) & np.uint64(255)
        value |= byte.astype(np.uint32) << np.uint32(8 * k)
    return value


def _funnel(words: tuple[str, ...]) -> Callable[..., Array]:
    if words[1:3] != ("l", "wrap"):
        raise RunError(f"the simulator does not know {'.'.join(words)}")

    def found(a: Array, b: Array, by: Array) -> Array:
        both = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
        return ((both << (by & 31).astype(np.uint64)) >> np.uint64(32)).astype(np.uint32)

    return found


_PLAIN: dict[str, Callable[..., Array]] = {
    "mov": np.copy, "add": np.add, "sub": np.subtract,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.invert,
    "abs": np.abs, "neg": lambda a: (0 - a).astype(a.dtype), "cvta": np.copy,
    "selp": _select, "bfe": _extract, "prmt": _permute,
    "shl": lambda a, by: _shift(a, by, left=True), "shr": lambda a, by: _shift(a, by, left=False),
}  # fmt: skip
_FAMILIES: dict[str, Callable[[tuple[str, ...]], Callable[..., Array]]] = {
    "setp": _setp, "cvt": _cvt, "fma": _fma, "mad": _product, "mul": _product, "div": _ratio,
    "rem": _ratio, "min": _limit, "max": _limit, "shf": _funnel,
}  # fmt: skip
