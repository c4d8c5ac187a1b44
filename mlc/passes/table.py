"""The pass table: every row a pass, every level a pipeline.

Relay rows run on the graph, in table order. `schedule` rows are decisions inside one kernel that
AutoTVM may tune (its knobs); `tir` rows are fixed passes that lower what the schedule decided.
`-O0` to `-O3` each take the rows whose level they reach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mlc.errors import UsageError, did_you_mean
from mlc.passes.attention import take_attention
from mlc.passes.expand_depthwise import take_expand_depthwise
from mlc.passes.fast_math import FAST, take_fast_math
from mlc.passes.fold import fold_module
from mlc.passes.gpu_conv import take_products
from mlc.passes.horizontal import combine_batch_matmul, combine_conv2d, combine_dense
from mlc.passes.layout import alter_layout
from mlc.passes.narrow import take_narrow
from mlc.passes.norm import take_layer_norm
from mlc.passes.pack import pack_dense
from mlc.passes.recurrent import write_out_recurrent
from mlc.passes.reshapes import see_reshapes, sink_reshapes
from mlc.passes.scale import fold_backward, fold_forward
from mlc.passes.whole import NAMES, take_whole
from mlc.passes.winograd import take_winograd

Run = Callable[[Any], Any]
FUSED, UNFUSED = "fuse-operators", "wrap-operators"  # one of them is the last graph pass


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A row: `run` maps a typed Relay module to a typed Relay module (graph stage only).

    A row with `needs` runs only when the module has one of these operators (names, or prefixes
    that end in a dot): on a large graph a pass that finds nothing still costs its type inference.
    A row that is not `exact` computes in another way, with other rounding errors: `--exact` leaves it
    out. A row `for_cpu` prepares schedules that GPUs do not have, one `for_gpu` replaces what has none
    there; one that `needs_sizes` is left out where dimensions stay open.
    """

    name: str
    stage: str  # "relay", "schedule" or "tir"
    level: int
    help: str
    run: Run | None = None
    knobs: str = ""
    needs: tuple[str, ...] = ()
    exact: bool = True
    for_cpu: bool = False
    for_gpu: bool = False
    needs_sizes: bool = False

    def applies(self, operators: Iterable[str]) -> bool:
        """Return whether the row has something to do in a module with these operators."""
        return not self.needs or any(
            name == need or (need.endswith(".") and name.startswith(need))
            for name in operators
            for need in self.needs
        )


def _relay(name: str, *args: Any) -> Run:
    """Return a runner for one of Relay's own passes, resolved when it runs."""

    def run(module: Any) -> Any:
        from tvm import relay

        owner = relay
        for part in ("transform." + name if "." not in name else name).split("."):
            owner = getattr(owner, part)
        return owner(*args)(module)

    return run


PASSES: tuple[Pass, ...] = (
    Pass(name="legalize-quantized", stage="relay", level=0, needs=("qnn.",),
         run=_relay("qnn.transform.Legalize"),
         help="rewrite quantised operators into forms that the target has"),
    Pass(name="lower-quantized", stage="relay", level=0, needs=("qnn.",),
         run=_relay("qnn.transform.CanonicalizeOps"),
         help="express what is left of quantised operators in plain ones"),
    Pass(name="write-out-recurrent", stage="relay", level=0, needs=("mlc.recurrent",), for_gpu=True,
         run=write_out_recurrent, help="for GPUs: RNN, GRU and LSTM step by step"),
    Pass(name="legalize", stage="relay", level=0, run=_relay("Legalize"),
         help="rewrite operators into forms that the target has"),
    Pass(name="simplify-inference", stage="relay", level=0, run=_relay("SimplifyInference"),
         help="batch norm, layer norm, dropout: only the arithmetic that inference needs"),
    Pass(name="fold-constants", stage="relay", level=1, run=fold_module,
         help="evaluate what depends on weights alone, with numpy"),
    Pass(name="eliminate-common-subexpressions", stage="relay", level=2,
         run=_relay("EliminateCommonSubexpr"), help="compute equal expressions once"),
    Pass(name="see-reshapes", stage="relay", level=2, needs=("transpose", "stack"), run=see_reshapes,
         needs_sizes=True, help="transposes and stacks that keep the order of elements are reshapes"),
    Pass(name="layer-norm", stage="relay", level=3, needs=("mean",), run=take_layer_norm,
         help="layer norm over the last axis as one operator"),
    Pass(name="sink-reshapes", stage="relay", level=3, needs=("nn.dense",), run=sink_reshapes,
         help="element-wise operators on the matrices of dense layers, reshapes behind them"),
    Pass(name="combine-parallel-conv2d", stage="relay", level=3, needs=("nn.conv2d",), run=combine_conv2d,
         help="horizontal fusion: three or more convolutions of one input become one"),
    Pass(name="combine-parallel-dense", stage="relay", level=3, needs=("nn.dense",), run=combine_dense,
         help="horizontal fusion: three or more dense layers of one input become one"),
    Pass(name="combine-parallel-batch-matmul", stage="relay", level=3, needs=("nn.batch_matmul",),
         run=combine_batch_matmul,
         help="horizontal fusion: three or more batched products of one input become one"),
    Pass(name="fold-scale-backward", stage="relay", level=2, needs=("multiply",), run=fold_backward,
         help="move per-channel scales (batch norm) into the weights of the layer before"),
    Pass(name="fold-scale-forward", stage="relay", level=2, needs=("multiply",),
         run=fold_forward,
         help="move per-channel scales into the weights of the layer behind"),
    Pass(name="canonicalize-cast", stage="relay", level=1, needs=("cast",), run=_relay("CanonicalizeCast"),
         help="move casts to where fusion can take them in"),
    Pass(name="canonicalize-ops", stage="relay", level=0, needs=("nn.bias_add",), run=_relay("CanonicalizeOps"),
         help="bias_add becomes a broadcast add, so that one rule fuses all"),
    Pass(name="fold-scaled-weights", stage="relay", level=2, run=fold_module,
         help="evaluate what the passes above left on the weights"),
    Pass(name="flatten-atrous-conv", stage="relay", level=2, needs=("nn.batch_to_space_nd",), run=_relay("FlattenAtrousConv"),
         help="space-to-batch, conv, batch-to-space become one dilated convolution"),
    Pass(name="convolutions-as-products", stage="relay", level=3, needs=("nn.conv2d",), run=take_products,
         for_gpu=True, needs_sizes=True, help="for GPUs: 1x1 and patch convolutions as products of filters and pixels"),
    Pass(name="attention", stage="relay", level=3, needs=("nn.softmax",), exact=False,
         run=take_attention, for_cpu=True, needs_sizes=True,
         help="softmax(Q K^T) V of a block of queries at a time, scores in cache (not with --exact)"),
    Pass(name="fast-math", stage="relay", level=3, needs=(*FAST, "mlc.recurrent"), exact=False, run=take_fast_math,
         for_cpu=True,
         help="erf, tanh, exp, sigmoid, softmax, LRN, recurrent layers as arithmetic on vectors (not with --exact)"),
    Pass(name="narrow-products", stage="relay", level=3, needs=("nn.conv2d", "nn.dense"), run=take_narrow,
         for_cpu=True, needs_sizes=True, help="quantised convolutions and dense layers by instructions for 8 or 16 bits"),
    Pass(name="winograd", stage="relay", level=3, needs=("nn.conv2d",), exact=False, run=take_winograd,
         for_cpu=True, needs_sizes=True,
         help="3x3 convolutions with fewer multiplications, where that is faster (not with --exact)"),
    Pass(name="whole-products", stage="relay", level=3, needs=NAMES, run=take_whole,
         for_cpu=True, needs_sizes=True,
         help="products of integers in float32, where that holds all sums exactly"),
    Pass(name="alter-layout", stage="relay", level=3, run=alter_layout, for_cpu=True, needs_sizes=True,
         help="convolutions to blocked NCHWc"),
    Pass(name="reshape-pixels", stage="relay", level=3, needs=("layout_transform",), run=see_reshapes,
         for_cpu=True, needs_sizes=True,
         help="layout transforms of images of one pixel are reshapes"),
    Pass(name="pack-dense-weights", stage="relay", level=3, needs=("nn.dense",), run=pack_dense,
         for_cpu=True,
         help="constant weights of dense layers to panels as wide as the register tile"),
    Pass(name="fold-packed-weights", stage="relay", level=1, run=fold_module,
         help="evaluate the layout transforms of weights"),
    Pass(name="expand-depthwise", stage="relay", level=3, needs=("nn.contrib_depthwise_conv2d_NCHWc",),
         run=take_expand_depthwise, for_cpu=True, needs_sizes=True,
         help="a 1x1 convolution and the depthwise one behind it as one operator, what lies between in cache"),
    Pass(name="fuse-operators", stage="relay", level=1, run=_relay("FuseOps", 2),
         help="vertical fusion: an anchor operator takes in the element-wise ones behind it"),
    Pass(name="wrap-operators", stage="relay", level=0, run=_relay("FuseOps", 0),
         help="-O0 only: every operator its own kernel"),
    Pass(name="tile", stage="schedule", level=0, knobs="tile_ic, tile_oc, tile_ow, tile_oh, "
         "tile, order, rows, columns", help="block loops for registers and caches"),
    Pass(name="vectorize", stage="schedule", level=1, knobs="tile_oc (innermost size), tile",
         help="mark the innermost output loop as vector lanes"),
    Pass(name="unroll", stage="schedule", level=0, knobs="unroll_kw, unroll",
         help="mark short kernel and reduction loops for unrolling"),
    Pass(name="parallelize", stage="schedule", level=0,
         help="mark the outermost blocks as parallel over the thread pool"),
    Pass(name="mlc.version_loops", stage="tir", level=0,
         help="write marked loops twice: for whole tiles without conditions, for partial ones with"),
    Pass(name="tir.LoopPartition", stage="tir", level=0,
         help="split off the tail of loops with likely conditions"),
    Pass(name="tir.VectorizeLoop", stage="tir", level=1,
         help="turn marked loops into vector instructions"),
    Pass(name="mlc.shuffle_loads", stage="tir", level=1,
         help="lanes out of one block of memory: a load and a shuffle instead of a load for each"),
    Pass(name="tir.UnrollLoop", stage="tir", level=0, help="write marked loops out"),
    Pass(name="tir.StorageRewrite", stage="tir", level=0,
         help="share the buffers inside one kernel"),
    Pass(name="tir.HoistIfThenElse", stage="tir", level=0,
         help="move loop-invariant conditions out of loops"),
    Pass(name="mlc.serialize_short_loops", stage="tir", level=0,
         help="run on one thread what takes less time than waking the others"),
    Pass(name="mlc.keep_on_stack", stage="tir", level=0,
         help="buffers no larger than the registers on the stack, from where LLVM lifts them"),
)  # fmt: skip


def pipeline(
    level: int,
    *,
    exact: bool = False,
    without: Sequence[str] = (),
    gpu: bool = False,
    is_open: bool = False,
) -> tuple[Pass, ...]:
    """Return the graph passes of `-O<level>`, in the order they run.

    With `exact` only those that are; with `gpu` those for GPUs alone, else those for CPUs alone; with
    `is_open` only those that do not need all sizes. `without` leaves rows out by name; in the place
    of fusion comes what `-O0` does.

    Raises:
        UsageError: `without` names no pass that can be left out.
    """
    names = [p.name for p in PASSES if p.stage == "relay" and p.name != UNFUSED]
    for name in without:
        if name not in names:
            raise UsageError(f"no graph pass {name!r} to leave out", did_you_mean(name, names))
    other = FUSED if level == 0 or FUSED in without else UNFUSED
    rows = [p for p in PASSES if p.stage == "relay" and p.level <= level and p.name != other]
    rows = [p for p in rows if p.exact or not exact]
    rows = [p for p in rows if not (p.for_cpu if gpu else p.for_gpu)]
    rows = [p for p in rows if p.name not in without and not (is_open and p.needs_sizes)]
    assert rows[-1].name in (FUSED, UNFUSED)
    return tuple(rows)
