"""Runs the model beside this file in Triton's Python backend: model.onnx, model.pt or model.savedmodel.

Parameters of config.pbtxt: threads (inside an inference); example (shapes of inputs, where outputs are not given).
"""

import json
import os

import numpy as np
import triton_python_backend_utils as triton

FOLDER = os.path.dirname(os.path.abspath(__file__))


class Onnx:
    def __init__(self, path, gpu, threads):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        providers = ["CUDAExecutionProvider"] if gpu is not None else ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(path, options, providers)
        found = self.session.get_providers()[0]
        if found != providers[0]:
            raise RuntimeError(f"this onnxruntime has no {providers[0]}: it would run on {found}")

    def run(self, inputs):
        return dict(zip((output.name for output in self.session.get_outputs()), self.session.run(None, inputs)))


class TorchScript:
    """Inputs go by name where the module has these names, else in the order of config.pbtxt.

    Outputs are named output, or output_0, output_1, …
    """

    def __init__(self, path, gpu, threads):
        import torch

        if threads:
            torch.set_num_threads(threads)
        self.torch, self.device = torch, torch.device("cpu" if gpu is None else f"cuda:{gpu}")
        self.module = torch.jit.load(path, map_location=self.device).eval()
        self.names = {argument.name for argument in self.module.forward.schema.arguments}

    def run(self, inputs):
        torch = self.torch
        tensors = {name: torch.from_numpy(value).to(self.device) for name, value in inputs.items()}
        with torch.inference_mode():
            found = self.module(**tensors) if tensors.keys() <= self.names else self.module(*tensors.values())
        found = found if isinstance(found, (list, tuple)) else [found]
        names = ["output"] if len(found) == 1 else [f"output_{index}" for index in range(len(found))]
        return {name: value.cpu().numpy() for name, value in zip(names, found)}


class SavedModel:
    def __init__(self, path, gpu, threads):
        import tensorflow

        if threads:
            tensorflow.config.threading.set_intra_op_parallelism_threads(threads)
        if gpu is not None and not tensorflow.config.list_physical_devices("GPU"):
            raise RuntimeError("this tensorflow sees no GPU")
        self.convert = tensorflow.constant
        # Kept: the signature does not keep the variables alive.
        self.loaded = tensorflow.saved_model.load(path)
        signatures = self.loaded.signatures
        self.signature = signatures["serving_default"] if "serving_default" in signatures else next(iter(signatures.values()))

    def run(self, inputs):
        found = self.signature(**{name: self.convert(value) for name, value in inputs.items()})
        return {name: value.numpy() for name, value in found.items()}


RUNTIMES = {"model.onnx": Onnx, "model.pt": TorchScript, "model.savedmodel": SavedModel}


def load(config, gpu=None):
    for name, runtime in RUNTIMES.items():
        path = os.path.join(FOLDER, name)
        if os.path.exists(path):
            parameter = config.get("parameters", {}).get("threads", {})
            return runtime(path, gpu, int(parameter.get("string_value", 0)))
    raise RuntimeError(f"there is none of {', '.join(RUNTIMES)} in {FOLDER}")


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(completed):
        """A TorchScript file does not say what it gives: one call on zeros does."""
        config = completed.as_dict()
        if config["output"]:
            return completed
        shapes = json.loads(config["parameters"]["example"]["string_value"])
        zeros = {
            tensor["name"]: np.zeros(shape, triton.triton_string_to_numpy(tensor["data_type"]))
            for tensor, shape in zip(config["input"], shapes)
        }
        batched = int(config["max_batch_size"] > 0)
        for name, value in load(config).run(zeros).items():
            dtype = "TYPE_" + triton_type(value.dtype)
            completed.add_output({"name": name, "data_type": dtype, "dims": [-1] * (value.ndim - batched)})
        return completed

    def initialize(self, args):
        config = json.loads(args["model_config"])
        gpu = args["model_instance_device_id"] if args["model_instance_kind"] == "GPU" else None
        self.model = load(config, gpu)
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.outputs = [tensor["name"] for tensor in config["output"]]

    def execute(self, requests):
        """Requests that Triton's dynamic batching brings together run as one batch."""
        taken = [
            {name: triton.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs} for request in requests
        ]
        if len(taken) == 1:
            return [self.response(self.model.run(taken[0]))]
        whole = self.model.run({name: np.concatenate([one[name] for one in taken]) for name in self.inputs})
        ends = np.cumsum([len(one[self.inputs[0]]) for one in taken])[:-1]
        parts = {name: np.split(value, ends) for name, value in whole.items()}
        return [self.response({name: part[index] for name, part in parts.items()}) for index in range(len(taken))]

    def response(self, found):
        return triton.InferenceResponse([triton.Tensor(name, np.ascontiguousarray(found[name])) for name in self.outputs])


def triton_type(dtype):
    names = {"float16": "FP16", "float32": "FP32", "float64": "FP64", "bool": "BOOL", "object": "STRING"}
    return names.get(dtype.name, dtype.name.upper())
