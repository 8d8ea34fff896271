"""KServe's own Python server around an ONNX file, for the engine that modelmeter.toml beside it defines.

Needs: pip install kserve onnxruntime
"""

import argparse

import onnxruntime
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer, model_server

DATATYPES = {"tensor(float)": "FP32", "tensor(double)": "FP64", "tensor(int64)": "INT64", "tensor(int32)": "INT32"}


class OnnxModel(Model):
    def __init__(self, name, path):
        super().__init__(name)
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.ready = True

    def get_input_types(self):
        return [tensor(each) for each in self.session.get_inputs()]

    def get_output_types(self):
        return [tensor(each) for each in self.session.get_outputs()]

    def predict(self, payload: InferRequest, headers=None, response_headers=None):
        inputs = {each.name: each.as_numpy() for each in payload.inputs}
        outputs = []
        for meta, array in zip(self.session.get_outputs(), self.session.run(None, inputs)):
            output = InferOutput(meta.name, list(array.shape), DATATYPES[meta.type])
            output.set_data_from_numpy(array, binary_data=True)
            outputs.append(output)
        return InferResponse(payload.id, self.name, outputs)


def tensor(meta):
    shape = [axis if isinstance(axis, int) else -1 for axis in meta.shape]
    return {"name": meta.name, "datatype": DATATYPES[meta.type], "shape": shape}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(parents=[model_server.parser])
    parser.add_argument("--model", required=True, help="an ONNX file")
    arguments, _ = parser.parse_known_args()
    ModelServer().start([OnnxModel(arguments.model_name, arguments.model)])
