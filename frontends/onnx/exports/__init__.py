"""The table of exporters: op -> the ONNX nodes for it."""

from cnnc.frontends.onnx.exports.data import DATA
from cnnc.frontends.onnx.exports.elementwise import ELEMENTWISE
from cnnc.frontends.onnx.exports.layers import LAYERS
from cnnc.frontends.onnx.exports.moves import MOVES
from cnnc.frontends.onnx.exports.sampling import SAMPLING
from cnnc.frontends.onnx.exports.writer import Exporter, Writer
from cnnc.ir.op import Op

EXPORTERS: dict[type[Op], Exporter] = {**LAYERS, **ELEMENTWISE, **MOVES, **SAMPLING, **DATA}

__all__ = ["EXPORTERS", "Exporter", "Writer"]
