"""KServe v2 server for one TorchScript file, run by the user's own Python with torch and grpcio.

What belongs here: the calls, the two servers (gRPC; HTTP for health and metadata) and the command line. The messages
are in wire.py, the model is in model.py. modelmeter carries all three inside its binary.
"""

import argparse
import asyncio
import json
import os
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from model import Model, Refused, invalid, last_line
from wire import DATATYPES, InferRequest, WireError, boolean, delimited, encode_response, fields, string, tensor_header, text

PLATFORM = "pytorch_torchscript"
# What modelmeter takes for a model that would not load the next time either (sysexits.h, EX_DATAERR).
EXIT_REFUSED = 65


class Service:
    """The calls of GRPCInferenceService, on bytes."""

    def __init__(self, model, name, version):
        self.model, self.name, self.version = model, name, version

    def check_name(self, message):
        asked = "".join(text(wire, value) for number, wire, value in fields(memoryview(message)) if number == 1)
        if asked != self.name:
            raise Refused("NOT_FOUND", f"there is no model '{asked}', this server has '{self.name}'")

    def live(self, _message):
        return boolean(1, True)

    def model_ready(self, message):
        self.check_name(message)
        return boolean(1, True)

    def server_metadata(self, _message):
        return string(1, "torchscript") + string(2, self.version)

    def model_metadata(self, message):
        self.check_name(message)
        return b"".join(
            [string(1, self.name), string(2, "1"), string(3, PLATFORM)]
            + [delimited(4, tensor_header(t["name"], t["dtype"], t["shape"])) for t in self.model.inputs]
            + [delimited(5, tensor_header(t["name"], t["dtype"], t["shape"])) for t in self.model.outputs]
        )

    def infer(self, message):
        request = InferRequest.decode(message)
        if request.model_name != self.name:
            raise Refused("NOT_FOUND", f"there is no model '{request.model_name}', this server has '{self.name}'")
        return encode_response(self.name, request.id, self.model.infer(request))


METHODS = {
    "ServerLive": Service.live,
    "ServerReady": Service.live,
    "ModelReady": Service.model_ready,
    "ServerMetadata": Service.server_metadata,
    "ModelMetadata": Service.model_metadata,
    "ModelInfer": Service.infer,
}


def answer(service, method, message):
    """Calls a method; whatever goes wrong is a `Refused`."""
    try:
        return method(service, message)
    except WireError as error:
        raise invalid(f"the request is not a valid message: {error}") from None
    except Refused:
        raise
    except Exception as error:
        raise Refused("INTERNAL", f"{type(error).__name__}: {last_line(error)}") from error


GRPC_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A port that is taken must be an error, not shared.
    ("grpc.so_reuseport", 0),
]


def grpc_handlers(grpc, service, pool):
    """The methods as handlers of bytes. With a pool, inferences run on its threads, else on the event loop itself.

    The loop spares two changes of thread a call, where there is nothing else to do meanwhile: one instance on the CPU.
    Beside a GPU, or another instance, the loop receives the next request while a thread waits.
    """

    def handler(name, method):
        async def call(message, context):
            try:
                if pool is not None and name == "ModelInfer":
                    return await asyncio.get_running_loop().run_in_executor(pool, answer, service, method, message)
                return answer(service, method, message)
            except Refused as refused:
                await context.abort(grpc.StatusCode[refused.status], str(refused))

        return grpc.unary_unary_rpc_method_handler(call)

    made = {name: handler(name, method) for name, method in METHODS.items()}
    return grpc.method_handlers_generic_handler("inference.GRPCInferenceService", made)


class Rest(BaseHTTPRequestHandler):
    """Health and metadata of KServe v2 over HTTP; inference is gRPC's."""

    protocol_version = "HTTP/1.1"
    service = None

    def do_GET(self):
        path = self.path.split("?")[0].rstrip("/")
        found = self.answers().get(path)
        body = json.dumps(found or {"error": f"there is nothing at {path}"}).encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answers(self):
        service = self.service

        def shown(tensors):
            return [{"name": t["name"], "datatype": t["dtype"], "shape": t["shape"]} for t in tensors]

        return {
            "/v2": {"name": "torchscript", "version": service.version, "extensions": []},
            "/v2/health/live": {"live": True},
            "/v2/health/ready": {"ready": True},
            f"/v2/models/{service.name}/ready": {"name": service.name, "ready": True},
            f"/v2/models/{service.name}": {
                "name": service.name,
                "versions": ["1"],
                "platform": PLATFORM,
                "inputs": shown(service.model.inputs),
                "outputs": shown(service.model.outputs),
            },
        }

    def log_message(self, *_):
        """No access log."""


async def serve(grpc, service, pool, options):
    """Answers on both ports until the process is ended: SIGTERM has its default effect, at once."""
    server = grpc.aio.server(options=GRPC_OPTIONS)
    server.add_generic_rpc_handlers((grpc_handlers(grpc, service, pool),))
    try:
        grpc_port = server.add_insecure_port(f"127.0.0.1:{options.grpc_port}")
    except RuntimeError:
        grpc_port = 0
    if not grpc_port:
        raise OSError(f"cannot listen on gRPC port {options.grpc_port}: it is taken")
    try:
        http = ThreadingHTTPServer(("127.0.0.1", options.http_port), type("BoundRest", (Rest,), {"service": service}))
    except OSError as error:
        raise OSError(f"cannot listen on HTTP port {options.http_port}: {error.strerror}") from None
    await server.start()
    threading.Thread(target=http.serve_forever, daemon=True).start()
    say(f"{service.version} serves {service.name}: gRPC 127.0.0.1:{grpc_port}, HTTP 127.0.0.1:{http.server_port}")
    await server.wait_for_termination()


SETTINGS = {"threads": "threads inside an inference", "instances": "inferences side by side"}
MAX_COUNT = 1024


def read_settings(given):
    """`--settings`: a JSON object with some of SETTINGS."""
    settings = read_object("settings", given)
    for name, value in settings.items():
        if name not in SETTINGS:
            raise ValueError(f"engine torchscript has no setting '{name}': it takes {', '.join(SETTINGS)}")
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_COUNT:
            raise ValueError(f"{json.dumps(value)} is not a value of '{name}': a whole number from 1 to {MAX_COUNT}")
    return settings


def read_signature(given):
    """`--signature`: names, types and shapes of the inputs, and of the outputs where they are known."""
    signature = read_object("signature", given)
    for tensor in signature.get("inputs", []) + signature.get("outputs", []):
        if tensor.get("dtype") not in DATATYPES or not tensor.get("name") or not isinstance(tensor.get("shape"), list):
            raise ValueError(f"a tensor of --signature has name, dtype (as FP32) and shape: {json.dumps(tensor)}")
    return signature


def read_object(name, given):
    try:
        found = json.loads(given)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"--{name} is not a JSON object: {given}")
    return found


def read_device(torch, name):
    """The device, with its context made, so that the first call does not pay for it."""
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"torch {torch.__version__} (built for CUDA {torch.version.cuda}) sees no GPU for {name}")
        torch.zeros(1, device=device)
        torch.cuda.synchronize(device)
    elif device.type != "cpu":
        raise ValueError(f"'{name}' is not a device: cpu or cuda:N")
    return device


def version_of(torch):
    return f"torch {torch.__version__}" + (f" (CUDA {torch.version.cuda})" if torch.version.cuda else "")


def cores():
    """The physical cores of the host, but no more than this process may run on: what onnx and rten take too.

    Whoever starts this process says what a CPU quota allows it."""
    usable = min(len(os.sched_getaffinity(0)), int(os.environ.get("MODELMETER_MAX_THREADS", 1024)))
    try:
        with open("/proc/cpuinfo") as info:
            fields = [line.split(":")[1].strip() for line in info if line.startswith(("physical id", "core id"))]
    except OSError:
        return usable
    return min(usable, len(set(zip(fields[::2], fields[1::2]))) or usable)


class DoesNotLoad(Exception):
    """The model does not load: it would not the next time."""


def say(line):
    print(f"torchscript: {line}", file=sys.stderr, flush=True)


def parse_arguments(words):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--model-name", required=True)
    parser.add_argument("--grpc-port", type=int, required=True)
    parser.add_argument("--http-port", type=int, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--settings", default="{}")
    parser.add_argument("--signature", default="{}")
    return parser.parse_args(words)


def run(options):
    settings, signature = read_settings(options.settings), read_signature(options.signature)
    import grpc
    import torch

    # A message is immutable to Python; only a model that changes its own input writes there, and nobody else reads it.
    warnings.filterwarnings("ignore", message="The given buffer is not writable")
    instances = settings.get("instances", 1)
    # Left to itself torch may take a single thread, with which it leaves oneDNN aside for many a convolution.
    torch.set_num_threads(settings.get("threads", cores()))
    device = read_device(torch, options.device)
    try:
        model = Model(torch, options.model, device, signature, instances)
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        raise DoesNotLoad(last_line(error)) from error
    pool = ThreadPoolExecutor(instances) if instances > 1 or device.type != "cpu" else None
    asyncio.run(serve(grpc, Service(model, options.model_name, version_of(torch)), pool, options))


def main():
    options = parse_arguments(sys.argv[1:])
    try:
        run(options)
    except KeyboardInterrupt:
        pass
    except ImportError as error:
        say(f"{sys.executable} has no {error.name}: pip install torch grpcio")
        return 1
    except DoesNotLoad as error:
        say(f"cannot serve {options.model}: {error}")
        return EXIT_REFUSED
    except Exception as error:
        say(f"cannot serve {options.model}: {last_line(error)}")
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # Past torch's own clean-up, which can take seconds or hang where CUDA failed.
    os._exit(code)
