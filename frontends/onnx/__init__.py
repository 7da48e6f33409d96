"""ONNX: exporting graphs (`export_onnx`)."""

from cnnc.frontends.onnx.export import export_onnx

__all__ = ["export_onnx"]
