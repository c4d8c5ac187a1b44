"""From a fused Relay module to machine code: plan the graph, compile the kernels, link them.

Model --graph.plan--> Plan (kernel calls, buffers, weights)
Plan.kernels --kernels.compile_all--> object files --link.link--> shared library
"""
