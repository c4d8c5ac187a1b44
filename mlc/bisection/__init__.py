"""A wrong answer narrowed: to a level, to an operator of the graph, to a pass.

    trial.py     compile, run and compare one candidate in a process of its own
    search.py    the boundary between good and bad, stepping over what cannot be told
    levels.py    the lowest level that shows the fault; the pass that brings it in
    graph.py     which nodes make a part of a graph, and what goes in and out (names only)
    cut.py       write the graph as it is imported, and parts of it, as ONNX files
    diverging.py the first operator that diverges, and the smallest part around it
    run.py       all of it in order

The method is delta debugging's (Zeller and Hildebrandt, "Simplifying and isolating failure-inducing
input", IEEE TSE 2002), with bisection where the candidates have an order. What is sought is the
kind of fault that the whole model shows. A candidate that fails in another way, because a part was
cut where nothing compiles, say, is neither good nor bad and is stepped over.
"""
