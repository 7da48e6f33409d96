"""The table of kernels. Adding an algorithm is one file and one line here."""

from cnnc.codegen.kernels.conv_columns import ColumnWinogradConv
from cnnc.codegen.kernels.conv_columns_plain import PlainColumnWinogradConv
from cnnc.codegen.kernels.conv_direct import DirectConv
from cnnc.codegen.kernels.conv_general import GeneralConv
from cnnc.codegen.kernels.conv_grouped import GroupedConv
from cnnc.codegen.kernels.conv_grouped_winograd import GroupedWinogradConv
from cnnc.codegen.kernels.conv_nd import ConvNdKernel
from cnnc.codegen.kernels.conv_paired import PairedConv
from cnnc.codegen.kernels.conv_paired_rows import PairedRowsConv
from cnnc.codegen.kernels.conv_transpose import TransposedConv
from cnnc.codegen.kernels.conv_transpose_general import GeneralTransposedConv
from cnnc.codegen.kernels.conv_winograd import WinogradConv
from cnnc.codegen.kernels.dense import DenseKernel
from cnnc.codegen.kernels.depthwise import ClippedDepthwise, Depthwise
from cnnc.codegen.kernels.global_pool import GlobalPool
from cnnc.codegen.kernels.matmul import MatMulKernel
from cnnc.codegen.kernels.matmul_paired import PairedMatMul
from cnnc.codegen.kernels.move import (
    Alias,
    ConcatKernel,
    InterleaveKernel,
    ReorderKernel,
    SlicesKernel,
)
from cnnc.codegen.kernels.normalize import NormalizeKernel
from cnnc.codegen.kernels.pick_channels import PickChannelsKernel
from cnnc.codegen.kernels.pointwise import PointwiseKernel
from cnnc.codegen.kernels.pool import PoolKernel
from cnnc.codegen.kernels.rearrange import Rearrange
from cnnc.codegen.kernels.reduce import ReduceKernel
from cnnc.codegen.kernels.reference import ReferenceKernel
from cnnc.codegen.kernels.resize import ResizeKernel
from cnnc.codegen.kernels.softmax import SoftmaxKernel
from cnnc.codegen.kernels.upsample import UpsampleKernel
from cnnc.ir.kernel import Kernel

KERNELS: dict[str, type[Kernel]] = {
    kernel.name: kernel
    for kernel in (
        DirectConv,
        ColumnWinogradConv,
        PlainColumnWinogradConv,
        WinogradConv,
        PairedConv,
        PairedRowsConv,
        Depthwise,
        ClippedDepthwise,
        GroupedConv,
        GroupedWinogradConv,
        GeneralConv,
        ConvNdKernel,
        TransposedConv,
        GeneralTransposedConv,
        DenseKernel,
        MatMulKernel,
        PairedMatMul,
        PointwiseKernel,
        SoftmaxKernel,
        GlobalPool,
        PoolKernel,
        ReduceKernel,
        NormalizeKernel,
        UpsampleKernel,
        ResizeKernel,
        ConcatKernel,
        InterleaveKernel,
        SlicesKernel,
        PickChannelsKernel,
        Rearrange,
        ReorderKernel,
        Alias,
        ReferenceKernel,
    )
}

__all__ = ["KERNELS"]
