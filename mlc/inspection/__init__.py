"""Look inside: what a model or an artifact holds, what each pass does, and the IR on the way.

    summary.py    a model: facts of the file, kernels, what the passes did
    graph.py      what the graph passes did, a row each
    loops.py      what schedules and TIR passes do to the loops of one kernel, counted
    loop_rows.py  the same over all kernels, a row for each decision and pass
    packed.py     an artifact: its manifest in readable form
    dump.py       Relay, TIR, LLVM IR and assembly as files

Nothing here changes what is compiled: the same functions run as for `mlc compile`, observed.
"""

from mlc.inspection.dump import PassDump, dump_kernel
from mlc.inspection.packed import inspect_artifact
from mlc.inspection.summary import inspect_model

__all__ = ["PassDump", "dump_kernel", "inspect_artifact", "inspect_model"]
