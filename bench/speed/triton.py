"""A real Triton, out of the PyPI wheel nvidia-pytriton, with a Python-backend model that hands back its input."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from pathlib import Path

import setup
import tools

WHEEL = "nvidia-pytriton==0.7.0"
# With a newer one this Triton answers with tensors of no bytes.
NUMPY = "numpy<2"
CONFIG = """backend: "python"
max_batch_size: 8
input [{ name: "x" data_type: TYPE_FP32 dims: [16] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [16] }]
"""
MODEL = """import triton_python_backend_utils as pb


class TritonPythonModel:
    def execute(self, requests):
        outputs = [pb.get_input_tensor_by_name(r, "x").as_numpy() for r in requests]
        return [pb.InferenceResponse([pb.Tensor("y", y)]) for y in outputs]
"""
START_S = 60


def installation():
    """The folder of tritonserver, and a virtual environment with what its Python backend imports."""
    server = setup.DEPS / "nvidia-pytriton" / "pytriton" / "tritonserver"
    environment = setup.DEPS / "triton-venv"
    stamp = setup.DEPS / WHEEL
    if not stamp.exists():
        setup.unpack(WHEEL)
        stub = f"{sys.version_info.major}.{sys.version_info.minor}/triton_python_backend_stub"
        copied = server / "backends" / "python" / "triton_python_backend_stub"
        shutil.copy(server / "python_backend_stubs" / stub, copied)
        for program in (copied, server / "bin" / "tritonserver"):
            program.chmod(0o755)
        venv.create(environment, with_pip=True)
        subprocess.run([environment / "bin" / "pip", "install", "-q", NUMPY], check=True, stdout=sys.stderr)
        stamp.touch()
    return server, environment


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Triton:
    """The server, with the face of `tools.Responder`: what it counts comes from its own statistics."""

    def __init__(self):
        server, environment = installation()
        self.folder = tempfile.TemporaryDirectory(prefix="triton-")
        model = Path(self.folder.name) / "repository" / "null"
        (model / "1").mkdir(parents=True)
        (model / "config.pbtxt").write_text(CONFIG)
        (model / "1" / "model.py").write_text(MODEL)
        ports = {name: free_port() for name in ("grpc", "http", "metrics")}
        self.address, self.http = (f"127.0.0.1:{ports[name]}" for name in ("grpc", "http"))
        command = [server / "bin" / "tritonserver", "--model-repository", model.parent]
        command += ["--backend-directory", server / "backends"]
        command += [part for name, port in ports.items() for part in (f"--{name}-port", str(port))]
        command += ["--http-address", "127.0.0.1", "--grpc-address", "127.0.0.1"]
        env = dict(os.environ, VIRTUAL_ENV=str(environment), PATH=f"{environment}/bin:{os.environ['PATH']}")
        self.log = open(Path(self.folder.name) / "log", "w+")
        self.process = subprocess.Popen(command, env=env, stdout=self.log, stderr=self.log)
        self.wait_until_ready()
        self.requests, self.cpu_s = 0, 0.0
        self.mark()

    def wait_until_ready(self):
        deadline = time.monotonic() + START_S
        while True:
            try:
                return self.get("health/ready")
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.log.seek(0)
                    sys.exit(f"tritonserver did not start\n{self.log.read()}")
                time.sleep(0.1)

    def get(self, path):
        with urllib.request.urlopen(f"http://{self.http}/v2/{path}", timeout=5) as answer:
            return answer.read()

    def mark(self):
        requests = json.loads(self.get("models/null/stats"))["model_stats"][0]["inference_count"]
        cpu_s = tools.cpu_s(self.process.pid)
        said = {"requests": requests - self.requests, "cpu_s": cpu_s - self.cpu_s}
        self.requests, self.cpu_s = requests, cpu_s
        return said

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        self.log.close()
        self.folder.cleanup()
