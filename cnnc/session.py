"""A compiled model behind the interface of ONNX Runtime's sessions.

    session = cnnc.InferenceSession("model.onnx")  # or its bytes
    (prob,) = session.run(None, {session.get_inputs()[0].name: x})

Programs written for that interface need only another import.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cnnc.ir.location import Diagnostic, InputError, OptionError

if TYPE_CHECKING:
    from cnnc.frontends import Model
    from cnnc.ir.graph import Graph
    from cnnc.ir.op import Array
    from cnnc.model import TensorInfo

# NumPy's names of element types -> ONNX Runtime's, where they differ.
_TYPES = {"float32": "float", "float64": "double"}


@dataclass(frozen=True, slots=True)
class NodeArg:
    """An input or output: a symbolic size is its name."""

    name: str
    type: str  # such as "tensor(float)"
    shape: list[int | str]


class InferenceSession:
    """A model ready to run; see `cnnc.compile` for what it can be made of.

    Args:
        path_or_bytes: an ONNX file or its bytes, or whatever else `cnnc.compile` takes.
        sess_options: only for programs written for ONNX Runtime; `intra_op_num_threads` is taken.
        providers: likewise; the processor is the only one there is.
        **options: as for `cnnc.compile`.

    Raises:
        CnncError: the model cannot be compiled.
        OptionError: `providers` is no list, or holds none that runs on the processor.
    """

    def __init__(
        self,
        path_or_bytes: Model | Graph,
        sess_options: Any = None,
        providers: Sequence[Any] | None = None,
        **options: Any,
    ) -> None:
        from cnnc import compile

        if isinstance(providers, str) or not isinstance(providers, Iterable | None):
            help = f'say ["{_PROVIDER}"]'
            raise OptionError(Diagnostic("`providers` is a list of names", help=help))
        names = [p[0] if isinstance(p, tuple) else p for p in providers or [_PROVIDER]]
        if _PROVIDER not in names:
            what = f"there is no provider `{names[0]}`"
            raise OptionError(Diagnostic(what, help=f"the only one is `{_PROVIDER}`"))
        threads = getattr(sess_options, "intra_op_num_threads", 0)
        if threads:  # 0 leaves the choice
            options.setdefault("threads", threads)
        self.model = compile(path_or_bytes, **options)

    def get_inputs(self) -> list[NodeArg]:
        """What the model takes, in order."""
        return [_argument(info) for info in self.model.inputs]

    def get_outputs(self) -> list[NodeArg]:
        """What the model gives, in order."""
        return [_argument(info) for info in self.model.outputs]

    def get_providers(self) -> list[str]:
        """What runs the model."""
        return [_PROVIDER]

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Array],
        run_options: Any = None,
    ) -> list[Array]:
        """The outputs of these names, in their order; of all, for None or none at all.

        Args:
            output_names: names of outputs.
            input_feed: input name -> array.
            run_options: only for programs written for ONNX Runtime.

        Raises:
            InputError: there is no such output, or the arrays do not fit.
        """
        if isinstance(output_names, str) or not isinstance(output_names, Iterable | None):
            what = "`output_names` is a list of names"
            raise InputError(Diagnostic(what, help=f'say ["{output_names}"]'))
        known = [info.name for info in self.model.outputs]
        for name in output_names or ():
            if name not in known:
                outputs = ", ".join(f"`{n}`" for n in known)
                message = f"there is no output `{name}`"
                raise InputError(Diagnostic(message, help=f"the outputs are {outputs}"))
        results = self.model.run(input_feed)
        return [results[name] for name in output_names or known]


_PROVIDER = "CPUExecutionProvider"


def _argument(info: TensorInfo) -> NodeArg:
    return NodeArg(info.name, f"tensor({_TYPES.get(info.dtype, info.dtype)})", list(info.shape))
