"""ONNX: reading models (`load_onnx`) and exporting graphs (`export_onnx`, `picture`)."""

from cnnc.frontends.onnx.call import ValuesNeeded
from cnnc.frontends.onnx.export import export_onnx
from cnnc.frontends.onnx.load import load_onnx
from cnnc.frontends.onnx.picture import picture

__all__ = ["ValuesNeeded", "export_onnx", "load_onnx", "picture"]
