"""Writes an ONNX model in the other formats that engines load: TorchScript, SavedModel, a Triton model directory.

    python scripts/convert.py resnet50.onnx OUT          makes OUT/resnet50.pt, OUT/resnet50.savedmodel/, OUT/resnet50.triton/

The network is the file's own, node by node with the file's own weights, so that every format is the same work. It
knows what the built-in pictures and perceptrons are made of, and refuses other operators by name. Inputs keep their
names, types and shapes (NCHW); TensorFlow, whose CPU kernels convolve NHWC alone, transposes a picture once at the start.

Needs: pip install onnx numpy, and torch or tensorflow for the formats that are theirs.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

TRITON_MODEL = Path(__file__).parent.parent / "worker/src/engine/triton/model.py"


class Graph:
    """The file as plain values: nodes in order, weights by name."""

    def __init__(self, path):
        graph = onnx.load(path).graph
        self.weights = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in graph.initializer}
        self.nodes = [(node.op_type, list(node.input), node.output[0], attributes(node)) for node in graph.node]
        self.inputs = [signature(value) for value in graph.input if value.name not in self.weights]
        self.outputs = [signature(value) for value in graph.output]

    def swap_two_weights(self):
        """Two weights of the last layer change places: another network, for tests that must notice."""
        weight = self.weights[self.nodes[-1][1][1]]
        row = weight[0]
        low, high = row.argmin(), row.argmax()
        row[[low, high]] = row[[high, low]]


def attributes(node):
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def signature(value):
    """(name, numpy type, shape after the batch axis)."""
    tensor = value.type.tensor_type
    dims = [dim.dim_value for dim in tensor.shape.dim[1:]]
    return value.name, helper.tensor_dtype_to_np_dtype(tensor.elem_type), dims


def symmetric(pads):
    """Padding before each axis, where it is the same after it: all that the formats have in common."""
    half = len(pads) // 2
    if pads[:half] != pads[half:]:
        raise SystemExit(f"convert: padding {pads} is not symmetric")
    return pads[:half]


def run(graph, values, ops):
    """Puts each node's output into `values`, made by the operator of its name."""
    for op, inputs, output, attribute in graph.nodes:
        if op not in ops:
            raise SystemExit(f"convert: operator {op} is not known, these are: {', '.join(sorted(ops))}")
        values[output] = ops[op](attribute, *(values[name] for name in inputs))
    return [values[name] for name, _, _ in graph.outputs]


def write_torchscript(graph, path):
    import torch
    from torch.nn import functional as F

    def gemm(a, x, weight, bias):
        return F.linear(x, weight if a.get("transB") else weight.t(), bias)

    ops = {
        "Conv": lambda a, x, w, b: F.conv2d(x, w, b, a["strides"], symmetric(a["pads"]), a["dilations"], a["group"]),
        "MaxPool": lambda a, x: F.max_pool2d(x, a["kernel_shape"], a["strides"], symmetric(a["pads"])),
        "Relu": lambda a, x: F.relu(x),
        "Clip": lambda a, x, low, high: torch.clamp(x, low, high),
        "Add": lambda a, x, y: x + y,
        "GlobalAveragePool": lambda a, x: F.adaptive_avg_pool2d(x, 1),
        "Flatten": lambda a, x: torch.flatten(x, a["axis"]),
        "Gemm": gemm,
    }

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, weight in graph.weights.items():
                self.register_buffer(name, torch.from_numpy(weight))

        def forward(self, *inputs):
            values = dict(self.named_buffers())
            values.update(zip((name for name, _, _ in graph.inputs), inputs))
            found = run(graph, values, ops)
            return found[0] if len(found) == 1 else tuple(found)

    example = tuple(torch.zeros([2, *dims], dtype=torch.from_numpy(np.empty(0, dtype)).dtype) for _, dtype, dims in graph.inputs)
    with torch.inference_mode():
        torch.jit.save(torch.jit.trace(Network().eval(), example), str(path))


def write_savedmodel(graph, path):
    import tensorflow as tf

    def padded(a, x, value=0.0):
        """The input and the word for the padding that it still needs, as TensorFlow's own networks have it.

        SAME is ONNX's padding at stride 1 alone. With explicit padding, oneDNN's fused kernels in 2.19 abort the process.
        """
        pads, kernel = symmetric(a["pads"]), a["kernel_shape"]
        if all(stride == 1 for stride in a["strides"]) and all(2 * pad + 1 == side for pad, side in zip(pads, kernel)):
            return x, "SAME"
        if any(pads):
            x = tf.pad(x, [[0, 0], *([pad, pad] for pad in pads), [0, 0]], constant_values=value)
        return x, "VALID"

    def conv(a, x, weight, bias):
        # ONNX has filters as (out, in, height, width); a depthwise one has one input channel.
        x, padding = padded(a, x)
        if a["group"] == 1:
            y = tf.nn.conv2d(x, tf.transpose(weight, [2, 3, 1, 0]), a["strides"], padding)
        else:
            y = tf.nn.depthwise_conv2d(x, tf.transpose(weight, [2, 3, 0, 1]), [1, *a["strides"], 1], padding)
        return tf.nn.bias_add(y, bias)

    def max_pool(a, x):
        x, padding = padded(a, x, x.dtype.min)
        return tf.nn.max_pool2d(x, a["kernel_shape"], a["strides"], padding)

    def gemm(a, x, weight, bias):
        return tf.matmul(x, weight, transpose_b=bool(a.get("transB"))) + bias

    ops = {
        "Conv": conv,
        "MaxPool": max_pool,
        "Relu": lambda a, x: tf.nn.relu(x),
        "Clip": lambda a, x, low, high: tf.clip_by_value(x, low, high),
        "Add": lambda a, x, y: x + y,
        "GlobalAveragePool": lambda a, x: tf.reduce_mean(x, [1, 2], keepdims=True),
        # Only pooled pictures and vectors are flattened, whose layout does not matter.
        "Flatten": lambda a, x: tf.reshape(x, [tf.shape(x)[0], -1]),
        "Gemm": gemm,
    }
    module = tf.Module()
    module.weights = {name: tf.Variable(weight, trainable=False) for name, weight in graph.weights.items()}
    specs = [tf.TensorSpec([None, *dims], dtype, name) for name, dtype, dims in graph.inputs]

    @tf.function(input_signature=specs)
    def serve(*inputs):
        values = {name: tf.convert_to_tensor(weight) for name, weight in module.weights.items()}
        for (name, _, dims), value in zip(graph.inputs, inputs):
            values[name] = tf.transpose(value, [0, 2, 3, 1]) if len(dims) == 3 else value
        return dict(zip((name for name, _, _ in graph.outputs), run(graph, values, ops)))

    shutil.rmtree(path, ignore_errors=True)
    tf.saved_model.save(module, str(path), signatures=serve)


def write_triton(source, graph, path):
    """A directory for Triton's Python backend, which runs the ONNX file in ONNX Runtime."""

    def tensors(word, of):
        types = {"float32": "TYPE_FP32", "int64": "TYPE_INT64", "int32": "TYPE_INT32"}
        one = '{{ name: "{}" data_type: {} dims: {} }}'
        return f"{word} [ " + ", ".join(one.format(name, types[np.dtype(dtype).name], dims) for name, dtype, dims in of) + " ]\n"

    shutil.rmtree(path, ignore_errors=True)
    (path / "1").mkdir(parents=True)
    shutil.copy(source, path / "1/model.onnx")
    shutil.copy(TRITON_MODEL, path / "1/model.py")
    config = 'backend: "python"\nmax_batch_size: 64\n' + tensors("input", graph.inputs) + tensors("output", graph.outputs)
    (path / "config.pbtxt").write_text(config)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="an ONNX file")
    parser.add_argument("out", type=Path, help="a folder")
    parser.add_argument("--formats", default="torchscript,savedmodel,triton")
    parser.add_argument("--swap-two-weights", action="store_true", help="spoil the copies, for tests that must notice")
    options = parser.parse_args()
    graph, stem = Graph(options.model), options.model.stem
    if options.swap_two_weights:
        graph.swap_two_weights()
    options.out.mkdir(parents=True, exist_ok=True)
    writers = {
        "torchscript": lambda: write_torchscript(graph, options.out / f"{stem}.pt"),
        "savedmodel": lambda: write_savedmodel(graph, options.out / f"{stem}.savedmodel"),
        "triton": lambda: write_triton(options.model, graph, options.out / f"{stem}.triton"),
    }
    for name in options.formats.split(","):
        if name not in writers:
            raise SystemExit(f"convert: format '{name}' is not one of {', '.join(writers)}")
        writers[name]()


if __name__ == "__main__":
    main()
