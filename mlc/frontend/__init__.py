"""From an ONNX file to a `Model`: read, fix shapes, simplify, convert.

path --onnx_file.read--> OnnxFile --shapes.fix--> OnnxFile --simplify.simplify--> OnnxFile
OnnxFile --convert.convert--> Model
"""
