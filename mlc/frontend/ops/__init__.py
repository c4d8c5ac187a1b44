"""Our own converters, by family; `mlc.frontend.operators` has the table.

Each is a function `(inputs, attributes) -> relay expression`, a relay.Tuple where there are several
outputs. Inputs are typed variables, constants, or None where an optional one is left out; attributes
are as the node has them (texts as bytes), with "outputs" (how many the node names) and "opset" beside
them. A converter raises ModelError for what it does not support; the node is named by its caller.
"""
