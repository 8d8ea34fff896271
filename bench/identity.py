#!/usr/bin/env python3
"""What the torchscript engine itself costs: a module that gives back what it is given, beside the null engine.

    cargo build --release && scripts/setup && .deps/python/bin/python bench/identity.py

Five repeats, the two in turn; 16 floats a request, one call in flight. What it printed last is in bench/identity.txt.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper

ROOT = Path(__file__).resolve().parent.parent
MODELMETER = os.environ.get("MODELMETER", ROOT / "target/release/modelmeter")
REPEATS = 5
FLOATS = 16
RULES = ["--batch-sizes", "1", "--concurrency", "1", "--min-duration", "3s", "--max-duration", "6s", "--ports", "auto"]


class Identity(torch.nn.Module):
    def forward(self, x):
        return x


def make_models(folder):
    torch.jit.script(Identity()).save(folder / "identity.pt")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", FLOATS]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), folder / "identity.onnx")


def profile(engine, file, folder, extra):
    words = [MODELMETER, "profile", folder / file, "--engines", engine, *RULES, *extra, "--json"]
    env = os.environ | {"MODELMETER_HOME": str(folder / "home"), "MODELMETER_ENGINE_TORCHSCRIPT_PYTHON": sys.executable}
    [found] = json.loads(subprocess.run(words, env=env, check=True, stdout=subprocess.PIPE).stdout)
    [point] = found["points"]
    rate = point["throughput_inferences_per_s"]["value"]
    return point["latency_ms"]["p50"]["value"] * 1e3, point["engine_cpu"]["cores"] / rate * 1e6


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_models(folder)
        engines = {"null": ("identity.onnx", []), "torchscript": ("identity.pt", ["--input", f"x:fp32:{FLOATS}"])}
        print(f"torch {torch.__version__}, {FLOATS} floats a request, 1 in flight; p50 and the engine's CPU time a call, µs")
        found = {engine: [] for engine in engines}
        for repeat in range(1, REPEATS + 1):
            for engine, (file, extra) in engines.items():
                found[engine].append(profile(engine, file, folder, extra))
            print(f"  {repeat}: " + "   ".join(f"{e} {r[-1][0]:6.1f} {r[-1][1]:6.1f}" for e, r in found.items()), flush=True)
        middle = {e: [statistics.median(column) for column in zip(*rows)] for e, rows in found.items()}
        null, torchscript = middle["null"], middle["torchscript"]
        print(f"median: null {null[0]:.1f} {null[1]:.1f}   torchscript {torchscript[0]:.1f} {torchscript[1]:.1f}")
        print(f"torchscript costs {torchscript[0] - null[0]:.0f} µs a call more, {torchscript[1] / null[1]:.1f} × the CPU")


if __name__ == "__main__":
    main()
