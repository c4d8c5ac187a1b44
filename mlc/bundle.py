"""One artifact for several targets, a bundle: opening it picks the variant that fits the machine.

A plain zip like an artifact (`mlc.artifact`), members stored, in this order: `bundle.json`; of each
variant, numbered from 0, what its artifact has (`0/manifest.json`, `0/library.so`, `0/graph.json`);
`weights.bin`, where a weight that several variants have in equal bytes lies once. `bundle.json`
holds where each weight of each variant begins. The manifests are those of the artifacts, byte for
byte, so a variant's weights are checked against the hash that its artifact had.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import zipfile
from collections import Counter
from typing import IO, TYPE_CHECKING, Any

from mlc import artifact
from mlc.artifact import MANIFEST, WEIGHTS, Artifact, Mapped
from mlc.cpu import HostCpu, host_cpu
from mlc.errors import ArtifactError, UsageError
from mlc.fit import check_gpu, is_for_gpu, misfit
from mlc.form import fits
from mlc.gpu.device import architecture
from mlc.made import ALIGNMENT
from mlc.new_file import new_file
from mlc.options import MAX_MANIFEST_BYTES, MAX_VARIANTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

FORMAT = 1
INDEX = "bundle.json"


def is_bundle(path: Path) -> bool:
    """Return whether a file begins like a bundle; opening it checks the rest."""
    try:
        with path.open("rb") as file:
            head = file.read(30 + len(INDEX))
    except OSError:
        return False
    return head[:4] == b"PK\x03\x04" and head[30:] == INDEX.encode()


def load(
    path: Path,
    cpu: HostCpu | None = None,
    *,
    target: str | None = None,
    for_gpu: bool = False,
    capability: tuple[int, int] | None = None,
) -> Artifact:
    """Return an artifact, checked as `artifact.load` says; of a bundle the variant that fits best.

    That is the one with the most features that `cpu` (None: this machine's) has; with `for_gpu` the
    one for the newest GPUs that `capability` (8, 0) allows. `target` names one instead.

    Raises:
        ArtifactError: a check failed, or nothing fits; what is inside is listed then.
    """
    if not is_bundle(path):
        if target is not None:
            _named(path, [artifact.read_manifest(path)], target)
        return artifact.load(path, cpu, for_gpu=for_gpu)
    found = _Bundle(path).variants()
    manifests = [variant.manifest() for variant in found]
    if target is not None:
        chosen = _named(path, manifests, target)
    elif for_gpu:
        chosen = _newest(path, manifests, capability)
    else:
        chosen = _richest(path, manifests, cpu or host_cpu())
    return artifact.load_from(found[chosen], cpu, for_gpu=for_gpu)


def read_manifests(path: Path) -> list[dict[str, Any]]:
    """Return the manifest of an artifact, or those of a bundle's variants; nothing else is read.

    Raises:
        ArtifactError: no artifact, damaged, or of a newer format.
    """
    if not is_bundle(path):
        return [artifact.read_manifest(path)]
    with contextlib.closing(_Bundle(path)) as bundle:
        return [variant.manifest() for variant in bundle.variants()]


def read_manifest(path: Path, target: str | None = None) -> dict[str, Any]:
    """Return the manifest for a target; None: the one that this machine would run, else the first.

    Raises:
        ArtifactError: as `read_manifests`; or it holds nothing for the target.
    """
    manifests = read_manifests(path)
    if target is not None:
        return manifests[_named(path, manifests, target)]
    chosen = here(manifests)
    return manifests[chosen or 0]


def here(manifests: Sequence[Mapping[str, Any]]) -> int | None:
    """Return which of some manifests this machine's CPU would run: the one with most features."""
    return _most_features(manifests, host_cpu())


def require_gpu(path: Path) -> None:
    """Raise ArtifactError unless something in the file is for a GPU."""
    manifests = read_manifests(path)
    if not any(is_for_gpu(manifest["target"]) for manifest in manifests):
        check_gpu(path, manifests[0])


def save(sources: Sequence[Path], path: Path) -> dict[str, int]:
    """Write the artifacts `sources` as one bundle, whole or not at all.

    Returns:
        Bytes of weights: `stored`, and `shared`, what is not stored again.

    Raises:
        ArtifactError: a source is damaged.
        UsageError: the place cannot be written, or there are too many sources.
    """
    if not 1 <= len(sources) <= MAX_VARIANTS:
        raise UsageError(f"an artifact holds 1 to {MAX_VARIANTS} targets, not {len(sources)}")
    with contextlib.ExitStack() as opened:
        mapped = [opened.enter_context(contextlib.closing(Mapped(source))) for source in sources]
        index, pieces = _pool(mapped)
        with new_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            _write(archive, file, mapped, index, pieces)
        stored = sum(_padded(size) for *_, size in pieces)
        total = sum(one.entries[WEIGHTS].file_size for one in mapped)
    return {"stored": stored, "shared": total - stored}


_Piece = tuple[Mapped, int, int]  # a weight: where it lies, its offset and size in bytes


def _pool(sources: Iterable[Mapped]) -> tuple[list[list[int]], list[_Piece]]:
    """Return where each weight of each source goes, and the weights to be written, in order.

    Equal weights of one source stay apart: what a variant has fits into the pool, which bounds the
    work of checking it.
    """
    places: dict[tuple[bytes, int], int] = {}
    pieces: list[_Piece] = []
    index, end = [], 0
    for source in sources:
        seen: Counter[bytes] = Counter()
        offsets = []
        for entry in source.manifest()["weights"]:
            piece = (source, entry["offset"], entry["nbytes"])
            digest = hashlib.sha256(_bytes(piece)).digest()
            key = (digest, seen[digest])
            seen[digest] += 1
            if key not in places:
                places[key] = end
                pieces.append(piece)
                end += _padded(entry["nbytes"])
            offsets.append(places[key])
        index.append(offsets)
    return index, pieces


def _bytes(piece: _Piece) -> memoryview:
    source, start, size = piece
    return source.member(WEIGHTS)[start : start + size]


def _padded(size: int) -> int:
    return size + (-size) % ALIGNMENT


def _write(
    archive: zipfile.ZipFile,
    file: IO[bytes],
    sources: Sequence[Mapped],
    index: list[list[int]],
    pieces: Iterable[_Piece],
) -> None:
    artifact.add_member(archive, file, INDEX, artifact.encode({"format": FORMAT, "weights": index}))
    for number, source in enumerate(sources):
        for name in source.entries:
            if name != WEIGHTS:
                artifact.add_member(archive, file, f"{number}/{name}", source.member(name))
    with archive.open(artifact.member_info(file, WEIGHTS), "w", force_zip64=True) as member:
        for piece in pieces:
            member.write(_bytes(piece))
            member.write(b"\0" * (-piece[2] % ALIGNMENT))


class _Bundle(Mapped):
    """A bundle's file, mapped; its form checked."""

    def expects(self, names: tuple[str, ...]) -> bool:
        """Return whether these are an index, the members of some artifacts, and a pool."""
        return (
            len(names) > 2
            and (names[0], names[-1]) == (INDEX, WEIGHTS)
            and all(
                number < MAX_VARIANTS and folder == str(number) and artifact.is_layout(inside)
                for number, (folder, inside) in enumerate(_folders(names[1:-1]))
            )
        )

    def variants(self) -> list[_Variant]:
        """Return the variants, in order."""
        index = self.read_json(INDEX, FORMAT)
        folders = [folder for folder, _ in _folders(tuple(self.entries)[1:-1])]
        if not fits(index, {"weights": [[int]]}) or len(index["weights"]) != len(folders):
            raise self.damaged("its index has another form than its format says")
        sizes = [self.entries[f"{folder}/{MANIFEST}"].file_size for folder in folders]
        if sum(sizes) > MAX_MANIFEST_BYTES:
            raise self.damaged("its manifests are too large")
        return [_Variant(self, *of) for of in zip(folders, index["weights"], strict=True)]


def _folders(names: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each folder, and the members of an artifact that are there or shared."""
    for folder, group in itertools.groupby(names, lambda name: name.partition("/")[0]):
        yield folder, (*(name.partition("/")[2] for name in group), WEIGHTS)


class _Variant(Mapped):
    """An artifact within a bundle: its weights lie here and there in the bundle's."""

    def __init__(self, bundle: _Bundle, folder: str, offsets: list[int]):
        self.path, self.map = bundle.path, bundle.map
        names = [name for name in bundle.entries if name.startswith(f"{folder}/")]
        self.entries = {name.partition("/")[2]: bundle.entries[name] for name in names}
        self.entries[WEIGHTS] = bundle.entries[WEIGHTS]
        self._manifest = self._relocated(super().manifest(), offsets)

    def manifest(self) -> dict[str, Any]:
        """Return the manifest, weights at their places in the bundle."""
        return self._manifest

    def _relocated(self, manifest: dict[str, Any], offsets: list[int]) -> dict[str, Any]:
        weights, room = manifest["weights"], self.entries[WEIGHTS].file_size
        sizes = [entry["nbytes"] for entry in weights]
        if len(sizes) != len(offsets) or not all(
            0 <= start <= start + size <= room for start, size in zip(offsets, sizes, strict=True)
        ):
            raise self.damaged("a weight lies outside its member")
        if sum(map(_padded, sizes)) > room:
            raise self.damaged("its weights are larger than their member")
        moved = [{**entry, "offset": start} for entry, start in zip(weights, offsets, strict=True)]
        return {**manifest, "weights": moved}

    def chunks(self, name: str) -> Iterator[memoryview | bytes]:
        """Yield a member's bytes; of the weights those of this variant, as in its artifact."""
        view = self.member(name)
        if name != WEIGHTS:
            yield view
            return
        for entry in self._manifest["weights"]:
            yield view[entry["offset"] : entry["offset"] + entry["nbytes"]]
            yield b"\0" * (-entry["nbytes"] % ALIGNMENT)


def _named(path: Path, manifests: Sequence[Mapping[str, Any]], text: str) -> int:
    """Return which manifest is for a target, in any of its spellings."""
    from mlc.target import resolve

    targets = [manifest["target"] for manifest in manifests]
    for number, target in enumerate(targets):
        if text in (target["name"], target.get("tvm")):
            return number
    wanted = resolve(text).tvm
    for number, target in enumerate(targets):
        if target.get("tvm") == wanted:
            return number
    raise ArtifactError(
        f"{path} holds nothing for {text}, but for {names(targets)}",
        f"compile it for that too: add `--target {text}`",
    )


def _richest(path: Path, manifests: Sequence[Mapping[str, Any]], cpu: HostCpu) -> int:
    chosen = _most_features(manifests, cpu)
    if chosen is not None:
        return chosen
    listing = "\n".join(
        f"  {target['name']}: {misfit(target, cpu)}"
        for target in (manifest["target"] for manifest in manifests)
    )
    raise ArtifactError(
        f"{path} holds nothing that this machine can run:\n{listing}",
        "compile it for this one too (`--target llvm`), or run it on a GPU with `--device cuda`",
    )


def _most_features(manifests: Sequence[Mapping[str, Any]], cpu: HostCpu) -> int | None:
    fitting = [k for k, found in enumerate(manifests) if not misfit(found["target"], cpu)]
    return max(fitting, key=lambda k: len(set(manifests[k]["target"]["features"])), default=None)


def _newest(
    path: Path, manifests: Sequence[Mapping[str, Any]], capability: tuple[int, int] | None
) -> int:
    targets = [manifest["target"] for manifest in manifests]
    wanted = {
        k: architecture(str(target.get("tvm")))
        for k, target in enumerate(targets)
        if is_for_gpu(target)
    }
    fitting = {
        k: found
        for k, found in wanted.items()
        if found is not None and (capability is None or found <= capability)
    }
    if fitting:
        return max(fitting, key=lambda k: fitting[k])
    raise ArtifactError(
        f"{path} holds nothing that this GPU can run, but {names(targets)}",
        "compile it for this one too: `--target cuda:sm_80`, or as `mlc targets` says",
    )


def names(targets: Iterable[Mapping[str, Any]]) -> str:
    """Return the names of manifests' targets as text."""
    return ", ".join(str(target["name"]) for target in targets)
