"""From an ONNX file to a `Model`: read, fix shapes, simplify, convert.

`load` runs them all:

path --onnx_file.read--> OnnxFile --shapes.fix--> OnnxFile --expand.expand--> OnnxFile
OnnxFile --simplify.simplify--> OnnxFile --control.flatten--> OnnxFile --sequences.resolve-->
OnnxFile --convert.convert--> Model
"""
