"""One runtime in a process of its own, driven by JSON lines on standard input and output.

    {"do": "load", "runtime": "onnxruntime", "model": "net.onnx", "threads": 1, "input": "x.npy"}
    {"do": "run", "count": 5}       -> {"seconds": [...]}
    {"do": "answer", "file": "y.npy"}
    {"do": "memory"}                -> {"resident_mb": ..., "peak_mb": ...}

NumPy arrays go in and come out on every run, as a user would have it.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Run = Callable[[], Any]


def load_cnnc(request: dict[str, Any], x: Any) -> Run:
    """cnnc compiles the zoo model's name or `.cnn` file, not the ONNX file."""
    import cnnc

    model = cnnc.compile(
        request["source"],
        threads=request["threads"],
        sizes=request["sizes"],
        exact=request.get("exact", False),
        cache=False,  # the time to load is that of a compilation
    )
    name, first = model.inputs[0].name, model.outputs[0].name
    return lambda: model.run({name: x})[first]


def load_onnxruntime(request: dict[str, Any], x: Any) -> Run:
    """ONNX Runtime with all optimisations, threads as asked."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = request["threads"]
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(request["model"], options, providers=["CPUExecutionProvider"])
    feeds = {session.get_inputs()[0].name: x}
    return lambda: session.run(None, feeds)[0]


def load_openvino(request: dict[str, Any], x: Any) -> Run:
    """OpenVINO held to float32: its default silently takes bfloat16 where there is some."""
    import openvino as ov

    core = ov.Core()
    model = core.read_model(request["model"])
    model.reshape(list(x.shape))
    compiled = core.compile_model(
        model,
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": request["threads"],
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        },
    )
    call = compiled.create_infer_request()
    return lambda: call.infer([x])[0]


LOADERS: dict[str, Callable[[dict[str, Any], Any], Run]] = {
    "cnnc": load_cnnc,
    "onnxruntime": load_onnxruntime,
    "openvino": load_openvino,
}


def main() -> None:
    run: Run = lambda: None  # noqa: E731
    for line in sys.stdin:
        request = json.loads(line)
        reply: dict[str, Any] = {}
        match request["do"]:
            case "load":
                x = np.load(request["input"])
                start = time.perf_counter()
                run = LOADERS[request["runtime"]](request, x)
                run()
                reply["load_seconds"] = time.perf_counter() - start
            case "run":
                seconds = []
                for _ in range(request["count"]):
                    start = time.perf_counter()
                    run()
                    seconds.append(time.perf_counter() - start)
                reply["seconds"] = seconds
            case "answer":
                np.save(request["file"], np.asarray(run()))
            case "memory":
                with open("/proc/self/statm") as file:
                    pages = int(file.read().split()[1])
                reply["resident_mb"] = pages * resource.getpagesize() / 1e6
                reply["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
