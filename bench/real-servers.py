#!/usr/bin/env python3
"""Real servers that nobody here wrote, each profiled as it already runs: no call may fail that the server did not fail.

    cargo build --release && scripts/setup && bench/real-servers.py

MLServer (from PyPI, into a folder of its own) serves a scikit-learn model that answers [N, 1] where [-1] is declared; KServe's
Python server (.deps/kserve) an ONNX file; Triton (.deps/python) a model of its Python backend, directly, and behind an nginx that
ends a connection after 1,000 calls, plain and in TLS with a CA made here. It takes about ten minutes. What it printed last is in
bench/real-servers.txt.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NGINX = "/usr/sbin/nginx"
# Its workers want an event loop that newer versions of uvloop do not give.
MLSERVER = ["mlserver==1.7.1", "mlserver-sklearn==1.7.1", "uvloop<0.22"]
START_LIMIT_S = 120
LOADS = {"sweep": [], "16 in flight": ["--concurrency", "16"]}
BATCHES = "1,4"
# Warnings that say that calls or answers were bad: none of these servers loses a call or answers wrongly.
WRONG = {"errors", "unanswered", "bad_response", "server_gone", "nothing_measured"}
COLUMNS = {"server": -8, "transport": -9, "load": -12, "batch": 5, "calls": 6, "failed": 6, "resent": 6, "inf/s": 6}
COLUMNS |= {"p50": 5, "p95": 5, "p99": 5, "exit": 4, "warnings": -8}

TRAIN = """
import sys
import joblib
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
x, y = load_breast_cancer(return_X_y=True)
joblib.dump(LogisticRegression(max_iter=5000).fit(x, y), sys.argv[1])
"""
SKLEARN = {
    "name": "cancer",
    "implementation": "mlserver_sklearn.SKLearnModel",
    "parameters": {"uri": "./cancer.joblib"},
    "inputs": [{"name": "x", "datatype": "FP64", "shape": [-1, 30]}],
    "outputs": [{"name": "predict", "datatype": "INT64", "shape": [-1]}],
}
TRITON_CONFIG = """
name: "linear"
backend: "python"
max_batch_size: 64
input [ { name: "x" data_type: TYPE_FP32 dims: [ 256 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 10 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""
TRITON_MODEL = """
import numpy as np
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        self.weights = np.random.default_rng(0).standard_normal((256, 10), dtype=np.float32)

    def execute(self, requests):
        return [self.answer(triton.get_input_tensor_by_name(request, "x").as_numpy()) for request in requests]

    def answer(self, x):
        return triton.InferenceResponse([triton.Tensor("y", x @ self.weights)])
"""
# All other settings are nginx's defaults, such as 1,000 calls a connection.
NGINX_CONFIG = """
{user}
worker_processes 1;
pid {folder}/nginx.pid;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream model {{
        server 127.0.0.1:{upstream};
        keepalive 64;
    }}
    server {{
        listen 127.0.0.1:{plain} http2;
        listen 127.0.0.1:{tls} ssl http2;
        ssl_certificate {folder}/server.pem;
        ssl_certificate_key {folder}/server.key;
        location / {{ grpc_pass grpc://model; }}
    }}
}}
"""


def free_ports(count):
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def answers(url):
    """Whether there is a 200 at the address."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.status == 200
    except OSError:
        return False


def connects(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def running(name, command, folder, ready, environment=None):
    """A server for as long as the block takes; it and its own processes are ended by their process group."""
    log = folder / f"{name}.log"
    with log.open("w") as out:
        environment = {**os.environ, "HOME": str(folder), **(environment or {})}
        words = [str(word) for word in command]
        server = subprocess.Popen(words, cwd=folder, env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        end = time.monotonic() + START_LIMIT_S
        while not ready():
            if server.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{name} is not up:\n{log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(server.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        server.wait()


def fresh(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


@contextmanager
def mlserver(folder):
    python = folder / "mlserver-venv/bin/python"
    if not python.with_name("mlserver").exists():
        venv.create(folder / "mlserver-venv", with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *MLSERVER], check=True)
    models = fresh(folder / "mlserver")
    subprocess.run([python, "-c", TRAIN, models / "cancer.joblib"], check=True)
    http, grpc, metrics = free_ports(3)
    settings = {"host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_port": metrics}
    (models / "settings.json").write_text(json.dumps(settings))
    (models / "model-settings.json").write_text(json.dumps(SKLEARN))
    command = [python.with_name("mlserver"), "start", "."]
    with running("mlserver", command, models, lambda: answers(f"http://127.0.0.1:{http}/v2/models/cancer/ready")):
        yield grpc, http


@contextmanager
def kserve(program, folder):
    """It listens on every interface: it has no flag for another address."""
    here = fresh(folder / "kserve")
    subprocess.run([program, "--home", here, "model", "write", "mlp", here / "mlp.onnx"], check=True, capture_output=True)
    http, grpc = free_ports(2)
    command = [ROOT / ".deps/kserve/bin/python", ROOT / "examples/kserve/model.py", "--model", here / "mlp.onnx"]
    command += ["--model_name", "mlp", "--http_port", http, "--grpc_port", grpc]
    with running("kserve", command, here, lambda: answers(f"http://127.0.0.1:{http}/v2/models/mlp/ready")):
        yield grpc, http


def triton_models(folder):
    version = folder / "linear/1"
    version.mkdir(parents=True)
    (folder / "linear/config.pbtxt").write_text(TRITON_CONFIG)
    (version / "model.py").write_text(TRITON_MODEL)


@contextmanager
def triton(folder, models=triton_models):
    """The wheel has its Python backend in pieces, the helper of each Python apart."""
    python = ROOT / ".deps/python/bin/python"
    question = "import importlib.util as u, sys; print(u.find_spec('pytriton').origin); print('%d.%d' % sys.version_info[:2])"
    said = subprocess.run([python, "-c", question], check=True, capture_output=True, text=True).stdout
    origin, version = said.split()
    package = Path(origin).parent / "tritonserver"
    here = fresh(folder / "triton")
    backend = here / "backends/python"
    backend.mkdir(parents=True)
    # Links: the helper looks for its libraries from where it lies.
    files = ["backends/python/libtriton_python.so", "backends/python/triton_python_backend_utils.py"]
    for file in [*files, f"python_backend_stubs/{version}/triton_python_backend_stub"]:
        (backend / Path(file).name).symlink_to(package / file)
    models(here / "models")
    http, grpc = free_ports(2)
    command = [package / "bin/tritonserver", "--model-repository", here / "models", "--backend-directory", here / "backends"]
    command += ["--http-address=127.0.0.1", f"--http-port={http}", "--grpc-address=127.0.0.1", f"--grpc-port={grpc}"]
    command += ["--allow-metrics=false", "--exit-timeout-secs=2"]
    memory = f"real_servers_{os.getpid()}_"
    command += [f"--backend-config=python,shm-region-prefix-name={memory}"]
    path = {"PATH": f"{python.parent}:{os.environ['PATH']}"}
    try:
        with running("triton", command, here, lambda: answers(f"http://127.0.0.1:{http}/v2/health/ready"), path):
            yield grpc, http
    finally:
        for left in Path("/dev/shm").glob(f"{memory}*"):
            left.unlink(missing_ok=True)


@contextmanager
def nginx(upstream, folder):
    here = fresh(folder / "nginx")
    openssl = lambda *words: subprocess.run(["openssl", *words], cwd=here, check=True, capture_output=True)  # noqa: E731
    key = ["-newkey", "rsa:2048", "-nodes"]
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=A CA of one's own")
    openssl("req", *key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=localhost")
    (here / "names").write_text("subjectAltName = DNS:localhost, IP:127.0.0.1\nbasicConstraints = CA:FALSE\n")
    signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names"]
    openssl("x509", "-req", "-in", "server.csr", "-out", "server.pem", *signed)
    plain, tls = free_ports(2)
    # Its workers would be somebody else, who may not look into the folder, if it is started by root.
    user = "user root;" if os.geteuid() == 0 else ""
    text = NGINX_CONFIG.format(user=user, folder=here, upstream=upstream, plain=plain, tls=tls)
    (here / "nginx.conf").write_text(text)
    command = [NGINX, "-p", here, "-c", here / "nginx.conf", "-g", "daemon off;", "-e", "stderr"]
    with running("nginx", command, here, lambda: connects(plain) and connects(tls)):
        yield plain, tls, here / "ca.pem"


def profile(program, folder, endpoint, model, budget, flags):
    """Exit code, cells, and what was said instead of cells. Home and locks are its own: nothing of the user's is touched."""
    command = [program, "profile", "--endpoint", endpoint, "--model", model, "--batch-sizes", BATCHES, "--budget", budget]
    command += ["--json", *flags]
    own = {"HOME": folder / "home", "MODELMETER_HOME": folder / "home", "MODELMETER_WORKER_LOCK_DIR": folder / "locks"}
    environment = {**os.environ, **{name: str(path) for name, path in own.items()}}
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    try:
        return done.returncode, json.loads(done.stdout), done.stderr
    except json.JSONDecodeError:
        return done.returncode, [], done.stdout + done.stderr


def number(value):
    if value is None:
        return "-"
    return str(value) if isinstance(value, (str, int)) else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def print_row(words):
    print("  ".join(f"{word:{'<' if width < 0 else '>'}{abs(width)}}" for word, width in zip(words, COLUMNS.values())).rstrip())
    sys.stdout.flush()


def cell_row(server, transport, load, cell, code):
    """Calls of all load points of a cell; its best throughput; the latency of one call in flight."""
    points = cell["points"]
    total = lambda field: sum(point[field] for point in points)  # noqa: E731
    codes = sorted({warning["code"] for point in points for warning in point["warnings"]})
    peak = (cell.get("peak") or {}).get("throughput_inferences_per_s")
    reference = cell.get("reference") or {}
    latency = [reference.get(f"{name}_latency_ms") for name in ("p50", "p95", "p99")]
    row = [cell["batch_size"], total("requests"), total("errors"), total("resent"), peak, *latency, code]
    return [server, transport, load, *map(number, row), ", ".join(codes) or "-"]


def measure(args, server, transport, endpoint, model, flags, seen):
    for load, more in LOADS.items():
        code, cells, said = profile(args.modelmeter, args.folder, endpoint, model, args.budget, [*flags, *more])
        if code or not cells:
            seen["wrong"].append(f"{server}, {transport}, {load}: exit code {code}: {said.strip()}")
        for cell in sorted(cells, key=lambda cell: cell["batch_size"]):
            print_row(cell_row(server, transport, load, cell, code))
            where = f"{server}, {transport}, {load}, batch {cell['batch_size']}"
            for point in cell["points"]:
                if point["errors"]:
                    seen["wrong"].append(f"{where}: {point['error_kinds']}")
                for warning in point["warnings"]:
                    seen["warned"].setdefault(warning["code"], (f"{server}, {transport}", warning["message"]))
                    if warning["code"] in WRONG:
                        seen["wrong"].append(f"{where}, {point['load']['concurrency']} in flight: {warning['message']}")
            if cell.get("error"):
                seen["wrong"].append(f"{where}: {cell['error']['message']}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modelmeter", type=Path, default=ROOT / "target/release/modelmeter", metavar="PATH")
    parser.add_argument("--folder", type=Path, help="keeps what was installed from run to run; by default a temporary one")
    parser.add_argument("--budget", default="40s", help="of each command (default: 40s)")
    args = parser.parse_args()
    # As Ctrl-C: what was started is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with ExitStack() as stack:
        args.folder = (args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="real-servers-")))).resolve()
        (args.folder / "home").mkdir(parents=True, exist_ok=True)
        args.modelmeter = args.modelmeter.resolve()
        version = subprocess.run([args.modelmeter, "--version"], capture_output=True, text=True, check=True).stdout.strip()
        print(f"$ bench/real-servers.py --budget {args.budget}\n{version}, {os.cpu_count()} cores; others may have used them\n")
        shown = f"--batch-sizes {BATCHES} --budget {args.budget} [--concurrency 16]"
        print(f"modelmeter profile --endpoint … --model … {shown}")
        print("calls: of all load points; inf/s: the best; p50, p95, p99: ms, of one call in flight\n")
        print_row(COLUMNS)
        seen = {"wrong": [], "warned": {}}
        with mlserver(args.folder) as (grpc, _):
            measure(args, "MLServer", "plain", f"grpc://127.0.0.1:{grpc}", "cancer", [], seen)
        with kserve(args.modelmeter, args.folder) as (grpc, _):
            measure(args, "KServe", "plain", f"grpc://127.0.0.1:{grpc}", "mlp", [], seen)
        with triton(args.folder) as (grpc, _), nginx(grpc, args.folder) as (plain, tls, ca):
            measure(args, "Triton", "plain", f"grpc://127.0.0.1:{grpc}", "linear", [], seen)
            measure(args, "Triton", "nginx h2c", f"grpc://127.0.0.1:{plain}", "linear", [], seen)
            measure(args, "Triton", "nginx TLS", f"grpcs://localhost:{tls}", "linear", ["--ca", str(ca)], seen)
        print("\nwarnings, each as it was said first:")
        for code, (where, message) in sorted(seen["warned"].items()):
            print(f"  {code} ({where}): {message}")
        print("\n" + ("\n".join(seen["wrong"]) or "no call failed, and each cell was measured"))
    sys.exit(bool(seen["wrong"]))


if __name__ == "__main__":
    main()
