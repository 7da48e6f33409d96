"""The table of kernels. Adding an algorithm is one file and one line here."""

from cnnc.codegen.kernels.conv_direct import DirectConv
from cnnc.codegen.kernels.conv_winograd import WinogradConv
from cnnc.codegen.kernels.reference import ReferenceKernel
from cnnc.ir.kernel import Kernel

KERNELS: dict[str, type[Kernel]] = {kernel.name: kernel for kernel in (DirectConv, WinogradConv, ReferenceKernel)}

__all__ = ["KERNELS"]
