//! The table of engines: what each loads, speaks and where it listens. How one is launched is the worker's.

use crate::model::{Datatype, Format, Model};

/// What a client speaks to a server.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// KServe v2, the Open Inference Protocol.
    KserveV2,
    /// TensorFlow Serving's PredictionService.
    Tfs,
    /// MLModelCI's own Predict service.
    MlmodelciPredict,
}

impl Protocol {
    /// The name on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::KserveV2 => "kserve-v2",
            Self::Tfs => "tfs",
            Self::MlmodelciPredict => "mlmodelci-predict",
        }
    }
}

/// One built-in engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EngineInfo {
    /// Its name in requests.
    pub name: &'static str,
    /// What it is, in a few words.
    pub title: &'static str,
    /// The artifact formats that it loads, best first.
    pub formats: &'static [Format],
    /// The element types of inputs and outputs that it can take.
    pub types: &'static [Datatype],
    /// The element types that it can have among a model's weights.
    pub weights: &'static [Datatype],
    /// What clients speak to it.
    pub protocol: Protocol,
    /// Default ports on a CPU slot: HTTP, gRPC.
    pub cpu_ports: (u16, u16),
    /// Default ports on a GPU slot; none where it has no GPU form.
    pub gpu_ports: Option<(u16, u16)>,
    /// Default port of its metrics, where they have one of their own.
    pub metrics_port: Option<u16>,
}

pub const ONNX_HTTP_PORT: u16 = 8001;
pub const ONNX_GRPC_PORT: u16 = 8002;
pub const ONNX_GPU_HTTP_PORT: u16 = 8010;
pub const ONNX_GPU_GRPC_PORT: u16 = 8011;
pub const RTEN_HTTP_PORT: u16 = 8021;
pub const RTEN_GRPC_PORT: u16 = 8022;
pub const TORCHSCRIPT_HTTP_PORT: u16 = 8100;
pub const TORCHSCRIPT_GRPC_PORT: u16 = 8101;
pub const TORCHSCRIPT_GPU_HTTP_PORT: u16 = 8110;
pub const TORCHSCRIPT_GPU_GRPC_PORT: u16 = 8111;
pub const TRITON_HTTP_PORT: u16 = 8200;
pub const TRITON_GRPC_PORT: u16 = 8201;
pub const TRITON_METRICS_PORT: u16 = 8202;
pub const TFS_HTTP_PORT: u16 = 8501;
pub const TFS_GRPC_PORT: u16 = 8500;
pub const TFS_GPU_HTTP_PORT: u16 = 8510;
pub const TFS_GPU_GRPC_PORT: u16 = 8511;
/// The engine that a server at an endpoint is.
pub const ENDPOINT: &str = "endpoint";
/// The exit code of an engine of ours that does not take its model: started again it would end the same. Source: sysexits.h,
/// EX_DATAERR.
pub const EXIT_REFUSED: u8 = 65;
/// Slot k of a worker adds k times this to an engine's ports.
pub const SLOT_PORT_STEP: u16 = 1000;

/// The built-in engines. `null` (answers at once with zeros; for measuring modelmeter itself) and `endpoint` (a
/// server that already runs, which only the process that was told its address offers) are never chosen by `auto`.
pub const ENGINES: [EngineInfo; 7] = [
    EngineInfo {
        name: "onnx",
        title: "ONNX Runtime, loaded at run time",
        formats: &[Format::Onnx],
        types: &NUMBERS,
        weights: &Datatype::ALL,
        protocol: Protocol::KserveV2,
        cpu_ports: (ONNX_HTTP_PORT, ONNX_GRPC_PORT),
        gpu_ports: Some((ONNX_GPU_HTTP_PORT, ONNX_GPU_GRPC_PORT)),
        metrics_port: None,
    },
    EngineInfo {
        name: "rten",
        title: "rten, the embedded default, pure Rust",
        formats: &[Format::Onnx],
        types: &RTEN_TYPES,
        weights: &RTEN_WEIGHTS,
        protocol: Protocol::KserveV2,
        cpu_ports: (RTEN_HTTP_PORT, RTEN_GRPC_PORT),
        gpu_ports: None,
        metrics_port: None,
    },
    EngineInfo {
        name: "torchscript",
        title: "TorchScript in the user's own torch",
        formats: &[Format::Torchscript],
        types: &NUMBERS,
        weights: &Datatype::ALL,
        protocol: Protocol::KserveV2,
        cpu_ports: (TORCHSCRIPT_HTTP_PORT, TORCHSCRIPT_GRPC_PORT),
        gpu_ports: Some((TORCHSCRIPT_GPU_HTTP_PORT, TORCHSCRIPT_GPU_GRPC_PORT)),
        metrics_port: None,
    },
    EngineInfo {
        name: "triton",
        title: "NVIDIA Triton Inference Server",
        formats: &[Format::Triton, Format::Onnx, Format::Torchscript, Format::Savedmodel],
        types: &Datatype::ALL,
        weights: &Datatype::ALL,
        protocol: Protocol::KserveV2,
        cpu_ports: (TRITON_HTTP_PORT, TRITON_GRPC_PORT),
        gpu_ports: Some((TRITON_HTTP_PORT, TRITON_GRPC_PORT)),
        metrics_port: Some(TRITON_METRICS_PORT),
    },
    EngineInfo {
        name: "tfs",
        title: "TensorFlow Serving",
        formats: &[Format::Savedmodel],
        types: &Datatype::ALL,
        weights: &Datatype::ALL,
        protocol: Protocol::Tfs,
        cpu_ports: (TFS_HTTP_PORT, TFS_GRPC_PORT),
        gpu_ports: Some((TFS_GPU_HTTP_PORT, TFS_GPU_GRPC_PORT)),
        metrics_port: None,
    },
    EngineInfo {
        name: "null",
        title: "answers at once with zeros: measures modelmeter itself",
        formats: &[Format::Onnx],
        types: &Datatype::ALL,
        weights: &Datatype::ALL,
        protocol: Protocol::KserveV2,
        cpu_ports: (0, 0),
        gpu_ports: None,
        metrics_port: None,
    },
    EngineInfo {
        name: ENDPOINT,
        title: "a server that already runs, named by --endpoint",
        formats: &[],
        types: &Datatype::ALL,
        weights: &Datatype::ALL,
        protocol: Protocol::KserveV2,
        cpu_ports: (0, 0),
        gpu_ports: None,
        metrics_port: None,
    },
];

/// Everything but strings.
const NUMBERS: [Datatype; 13] = [
    Datatype::Bool,
    Datatype::Uint8,
    Datatype::Uint16,
    Datatype::Uint32,
    Datatype::Uint64,
    Datatype::Int8,
    Datatype::Int16,
    Datatype::Int32,
    Datatype::Int64,
    Datatype::Fp16,
    Datatype::Bf16,
    Datatype::Fp32,
    Datatype::Fp64,
];
/// rten computes with FP32, INT32, INT8 and UINT8, and keeps INT64 and BOOL as INT32.
const RTEN_TYPES: [Datatype; 6] =
    [Datatype::Fp32, Datatype::Int32, Datatype::Int64, Datatype::Bool, Datatype::Int8, Datatype::Uint8];
/// Weights of FP16 and FP64 it makes FP32 as it loads them.
const RTEN_WEIGHTS: [Datatype; 8] = [
    Datatype::Fp32,
    Datatype::Fp16,
    Datatype::Fp64,
    Datatype::Int32,
    Datatype::Int64,
    Datatype::Bool,
    Datatype::Int8,
    Datatype::Uint8,
];

impl EngineInfo {
    /// What of the model's element types it does not have, in words.
    pub fn lacks_type_of(&self, model: &Model) -> Option<String> {
        let tensors = [("input", &model.inputs), ("output", &model.outputs)];
        let mut tensors = tensors.into_iter().flat_map(|(role, specs)| specs.iter().map(move |spec| (role, spec)));
        let lacking = tensors.find(|(_, spec)| !self.types.contains(&spec.dtype));
        let weight = || model.weights.iter().find(|dtype| !self.weights.contains(dtype));
        lacking
            .map(|(role, spec)| format!("{role} '{}' is {}", spec.name, spec.dtype))
            .or_else(|| weight().map(|dtype| format!("the model has weights of {dtype}")))
    }
}

/// The built-in engine of this name.
pub fn find(name: &str) -> Option<&'static EngineInfo> {
    ENGINES.iter().find(|engine| engine.name == name)
}
