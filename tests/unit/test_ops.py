"""What ops refuse and how they say it; shapes, operations and values known from elsewhere."""

from __future__ import annotations

import re

import numpy as np
import pytest

from cnnc.ir.location import ShapeError
from cnnc.ir.op import Op, Step
from cnnc.ir.ops import (
    OPS,
    Add,
    AvgPool2d,
    BatchNorm,
    Clip,
    Concat,
    Conv2d,
    ConvTranspose2d,
    Dense,
    Dropout,
    Flatten,
    GlobalAvgPool,
    HardSwish,
    MaxPool2d,
    Mul,
    Pad,
    Relu,
    Resampling,
    Reshape,
    Sigmoid,
    Silu,
    Softmax,
    Upsample,
)
from cnnc.ir.types import Dim, DType, Sym, TensorType

N, H = Sym("N"), Sym("H")


def f32(*shape: Dim) -> TensorType:
    return TensorType(shape)


X = f32(N, 4, 8, 8)


@pytest.mark.parametrize(
    ("op", "types", "message"),
    [
        (Conv2d(), [f32(4, 8, 8), f32(6, 4, 3, 3)], "conv2d: x must have rank 4, got f32[4,8,8]"),
        (Conv2d(), [X, f32(6, 4, 3)], "conv2d: weight must have rank 4, got f32[6,4,3]"),
        (
            Conv2d(groups=2),
            [X, f32(6, 4, 3, 3)],
            "weight expects 4 input channels per group, x has 4 (groups=2)",
        ),
        (Conv2d(groups=4), [X, f32(6, 1, 3, 3)], "6 output channels do not divide by groups=4"),
        (
            Conv2d(),
            [X, f32(6, 4, 3, 3), f32(5)],
            "conv2d: bias must have shape [6], got f32[5]",
        ),
        (Conv2d(), [X, f32(6, 4, 0, 3)], "kernel must be at least 1x1, got 0x3"),
        (
            Conv2d(dilation=(5, 1)),
            [X, f32(6, 4, 3, 3)],
            "the kernel covers 11 rows, the padded input has only 8",
        ),
        (
            Conv2d(pad=(0, 1, 0, 0)),
            [f32(1, 4, 8, 2), f32(6, 4, 3, 5)],
            "the kernel covers 5 columns, the padded input has only 3",
        ),
        (Conv2d(stride=(0, 1)), [X, f32(6, 4, 3, 3)], "got stride=(0, 1), dilation=(1, 1)"),
        (Conv2d(pad=(0, 0, -1, 0)), [X, f32(6, 4, 3, 3)], "must be >= 0, got (0, 0, -1, 0)"),
        (
            Conv2d(stride=(2, 2), pad=(1, 1, 1, 1)),
            [f32(N, 4, H, 8), f32(6, 4, 3, 3)],
            "size H-1 is not known to be divisible by 2",
        ),
        (
            ConvTranspose2d(),
            [X, f32(6, 4, 3, 3)],
            "conv_transpose2d: weight expects 6 input channels, x has 4",
        ),
        (ConvTranspose2d(groups=3), [X, f32(4, 2, 3, 3)], "4 input channels do not divide by"),
        (
            ConvTranspose2d(groups=2),
            [X, f32(4, 3, 3, 3), f32(3)],
            "conv_transpose2d: bias must have shape [6], got f32[3]",
        ),
        (
            ConvTranspose2d(stride=(2, 1), output_padding=(1, 1)),
            [X, f32(4, 6, 3, 3)],
            "output_padding must be >= 0 and less than the stride or the dilation, got (1, 1)",
        ),
        (
            ConvTranspose2d(pad=(0, 5, 0, 5)),
            [X, f32(4, 6, 3, 3)],
            "the padding (0, 5, 0, 5) leaves 0 columns of the result",
        ),
        (ConvTranspose2d(stride=(0, 1)), [X, f32(4, 6, 3, 3)], "got stride=(0, 1)"),
        (ConvTranspose2d(), [X, f32(4, 6, 3)], "conv_transpose2d: weight must have rank 4"),
        (Dense(), [X, f32(3, 4)], "dense: x must have rank 2"),
        (Dense(), [f32(N, 5), f32(3, 4)], "dense: weight expects 4 features, x has 5"),
        (Dense(), [f32(N, 4), f32(3, 4), f32(4)], "bias must have shape [3], got f32[4]"),
        (BatchNorm(), [f32(4)] * 5, "batch_norm: x must have at least rank 2, got f32[4]"),
        (
            BatchNorm(),
            [X, f32(4), f32(4), f32(3), f32(4)],
            "batch_norm: mean must have shape [4], got f32[3]",
        ),
        (Softmax(axis=4), [X], "softmax: axis 4 is not one of x's 4"),
        (Softmax(), [f32()], "softmax: axis -1 is not one of x's 0"),
        (MaxPool2d(window=(0, 1)), [X], "got window=(0, 1), stride=(1, 1)"),
        (
            MaxPool2d(window=(2, 2), pad=(0, 2, 0, 0)),
            [X],
            "padding must be >= 0 and smaller than the window (2, 2), got (0, 2, 0, 0)",
        ),
        (
            AvgPool2d(window=(9, 1)),
            [X],
            "the window covers 9 rows, the padded input has only 8",
        ),
        (
            AvgPool2d(window=(2, 2), ceil_mode=True),
            [f32(N, 4, H, 8)],
            "avg_pool2d: ceil_mode needs a fixed size, got H",
        ),
        (GlobalAvgPool(), [f32(N, 4, 0, 8)], "an empty map has neither mean nor maximum"),
        (Add(), [X, f32(3, 1, 1)], "add: cannot broadcast [N,4,8,8] and [3,1,1]: dimension 1"),
        (Add(), [X, f32(2, 4, 8, 8)], "dimension 0 is 2 versus N"),
        (
            Mul(),
            [X, TensorType((4, 1, 1), DType.I64)],
            "mul: element types differ: f32, i64",
        ),
        (Concat(axis=4), [X], "concat: axis 4 is not one of x's 4"),
        (
            Concat(),
            [X, f32(N, 4, 9, 8)],
            "concat: dimension 2 differs (8 versus 9 in operand 1)",
        ),
        (Concat(), [X, f32(N, 4)], "concat: operand 1 is f32[N,4], the first is f32[N,4,8,8]"),
        (Flatten(), [f32()], "flatten: x must have at least rank 1"),
        (Reshape(shape=(-1, -1)), [X], "reshape: shape may hold one -1"),
        (Reshape(shape=(0, 3, -1)), [X], "256 elements do not divide into (0, 3, -1)"),
        (Reshape(shape=(0, 255)), [X], "has 256 elements where (0, 255) wants 255"),
        (Reshape(shape=(1, 256)), [X], "has 256*N elements where (1, 256) wants 256"),
        (Reshape(shape=(0, 256, 0)), [f32(N, 256)], "0 at place 2 copies a dimension"),
        (Dropout(rate=1.5), [X], "dropout: rate must lie in 0..1, got 1.5"),
        (Pad(pad=(0, 0, 0, -1)), [X], "pad: padding must be >= 0"),
        (Upsample(scale=(0, 2)), [X], "upsample: scale must be >= 1, got (0, 2)"),
        (
            Conv2d(epilogue=(Step(Add()),)),
            [X, f32(6, 4, 1, 1), f32(6), f32(N, 5, 8, 8)],
            "add: cannot broadcast [N,6,8,8] and [N,5,8,8]",
        ),
    ],
)
def test_refusals(op: Op, types: list[TensorType], message: str) -> None:
    with pytest.raises(ShapeError, match=re.escape(message)):
        op.infer(*types)


@pytest.mark.parametrize(
    ("op", "count", "message"),
    [
        (Relu(), 2, "relu: expects 1 operands (x), got 2"),
        (Conv2d(), 1, "conv2d: expects 2 to 3 operands (x, weight, bias?), got 1"),
        (Conv2d(epilogue=(Step(Add()), Step(Relu()))), 2, "expects 2 to 3 operands"),
        (Concat(), 0, "concat: expects >=1 operands (x, xs*), got 0"),
        (BatchNorm(), 4, "batch_norm: expects 5 operands"),
    ],
)
def test_wrong_numbers_of_operands(op: Op, count: int, message: str) -> None:
    with pytest.raises(ShapeError, match=re.escape(message)):
        op.check_arity(count)


@pytest.mark.parametrize(
    ("op", "types", "shape"),
    [
        # ResNet's stem and its pool, at 224 and with a symbolic size.
        (
            Conv2d(stride=(2, 2), pad=(3, 3, 3, 3)),
            [f32(N, 3, 224, 224), f32(64, 3, 7, 7)],
            (N, 64, 112, 112),
        ),
        (
            MaxPool2d(window=(3, 3), stride=(2, 2), pad=(1, 1, 1, 1)),
            [f32(N, 64, Sym("H", 16), 112)],
            (N, 64, Sym("H", 16, 8), 56),
        ),
        # GoogLeNet's pools round up.
        (
            MaxPool2d(window=(3, 3), stride=(2, 2), ceil_mode=True),
            [f32(1, 64, 112, 112)],
            (1, 64, 56, 56),
        ),
        # The last window would start in the trailing padding and is dropped.
        (
            AvgPool2d(window=(2, 2), stride=(2, 2), pad=(1, 1, 1, 1), ceil_mode=True),
            [f32(1, 1, 3, 4)],
            (1, 1, 2, 3),
        ),
        # DCGAN's generator, and U-Net's way up with a symbolic size.
        (
            ConvTranspose2d(stride=(2, 2), pad=(1, 1, 1, 1)),
            [f32(N, 512, 4, 4), f32(512, 256, 4, 4)],
            (N, 256, 8, 8),
        ),
        (
            ConvTranspose2d(stride=(2, 2)),
            [f32(N, 64, H, Sym("W", 2)), f32(64, 32, 2, 2)],
            (N, 32, 2 * H, Sym("W", 2, 4)),
        ),
        (
            ConvTranspose2d(
                stride=(3, 2), dilation=(2, 1), groups=2, output_padding=(2, 1), pad=(1, 0, 2, 3)
            ),
            [f32(N, 4, 5, 6), f32(4, 3, 3, 4)],
            (N, 6, 16, 12),
        ),
        (Flatten(), [f32(N, 512, 7, 7)], (N, 25088)),
        (Reshape(shape=(0, 4, -1)), [X], (N, 4, 64)),
        (Reshape(shape=(-1, 8)), [f32(N, 2, 4)], (N, 8)),
        (Concat(axis=0), [X, X], (2 * N, 4, 8, 8)),
        (Upsample(scale=(2, 3)), [f32(N, 4, H, 8)], (N, 4, 2 * H, 24)),
        (Add(), [f32(4, 1, 1), X], (N, 4, 8, 8)),
        (
            Conv2d(epilogue=(Step(Mul()), Step(Relu()))),
            [X, f32(6, 4, 1, 1), f32(6, 1, 1)],
            (N, 6, 8, 8),
        ),
    ],
)
def test_shapes(op: Op, types: list[TensorType], shape: tuple[Dim, ...]) -> None:
    assert op.infer(*types) == TensorType(shape)


@pytest.mark.parametrize(
    ("op", "types", "flops"),
    [
        (Conv2d(), [f32(2, 8, 5, 5), f32(16, 8, 3, 3)], 2 * 2 * 16 * 9 * 8 * 9),
        (
            ConvTranspose2d(groups=2, stride=(2, 2)),
            [f32(3, 8, 5, 5), f32(8, 6, 2, 2), f32(12)],
            2 * 3 * 8 * 25 * 6 * 4,
        ),
        (Conv2d(groups=8), [f32(1, 8, 5, 5), f32(8, 1, 3, 3)], 2 * 8 * 9 * 9),
        (Dense(epilogue=(Step(Relu()),)), [f32(2, 10), f32(5, 10)], 2 * 2 * 50 + 10),
        (AvgPool2d(window=(2, 3)), [f32(1, 1, 3, 3)], 2 * 1 * 6),
        (Flatten(), [f32(2, 3)], 0),
    ],
)
def test_operations(op: Op, types: list[TensorType], flops: int) -> None:
    result = op.infer(*types)
    assert isinstance(result, TensorType)
    assert op.flops(types, [result]) == flops


def test_which_ops_mix_the_batch() -> None:
    assert Softmax(axis=0).mixes_batch([X])
    assert Softmax(axis=-4).mixes_batch([X])
    assert not Softmax(axis=1).mixes_batch([X])
    assert Concat(axis=0).mixes_batch([X, X])
    assert not Concat(axis=1).mixes_batch([X, X])
    assert Reshape(shape=(-1,)).mixes_batch([X])
    assert not Reshape(shape=(0, -1)).mixes_batch([X])


def test_upsampling_between_elements() -> None:
    x = np.array([0, 4], np.float32).reshape(1, 1, 1, 2)
    y = Upsample(scale=(1, 2), mode=Resampling.BILINEAR).evaluate(x)
    np.testing.assert_array_equal(y.ravel(), [0, 1, 3, 4])
    y = Upsample(scale=(2, 2)).evaluate(x)
    np.testing.assert_array_equal(y[0, 0], [[0, 0, 4, 4], [0, 0, 4, 4]])


def test_means_at_the_border() -> None:
    x = np.arange(1, 6, dtype=np.float32).reshape(1, 1, 1, 5)
    window = {"window": (1, 2), "stride": (1, 2), "pad": (0, 1, 0, 0)}
    inside = AvgPool2d(**window)  # type: ignore[arg-type]
    padded = AvgPool2d(**window, count_include_pad=True)  # type: ignore[arg-type]
    np.testing.assert_array_equal(inside.evaluate(x).ravel(), [1, 2.5, 4.5])
    np.testing.assert_array_equal(padded.evaluate(x).ravel(), [0.5, 2.5, 4.5])
    # The last window reaches past the input by ceil_mode alone: that never counts.
    reaching = AvgPool2d(window=(1, 2), stride=(1, 2), ceil_mode=True, count_include_pad=True)
    np.testing.assert_array_equal(reaching.evaluate(x).ravel(), [1.5, 3.5, 5])


def test_a_maximum_of_negative_numbers_ignores_the_padding() -> None:
    x = np.full((1, 1, 2, 2), -3, np.float32)
    y = MaxPool2d(window=(3, 3), pad=(1, 1, 1, 1)).evaluate(x)
    np.testing.assert_array_equal(y, np.full((1, 1, 2, 2), -3))


def test_a_transposed_convolution_turns_the_kernel_and_pads_at_the_end() -> None:
    x = np.array([1, 10], np.float32).reshape(1, 1, 1, 2)
    weight = np.array([1, 2, 3], np.float32).reshape(1, 1, 1, 3)
    bias = np.array([100], np.float32)
    op = ConvTranspose2d(stride=(1, 2), output_padding=(0, 1))
    np.testing.assert_array_equal(
        op.evaluate(x, weight, bias).ravel(), [101, 102, 113, 120, 130, 100]
    )
    cut = ConvTranspose2d(stride=(1, 2), output_padding=(0, 1), pad=(0, 1, 0, 2))
    np.testing.assert_array_equal(cut.evaluate(x, weight, bias).ravel(), [102, 113, 120])


def test_a_transposed_convolution_is_the_adjoint_of_a_convolution() -> None:
    """<conv(x), y> = <x, conv_transpose(y)> for the same weights."""
    random = np.random.default_rng(0)
    attributes = {"stride": (2, 3), "pad": (1, 0, 2, 1), "dilation": (2, 1), "groups": 2}
    x, weight = random.standard_normal((2, 6, 9, 12)), random.standard_normal((4, 3, 3, 4))
    forward = Conv2d(**attributes).evaluate(x, weight)  # type: ignore[arg-type]
    y = random.standard_normal(forward.shape)
    spare = (1, 0)  # rows and columns at the end of x that no window reaches
    back = ConvTranspose2d(output_padding=spare, **attributes)  # type: ignore[arg-type]
    found = back.evaluate(y, weight)
    assert found.shape == x.shape
    np.testing.assert_allclose(np.vdot(forward, y), np.vdot(x, found), rtol=1e-12)


@pytest.mark.parametrize("name", ["relu", "relu6", "leaky_relu", "tanh", "sigmoid", "elu", "sqrt"])
def test_activations_at_the_ends(name: str) -> None:
    x = np.array([-np.inf, np.inf, np.nan, -200, 200], np.float32)
    ends = {
        "relu": [0, np.inf, np.nan, 0, 200],
        "relu6": [0, 6, np.nan, 0, 6],
        "leaky_relu": [-np.inf, np.inf, np.nan, -2, 200],
        "tanh": [-1, 1, np.nan, -1, 1],
        "sigmoid": [0, 1, np.nan, 0, 1],
        "elu": [-1, np.inf, np.nan, -1, 200],
        "sqrt": [np.nan, np.inf, np.nan, np.nan, np.sqrt(200)],
    }[name]
    y = OPS[name]().evaluate(x)
    np.testing.assert_allclose(np.asarray(y), np.array(ends, np.float32), rtol=1e-6)


def test_gates_of_minus_infinity_are_not_a_number() -> None:
    x = np.array([-np.inf, np.inf], np.float32)
    for op in (Silu(), HardSwish()):
        np.testing.assert_array_equal(op.evaluate(x), [np.nan, np.inf])
    assert Sigmoid().evaluate(x).dtype == np.float32


def test_softmax_of_large_numbers_sums_to_one() -> None:
    x = np.array([[1e4, 1e4 - 1, -1e30]], np.float32)
    y = Softmax().evaluate(x)
    np.testing.assert_allclose(y, [[1 / (1 + np.exp(-1)), 1 / (1 + np.e), 0]], rtol=1e-6)


def test_batch_norm_of_a_tiny_variance() -> None:
    one = np.ones(1, np.float32)
    y = BatchNorm(epsilon=1e-3).evaluate(np.full((1, 1), 3, np.float32), one, one, one, 0 * one)
    np.testing.assert_allclose(y, 2 / np.sqrt(1e-3) + 1, rtol=1e-6)


def test_a_large_convolution_goes_in_bands() -> None:
    """One matrix of patches would take 36 MB here."""
    random = np.random.default_rng(0)
    x = random.standard_normal((1, 16, 256, 256), dtype=np.float32)
    weight = random.standard_normal((2, 16, 3, 3), dtype=np.float32)
    y = Conv2d(pad=(1, 1, 1, 1)).evaluate(x, weight)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    for row, column in [(0, 0), (57, 3), (58, 255), (200, 100), (255, 255)]:
        window = padded[0, :, row : row + 3, column : column + 3]
        expected = np.einsum("kij,okij->o", window, weight)
        np.testing.assert_allclose(y[0, :, row, column], expected, rtol=1e-4, atol=1e-4)


def test_clip_of_whole_numbers_has_the_bounds_of_their_type() -> None:
    x = np.array([-128, -3, 127], np.int8)
    np.testing.assert_array_equal(Clip().evaluate(x), x)
    np.testing.assert_array_equal(Clip(low=-1000, high=5).evaluate(x), [-128, -3, 5])
