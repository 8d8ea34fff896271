//! Compiles the .proto files with protox (no protoc) and keeps the descriptor set for reflection.
use prost::Message;

const FILES: [&str; 7] = [
    "control.proto",
    "inspector.proto",
    "kserve_v2.proto",
    "mlmodelci.proto",
    "onnx.proto",
    "tensorflow.proto",
    "tensorflow_serving.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(FILES, ["proto"])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".inference")
        .bytes(".InferRequest")
        .bytes(".modelmeter.inspector")
        .bytes(".onnx")
        .bytes(".tensorflow")
        .btree_map(".tensorflow")
        .compile_fds(descriptors)?;
    Ok(())
}
