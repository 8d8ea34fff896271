//! One error that a user can act on, and the one table of its codes.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What went wrong, for programs. One enum maps to gRPC status and exit code.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// The input is wrong: nothing was started.
    InvalidArgument,
    /// The thing named does not exist.
    NotFound,
    /// It exists already, with other content.
    AlreadyExists,
    /// A part that is needed is not installed or cannot run here.
    NotInstalled,
    /// A port, device or file is held by something else.
    Busy,
    /// A broker, hub, coordinator or endpoint could not be reached.
    Unreachable,
    /// The engine could not be launched, or died.
    EngineFailed,
    /// The engine was not ready, or a call was not answered, in time.
    DeadlineExceeded,
    /// The engine answered with something that is not a valid result.
    BadResponse,
    /// No slot of any worker can run the cell.
    NoWorker,
    /// The user or the coordinator stopped it.
    Cancelled,
    /// Credentials are missing or wrong.
    Unauthenticated,
    /// The disk is full, or the place to write to is not writable.
    Storage,
    /// A defect of modelmeter.
    Internal,
    /// The engine does not take the model, or what it is sent: the same would happen again.
    EngineRefused,
}

impl Code {
    /// The name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid_argument",
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::NotInstalled => "not_installed",
            Self::Busy => "busy",
            Self::Unreachable => "unreachable",
            Self::EngineFailed => "engine_failed",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::BadResponse => "bad_response",
            Self::NoWorker => "no_worker",
            Self::Cancelled => "cancelled",
            Self::Unauthenticated => "unauthenticated",
            Self::Storage => "storage",
            Self::Internal => "internal",
            Self::EngineRefused => "engine_refused",
        }
    }

    /// The process's exit code when this ends a command: 2 for what the user can mend before
    /// anything starts, 130 for an interruption, else 1.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::InvalidArgument
            | Self::NotFound
            | Self::AlreadyExists
            | Self::NotInstalled
            | Self::Busy
            | Self::Unreachable
            | Self::Unauthenticated
            | Self::Storage => 2,
            Self::Cancelled => 130,
            _ => 1,
        }
    }

    /// The gRPC status code. Source: the gRPC documentation, "Status codes and their use in gRPC".
    pub fn grpc(self) -> i32 {
        match self {
            Self::Cancelled => 1,
            Self::InvalidArgument => 3,
            Self::DeadlineExceeded => 4,
            Self::NotFound => 5,
            Self::AlreadyExists => 6,
            Self::Busy | Self::Storage => 8,
            Self::NotInstalled | Self::NoWorker => 9,
            Self::Internal | Self::EngineFailed | Self::EngineRefused | Self::BadResponse => 13,
            Self::Unreachable => 14,
            Self::Unauthenticated => 16,
        }
    }

    /// Whether the same thing tried again, unchanged, may succeed.
    pub fn retryable(self) -> bool {
        matches!(self, Self::Unreachable | Self::EngineFailed | Self::DeadlineExceeded | Self::Busy)
    }
}

/// An error as a user sees it: what, where, and what to do. Texts are lower case, without a full stop.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Problem {
    /// What went wrong, for programs.
    pub code: Code,
    /// The field or flag that it is about.
    pub field: Option<String>,
    /// What went wrong, for people, with what was got.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Problem {
    /// A problem with a message alone.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, field: None, message: message.into(), hint: None }
    }

    /// Bad input in `field`.
    pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message).with_field(field)
    }

    /// The same, about this field.
    #[must_use]
    pub fn with_field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// The same, with what to do.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(field) = &self.field {
            write!(f, "{field}: ")?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}

/// What others call engines, devices, protocols and element types: our word, and theirs.
const OTHER_WORDS: [(&str, &[&str]); 12] = [
    ("onnx", &["onnxruntime", "onnx-runtime", "ort"]),
    ("torchscript", &["pytorch", "torch", "libtorch", "jit"]),
    ("tfs", &["tensorflow-serving", "tensorflow_serving", "tensorflow", "tf-serving", "tfserving", "tf", "savedmodel"]),
    ("triton", &["tritonserver", "triton-server", "nvidia-triton"]),
    ("kserve-v2", &["kserve", "v2", "oip", "open-inference-protocol", "grpc", "triton"]),
    ("gpu", &["cuda", "nvidia"]),
    ("FP16", &["float16", "half", "f16"]),
    ("FP32", &["float32", "float", "single", "f32"]),
    ("FP64", &["float64", "double", "f64"]),
    ("INT32", &["int", "i32"]),
    ("INT64", &["long", "i64"]),
    ("BYTES", &["string", "str"]),
];

/// How a hint begins where one of `known` is close to `given`, or is what others call it: "did you mean 'onnx'? "; else nothing.
pub fn did_you_mean<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    let same = known.iter().find(|word| word.eq_ignore_ascii_case(given));
    let means = |word: &str| {
        let theirs = given.to_ascii_lowercase();
        OTHER_WORDS.iter().any(|(ours, others)| *ours == word && others.contains(&theirs.as_str()))
    };
    same.or_else(|| known.iter().find(|word| means(word)))
        .copied()
        .or_else(|| closest(given, known.iter().copied()))
        .map(|near| format!("did you mean '{near}'? "))
        .unwrap_or_default()
}

/// The closest of `known` to `given`: at most half of it away in edits.
fn closest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let (distance, best) = known.into_iter().map(|k| (strsim::levenshtein(given, k), k)).min()?;
    (distance <= given.len().max(4) / 2).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_call_it_is_known() {
        let engines = ["auto", "endpoint", "null", "onnx", "rten", "tfs", "torchscript", "triton"];
        let meant = |given| did_you_mean(given, engines);
        for (theirs, ours) in [
            ("onnxruntime", "onnx"),
            ("ONNX", "onnx"),
            ("PyTorch", "torchscript"),
            ("tensorflow-serving", "tfs"),
            ("tritonserver", "triton"),
            ("tritn", "triton"),
        ] {
            assert_eq!(meant(theirs), format!("did you mean '{ours}'? "));
        }
        assert_eq!(did_you_mean("cuda", ["cpu", "gpu", "all"]), "did you mean 'gpu'? ");
        assert_eq!(did_you_mean("cuda", ["cpu", "all"]), "", "only what there is");
        assert_eq!(meant("vllm"), "");
    }

    #[test]
    fn suggests_only_what_is_close() {
        assert_eq!(closest("tritn", ["onnx", "triton"]), Some("triton"));
        assert_eq!(closest("vllm", ["onnx", "triton"]), None);
        assert_eq!(did_you_mean("onxx", ["onnx"]) + "it is onnx", "did you mean 'onnx'? it is onnx");
    }

    #[test]
    fn names_in_json_are_the_names_in_text() {
        for code in [Code::InvalidArgument, Code::NoWorker, Code::Internal, Code::DeadlineExceeded] {
            assert_eq!(serde_json::to_value(code).unwrap(), code.as_str());
        }
    }
}
