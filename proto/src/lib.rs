//! The contracts that cross a process boundary, generated from `proto/*.proto`. No logic belongs here.

/// The control API: `Control` for users, `Work` for workers.
pub mod control {
    tonic::include_proto!("modelmeter.v1");
}

/// What a worker and a custom inspector, its child, say to each other.
pub mod inspector {
    tonic::include_proto!("modelmeter.inspector.v1");
}

/// KServe v2 (Open Inference Protocol) over gRPC.
pub mod kserve {
    tonic::include_proto!("inference");
}

/// What MLModelCI's own containers speak; it has no package.
pub mod mlmodelci {
    tonic::include_proto!("_");
}

/// The ONNX file format.
pub mod onnx {
    include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
}

/// TensorFlow's tensors and signatures, and in `serving` the API of TensorFlow Serving.
pub mod tensorflow {
    include!(concat!(env!("OUT_DIR"), "/tensorflow.rs"));

    #[allow(missing_docs)]
    pub mod serving {
        tonic::include_proto!("tensorflow.serving");
    }
}

/// The encoded `FileDescriptorSet` of every contract, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// The gRPC metadata key under which an error travels whole: `modelmeter_common::Problem` as JSON.
pub const PROBLEM_KEY: &str = "modelmeter-problem-bin";
