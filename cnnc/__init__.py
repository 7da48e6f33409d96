"""cnnc: a compiler for convolutional networks on CPUs."""

from cnnc._version import __version__

__all__ = ["__version__"]
