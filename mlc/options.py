"""One frozen options object per verb; every default of the program stands here and nowhere else.

Options are plain data (strings, numbers, tuples): they travel to the worker process as JSON.
"""

from __future__ import annotations

from dataclasses import dataclass

OPT_LEVELS = (0, 1, 2, 3)


@dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """What `mlc compile` is asked to do.

    `shapes` holds `--shape` options as written (`name:1,3,224,224`, `batch=1`, or several sizes
    `batch=1,4`: a bucket for each, in one artifact); `dynamic` names dimensions that stay open ("*":
    all of them); `records` names
    an AutoTVM log whose configs are applied instead of those in the folder `logs` (None:
    `tuning_logs` here, if there is one); `require_tuned` is the share of the work that records of
    this very device must cover; `exact` refuses algorithms with other rounding errors than the
    model's own (Winograd's); `without` names graph passes that are left out; `jobs` is the number of processes that compile
    kernels (None: one per core).
    """

    model: str
    output: str | None = None
    target: str = "llvm"
    opt_level: int = 3
    shapes: tuple[str, ...] = ()
    dynamic: tuple[str, ...] = ()
    records: str | None = None
    logs: str | None = None
    require_tuned: float | None = None
    exact: bool = False
    without: tuple[str, ...] = ()
    verify: bool = True
    seed: int = 0
    cache: bool = True
    jobs: int | None = None
    dump_ir: str | None = None
    kernel: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What `mlc run` is asked to do; `inputs` holds `--input` options as written.

    `device` is "cpu", or "cuda" for a GPU. `shapes` are sizes of open dimensions, for random inputs.
    """

    artifact: str
    inputs: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    random: bool = False
    seed: int = 0
    output: str | None = None
    threads: int | None = None
    allow_nan: bool = False
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What `mlc bench` is asked to do; times in seconds.

    `against` is None or "onnxruntime", which then needs `model`, the ONNX file. `shapes` choose one
    of the artifact's buckets (the first, if empty), or sizes of open dimensions. `device` is "cpu", or
    "cuda" for a GPU.
    """

    artifact: str
    shapes: tuple[str, ...] = ()
    model: str | None = None
    against: str | None = None
    device: str = "cpu"
    warmup: float = 0.5
    duration: float = 3.0
    threads: int | None = None
    seed: int = 0
    profile: bool = False


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """What `mlc verify` is asked to do; `rounds` is how many seeded inputs are compared.

    `target` names the variant of an artifact for several (None: what fits this machine, or the only
    one that can be emulated). `shapes` are sizes of open dimensions (without any: several of each).

    `emulate` runs the artifact in an emulator; for Arm the first time that fetches a library.
    `device` is where it runs otherwise: "cpu", or "cuda" for a GPU.
    """

    artifact: str
    model: str
    seed: int = 0
    rounds: int = 1
    inputs: tuple[str, ...] = ()
    target: str | None = None
    shapes: tuple[str, ...] = ()
    emulate: bool = False
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """What `mlc inspect` is asked to do with a model (or an artifact)."""

    path: str
    target: str = "llvm"
    opt_level: int = 3
    shapes: tuple[str, ...] = ()
    passes: bool = False
    relay: bool = False
    dump_ir: str | None = None
    kernel: str | None = None


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """What `mlc check` is asked to look at; `shapes` and `dynamic` as for `CompileOptions`."""

    path: str
    shapes: tuple[str, ...] = ()
    dynamic: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BisectOptions:
    """What `mlc bisect` is asked to narrow; fields as for `CompileOptions`.

    `output` is where the small model goes that shows the fault by itself.
    """

    model: str
    output: str = "culprit.onnx"
    target: str = "llvm"
    opt_level: int = 3
    shapes: tuple[str, ...] = ()
    dynamic: tuple[str, ...] = ()
    records: str | None = None
    logs: str | None = None
    exact: bool = False
    seed: int = 0
    cache: bool = True
    jobs: int | None = None


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What `mlc export` is asked to do.

    `factory` is `package.module:callable` that returns a torch module; each of `inputs` is a shape
    with an optional dtype, `1,3,224,224` or `ids:int64:1,128`.
    """

    factory: str
    inputs: tuple[str, ...]
    output: str
    exporter: str = "dynamo"  # or "torchscript"
    opset: int | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What `mlc build` is asked to do with the folder's mlc.toml.

    `output` replaces the file's; `jobs` bounds the compiles at work at a time (None: the file's,
    else cores), as free memory does; `fail_fast` starts no other after a failed one; with
    `dry_run` the plan is made and nothing is built.
    """

    folder: str = "."
    output: str | None = None
    jobs: int | None = None
    fail_fast: bool = False
    dry_run: bool = False
    cache: bool = True


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """Where compiled kernels are kept and how large that folder may grow (bytes)."""

    directory: str | None = None
    max_bytes: int = 2 << 30


# Bounds on untrusted input, in one place.
MAX_MANIFEST_BYTES = 64 << 20
MAX_TENSOR_BYTES = 16 << 30
MAX_TENSOR_RANK = 16
MAX_MODEL_NODES = 200_000
MAX_BUCKETS = 32  # combinations of sizes that one artifact is compiled for
MAX_INPUT_FILE_BYTES = 8 << 30
MAX_VARIANTS = 64  # of one artifact, for several targets


@dataclass(frozen=True, kw_only=True)
class RpcTrackerOptions:
    """Where `mlc rpc tracker` listens; port 0 is any free one."""

    host: str = "127.0.0.1"
    port: int = 9190


@dataclass(frozen=True, kw_only=True)
class RpcServerOptions:
    """What `mlc rpc server` offers this machine as (`key`), to whom, and where it listens.

    `device` is "cpu", or "cuda" to offer its GPU as well.
    """

    key: str
    device: str = "cpu"
    tracker: str = "127.0.0.1:9190"
    host: str = "127.0.0.1"
    port: int = 9091


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """What `mlc tune` is asked to do.

    `trials` is the total over all tasks, `budget` the time in seconds (None: no limit); whichever
    ends first. `tasks` filters by position ("0,2-4") or by part of a task's name. With `tracker`
    (HOST:PORT) the devices that it has under `key` measure, instead of this machine.
    """

    model: str | None = None
    target: str = "llvm"
    opt_level: int = 3
    shapes: tuple[str, ...] = ()
    logs: str | None = None
    trials: int = 500
    budget: float | None = None
    tasks: str | None = None
    tuner: str = "xgb"  # or random, grid, ga
    features: str = "knob"  # or itervar
    loss: str = "rank"  # or reg
    transfer: bool = True
    batch: int = 16
    seed: int = 0
    threads: int | None = None
    top_k: int = 3
    build_timeout: float = 20.0
    run_timeout: float = 10.0
    memory_bytes: int = 4 << 30
    tracker: str | None = None
    key: str | None = None
    report: str | None = None
