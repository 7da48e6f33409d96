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
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
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


def load_ncnn(request: dict[str, Any], x: Any) -> Run:
    """ncnn in float32, on what `pnnx` makes of the ONNX file; one image only."""
    import importlib.util

    import ncnn

    if len(x) != 1:
        raise ValueError("ncnn takes one image")
    found = importlib.util.find_spec("pnnx")
    assert found is not None and found.submodule_search_locations
    tool = Path(found.submodule_search_locations[0], "pnnx")  # its Python part would need torch
    shape = ",".join(map(str, x.shape))
    with tempfile.TemporaryDirectory() as folder:
        model = shutil.copy(request["model"], folder)
        arguments = [str(tool), model, f"inputshape=[{shape}]", "fp16=0"]
        subprocess.run(arguments, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        stem = Path(folder, Path(model).stem)
        net = ncnn.Net()
        net.opt.num_threads = request["threads"]
        net.opt.use_vulkan_compute = False
        for option in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
            setattr(net.opt, f"use_{option}", False)
        if net.load_param(f"{stem}.ncnn.param") or net.load_model(f"{stem}.ncnn.bin"):
            raise ValueError("ncnn cannot read what pnnx wrote")

    def run() -> Any:
        with net.create_extractor() as extractor:
            extractor.input("in0", ncnn.Mat(x[0]))
            _, y = extractor.extract("out0")
            return np.array(y)[None]

    return run


LOADERS: dict[str, Callable[[dict[str, Any], Any], Run]] = {
    "cnnc": load_cnnc,
    "onnxruntime": load_onnxruntime,
    "openvino": load_openvino,
    "ncnn": load_ncnn,
}


def resident_mb() -> float:
    """Memory that the process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def main() -> None:
    run: Run = lambda: None  # noqa: E731
    for line in sys.stdin:
        request = json.loads(line)
        reply: dict[str, Any] = {}
        match request["do"]:
            case "load":
                x = np.load(request["input"])
                start = time.perf_counter()
                try:
                    run = LOADERS[request["runtime"]](request, x)
                    run()
                except Exception as error:  # whatever a runtime raises for what it cannot do
                    reply["refused"] = f"{type(error).__name__}: {error}"
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
                reply["resident_mb"] = resident_mb()
                reply["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
