"""The `.cnn` model language: text to graph.

>>> graph = load_text("model m { input x: f32[N, 3, 8, 8]\\n output y = x -> conv(4, 3) -> relu }")
>>> [node.name for node in graph.nodes]
['conv[0]', 'relu[0]']
"""

from cnnc.frontends.dsl.load import load_file, load_text
from cnnc.frontends.weights import trainable

__all__ = ["load_file", "load_text", "trainable"]
