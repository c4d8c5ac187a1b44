"""The form of an artifact's manifest: what opening one relies on, checked before it is used."""

from __future__ import annotations

from typing import Any

from mlc import made
from mlc.sizes import is_size

_TENSORS = [{"name": str, "shape": [(int, str, list)], "dtype": str}]
MEMBER = {"sha256": str, "size": int}
_FORM = {  # what opening an artifact relies on; see `fits`
    "signature": {"inputs": _TENSORS, "outputs": _TENSORS},
    "target": {"name": str, "triple": str, "features": [str]},
    "weights": [{"storage": int, "offset": int, "nbytes": int}],
    "members": {},  # which, the target says
    "versions": {},
}
_BUCKET = {"dims": {}, "signature": _FORM["signature"], "graph": {"offset": int, "nbytes": int},
           "weights": [{"storage": int, "weight": int}]}  # fmt: skip
_BUCKETS_FORM = {**_FORM, "buckets": [_BUCKET], "padding": {"offered": [str], "refused": {}}}
del _BUCKETS_FORM["signature"]  # each bucket has its own


def is_right(manifest: dict[str, Any]) -> bool:
    """Return whether a manifest has the form that its members ask for."""
    form = _BUCKETS_FORM if "buckets" in manifest else _FORM
    return (
        fits(manifest, form) and fits(made.recipes(manifest), [made.FORM]) and _shapes_fit(manifest)
    )


def fits(data: Any, form: Any) -> bool:
    """Return whether JSON data has a form: a type, [form of each item], or {key: form} at least."""
    if isinstance(form, dict):
        return isinstance(data, dict) and all(
            key in data and fits(data[key], inner) for key, inner in form.items()
        )
    if isinstance(form, list):
        return isinstance(data, list) and all(fits(item, form[0]) for item in data)
    return isinstance(data, form) and not isinstance(data, bool)


def _shapes_fit(manifest: dict[str, Any]) -> bool:
    """Return whether shapes are numbers, or sizes of the open dimensions that the manifest names."""
    dims = manifest.get("dynamic", [])
    if not fits(dims, [{"name": str, "least": int, "most": int}]):
        return False
    names = {dim["name"] for dim in dims}
    signatures = [entry["signature"] for entry in manifest.get("buckets", [manifest])]
    tensors = [t for found in signatures for t in (*found["inputs"], *found["outputs"])]
    return all(is_size(size, names) for tensor in tensors for size in tensor["shape"])
