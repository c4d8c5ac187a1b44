"""From a model's name to what is timed: the ONNX file, artifacts, inputs and reference outputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.suite import peers, tvmc
from benchmarks.tune import setup as tuning
from mlc import api, isolate
from mlc.artifact import read_manifest
from mlc.cache import open_cache, source_digest
from mlc.cpu import host_cpu, physical_cores
from mlc.errors import BuildError, UsageError
from mlc.model import TensorSpec
from mlc.target import resolve
from mlc.tune.peak import peak_gflops

if TYPE_CHECKING:
    from benchmarks.suite.models import Subject
    from mlc.events import OnEvent

SEED = 0


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What to measure: `rounds` blocks of `seconds` for every entrant, on `threads` threads.

    With `trials`, each model is tuned first, its records in the folder `logs`.
    """

    out: Path
    logs: Path
    peers: tuple[str, ...]
    threads: int
    trials: int = 0
    target: str = "llvm"
    rounds: int = 24
    seconds: float = 0.12

    @property
    def avx2(self) -> bool:
        """Whether peers are held to AVX2: code for AVX2 is timed on a machine that has AVX-512."""
        features = resolve(self.target).features
        return "avx512f" in host_cpu().features and "avx2" in features and "avx512f" not in features

    @property
    def commands(self) -> tuning.Setup:
        """Where and how mlc's commands run: as in `benchmarks.tune`."""
        return tuning.Setup(out=self.out, target=self.target, trials=self.trials)

    def facts(self) -> dict[str, Any]:
        """Return what a kept result must have been measured with."""
        return {
            "target": resolve(self.target).tvm,
            "avx2": self.avx2,
            "trials": self.trials,
            "threads": self.threads,
            "rounds": self.rounds,
            "seconds": self.seconds,
            "cpu": host_cpu().name,
            "versions": {name: peers.version(name) for name in (peers.OURS, *self.peers)},
            "mlc": source_digest()[:12],
        }

    def peak(self) -> float | None:
        """Return the fp32 GFLOP/s that this machine reaches at most."""
        return peak_gflops(resolve(self.target), self.threads, open_cache())


@dataclass(frozen=True, kw_only=True)
class Feed:
    """What `make_feed` needs: the ONNX file, its artifact, where inputs and outputs go."""

    onnx: str
    artifact: str
    folder: str


def prepare(setup: Setup, subject: Subject) -> list[peers.Job]:
    """Export, tune, compile and verify a model; return what the workers are to load, mlc first.

    Raises:
        UsageError: a command failed.
    """
    folder = setup.out / subject.name
    onnx, artifact = folder / f"{subject.name}.onnx", folder / f"{subject.name}.mlc"
    folder.mkdir(parents=True, exist_ok=True)
    if not onnx.exists():
        tuning.say(f"{subject.name}: exporting")
        api.export(subject.factory, subject.inputs(), onnx)
    if setup.trials:
        tune(setup, subject, onnx)
    without = setup.out / "no-logs"
    without.mkdir(exist_ok=True)
    compiled(setup, onnx, artifact, setup.logs if setup.trials else without)
    feed = Feed(onnx=str(onnx), artifact=str(artifact), folder=str(folder))
    isolate.call("benchmarks.suite.setup:make_feed", feed)
    artifacts = dict.fromkeys((peers.OURS, *setup.peers), artifact)
    if peers.UNTUNED in setup.peers:
        artifacts[peers.UNTUNED] = folder / "untuned.mlc"
        compiled(setup, onnx, artifacts[peers.UNTUNED], without)
    if "tvmc" in setup.peers:
        artifacts["tvmc"] = _tvmc(setup, subject, onnx)
    return [
        peers.Job(
            peer=name, onnx=str(onnx), artifact=str(path), factory=subject.factory,
            inputs=str(folder / "inputs.npz"), threads=setup.threads, avx2=setup.avx2,
        )
        for name, path in artifacts.items()
    ]  # fmt: skip


def tune(setup: Setup, subject: Subject, onnx: Path) -> None:
    """Run `mlc tune`; what its logs hold already is not measured again."""
    tuning.say(f"{subject.name}: mlc tune, {setup.trials} trials in all")
    tuning.mlc(
        setup.commands, "tune", onnx, "--target", setup.target, "--trials", setup.trials,
        "--threads", setup.threads, "--logs", setup.logs,
        log=onnx.parent / "tune.jsonl",
    )  # fmt: skip


def compiled(setup: Setup, onnx: Path, artifact: Path, logs: Path) -> None:
    """Run `mlc compile` with the records in `logs`."""
    tuning.say(f"{onnx.stem}: compiling{'' if logs == setup.logs else ', untuned'}")
    tuning.mlc(
        setup.commands, "compile", onnx, "-o", artifact, "--target", setup.target, "--logs", logs
    )


def _tvmc(setup: Setup, subject: Subject, onnx: Path) -> Path:
    """Return tvmc's package; where it fails one that is not there, so that the entrant fails, too."""
    try:
        return tvmc.package(onnx, setup.target, setup.trials)
    except BuildError as error:
        tuning.say(f"{subject.name}: tvmc failed: {error.message}")
        return onnx.with_suffix(".no-package")


def make_feed(fields: dict[str, Any], _on_event: OnEvent) -> None:
    """Write inputs.npz and reference.npz, arrays by position; runs in a child.

    The reference is ONNX Runtime's with its graph optimizer off.
    """
    from mlc.runtime import inputs
    from mlc.runtime.reference import Reference

    feed = Feed(**fields)
    manifest = read_manifest(Path(feed.artifact))
    specs = [
        TensorSpec(name=spec["name"], shape=tuple(spec["shape"]), dtype=spec["dtype"])
        for spec in manifest["signature"]["inputs"]
    ]
    arrays = inputs.random(specs, SEED, manifest.get("index_bounds", {}))
    reference = Reference(Path(feed.onnx))
    outputs = reference.run(arrays)
    folder = Path(feed.folder)
    peers.write_arrays(folder / "inputs.npz", [arrays[name] for name in reference.inputs])
    peers.write_arrays(folder / "reference.npz", [outputs[name] for name in reference.outputs])


def check(setup: Setup) -> None:
    """Raise UsageError for what cannot work, before anything is done."""
    if setup.trials < 0 or setup.rounds < 1 or setup.threads < 1 or not setup.seconds > 0:
        raise UsageError("--trials needs 0 or more; --rounds, --threads and --seconds more than 0")
    if "tvmc" in setup.peers and not setup.trials:
        raise UsageError("the peer tvmc is timed tuned, as mlc then is", "add --trials 500")
    if "tvmc" in setup.peers and setup.threads != physical_cores():
        raise UsageError("the peer tvmc is tuned for all cores", "leave out --threads")
