//! What the responder answers: the KServe v2 methods that clients call before and while they measure, for any model
//! name, with one input of 16 floats. Source of the field numbers: the Open Inference Protocol, and Triton's
//! `grpc_service.proto` and `model_config.proto`.

const FLOATS: u64 = 16;
const MAX_BATCH: u64 = 8;
const SERVICE: &[u8] = b"/inference.GRPCInferenceService/";

/// A method of the service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// The one that is measured.
    ModelInfer,
    /// `ServerLive`, `ServerReady`, `ModelReady`: all of them answer yes.
    Ready,
    ServerMetadata,
    ModelMetadata,
    ModelConfig,
    ModelStatistics,
    Unknown,
}

impl Method {
    /// The method at an HTTP/2 `:path`.
    pub fn at(path: &[u8]) -> Self {
        match path.strip_prefix(SERVICE) {
            Some(b"ModelInfer") => Self::ModelInfer,
            Some(b"ServerLive" | b"ServerReady" | b"ModelReady") => Self::Ready,
            Some(b"ServerMetadata") => Self::ServerMetadata,
            Some(b"ModelMetadata") => Self::ModelMetadata,
            Some(b"ModelConfig") => Self::ModelConfig,
            Some(b"ModelStatistics") => Self::ModelStatistics,
            _ => Self::Unknown,
        }
    }

    /// The response's message.
    pub fn answer(self, request: &[u8]) -> Vec<u8> {
        let name = || field(request, 1).unwrap_or_default();
        let mut out = Vec::new();
        match self {
            Self::ModelInfer => infer(request, &mut out),
            Self::Ready => put_int(&mut out, 1, 1),
            Self::ServerMetadata => {
                put(&mut out, 1, b"responder");
                put(&mut out, 2, b"1");
            }
            Self::ModelMetadata => {
                put(&mut out, 1, name());
                put(&mut out, 2, b"1");
                put(&mut out, 3, b"null");
                put(&mut out, 4, &tensor_metadata(b"x"));
                put(&mut out, 5, &tensor_metadata(b"y"));
            }
            Self::ModelConfig => {
                let mut config = Vec::new();
                put(&mut config, 1, name());
                put_int(&mut config, 4, MAX_BATCH);
                put(&mut config, 5, &tensor_config(b"x", 4));
                put(&mut config, 6, &tensor_config(b"y", 3));
                put(&mut out, 1, &config);
            }
            Self::ModelStatistics | Self::Unknown => {}
        }
        out
    }
}

fn infer(request: &[u8], out: &mut Vec<u8>) {
    put(out, 1, b"null");
    // Some clients find their call by the id in its answer.
    if let Some(id) = field(request, 3) {
        put(out, 3, id);
    }
    let mut tensor = Vec::with_capacity(16);
    put(&mut tensor, 1, b"y");
    put(&mut tensor, 2, b"FP32");
    put(&mut tensor, 3, &[1, FLOATS as u8]);
    put(out, 5, &tensor);
    put(out, 6, &[0; 4 * FLOATS as usize]);
}

fn tensor_metadata(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, 1, name);
    put(&mut out, 2, b"FP32");
    let mut shape = Vec::new();
    put_varint(&mut shape, -1i64 as u64);
    put_varint(&mut shape, FLOATS);
    put(&mut out, 3, &shape);
    out
}

fn tensor_config(name: &[u8], dims_field: u64) -> Vec<u8> {
    const TYPE_FP32: u64 = 11;
    let mut out = Vec::new();
    put(&mut out, 1, name);
    put_int(&mut out, 2, TYPE_FP32);
    put(&mut out, dims_field, &[FLOATS as u8]);
    out
}

/// The first length-delimited field of this number, looked for among those that come first.
fn field(mut message: &[u8], number: u64) -> Option<&[u8]> {
    while let Some((&tag, rest)) = message.split_first() {
        let (&len, rest) = rest.split_first()?;
        // Names and ids are short, and clients write fields in the order of their numbers.
        if tag & 0x87 != 2 || len >= 0x80 || u64::from(tag >> 3) > number {
            return None;
        }
        let (value, rest) = rest.split_at_checked(usize::from(len))?;
        if u64::from(tag >> 3) == number {
            return Some(value);
        }
        message = rest;
    }
    None
}

fn put(out: &mut Vec<u8>, number: u64, value: &[u8]) {
    put_varint(out, number << 3 | 2);
    put_varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn put_int(out: &mut Vec<u8>, number: u64, value: u64) {
    put_varint(out, number << 3);
    put_varint(out, value);
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
