"""TfIdfVectorizer of numbers: how often each n-gram of a pool occurs.

Source: onnx/docs/Operators.md (TfIdfVectorizer-9). An n-gram may skip up to `max_skip_count` elements
between any two of its own, the same number each time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.errors import ModelError
from mlc.frontend.ops.operands import dtype_of, fixed, shape_of, text

if TYPE_CHECKING:
    from collections.abc import Sequence


def tf_idf(inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """Return counts, weighted as `mode` says, float32 of [columns] or [batch, columns]."""
    from tvm import relay

    if "pool_int64s" not in attributes:
        raise ModelError("n-grams of strings are not supported")
    data, shape = inputs[0], shape_of(inputs[0])
    rows = data if len(shape) == 2 else relay.expand_dims(data, 0)
    pool = np.array(attributes["pool_int64s"])
    columns = list(attributes["ngram_indexes"])
    sums, seen = [], 0
    for size, grams in _grams(pool, attributes["ngram_counts"]):
        counted = attributes["min_gram_length"] <= size <= attributes["max_gram_length"]
        skips = attributes["max_skip_count"] if size > 1 else 0
        sums.append(_count(rows, grams, skips) if counted else _none(rows, len(grams)))
        seen += len(grams)
    # Column k of the result is what has the index k; an index that nobody has stays 0.
    order = np.full(max(columns) + 1, seen)
    order[columns[:seen]] = np.arange(seen)
    found = relay.take(relay.concatenate([*sums, _none(rows, 1)], 1), fixed(order), axis=1)
    weights = np.ones(len(order), np.float32)
    if attributes.get("weights"):
        weights[columns] = attributes["weights"]
    mode = text(attributes, "mode", "TF")
    if mode == "IDF":
        found = relay.cast(found > relay.const(0.0), "float32")
    out = found if mode == "TF" else found * fixed(weights)
    return out if len(shape) == 2 else relay.squeeze(out, [0])


def _grams(pool: Any, starts: Sequence[int]) -> list[tuple[int, Any]]:
    """Return (n, the n-grams as rows): the pool has all 1-grams first, then all 2-grams, ..."""
    ends = [*starts[1:], len(pool)]
    return [
        (n, pool[start:end].reshape(-1, n))
        for n, (start, end) in enumerate(zip(starts, ends, strict=True), 1)
        if end > start
    ]


def _count(rows: Any, grams: Any, skips: int) -> Any:
    from tvm import relay

    size, length, total = grams.shape[1], shape_of(rows)[1], None
    for skip in range(skips + 1):
        places = length - (size - 1) * (skip + 1)
        if places < 1:
            break
        where = np.arange(places)[:, None] + np.arange(size) * (skip + 1)
        windows = relay.expand_dims(relay.take(rows, fixed(where), axis=1), 1)
        equal = relay.equal(windows, fixed(grams[None, :, None].astype(dtype_of(rows))))
        hits = relay.cast(relay.all(equal, [3]), "float32")
        part = relay.sum(hits, [2])
        total = part if total is None else total + part
    return _none(rows, len(grams)) if total is None else total


def _none(rows: Any, count: int) -> Any:
    return fixed(np.zeros((shape_of(rows)[0], count), np.float32))
