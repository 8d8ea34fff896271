//! What a model is served on.

use serde::{Deserialize, Serialize};

/// The class of the CPU as a device.
pub const CPU_CLASS: &str = "cpu";

/// The class of what a server that was not launched here runs on, unless the user names it.
pub const REMOTE_CLASS: &str = "remote";

/// The kind of a device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// A set of cores.
    Cpu,
    /// An NVIDIA GPU.
    Gpu,
    /// Whatever a server that was not launched here runs on.
    Remote,
}

/// One device of one worker.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Device {
    /// CPU, GPU or remote.
    pub kind: DeviceKind,
    /// `cpu`, or the normalised NVML name: the unit of comparison between workers.
    pub class: String,
    /// The name that the hardware gives itself.
    pub name: String,
    /// NVML index on its host, of a GPU's instance (MIG) that of the GPU; null for a CPU.
    pub index: Option<u32>,
    /// NVML UUID; null for a CPU.
    pub uuid: Option<String>,
    /// The NVIDIA driver's version; null for a CPU.
    pub driver: Option<String>,
    /// The newest CUDA that the driver supports, as `12.8`; null for a CPU.
    pub cuda: Option<String>,
    /// Whether memory errors are corrected, which costs some memory and bandwidth; null where not supported.
    pub ecc_enabled: Option<bool>,
    /// Whether the GPU is partitioned (MIG), so that this is an instance of it; null where not supported.
    pub mig_enabled: Option<bool>,
    /// The device's own memory, or the host's for a CPU.
    pub memory_total_bytes: Option<u64>,
    /// Logical cores, for a CPU.
    pub cores: Option<u32>,
}

impl Device {
    /// A set of so many logical cores of a host with this memory.
    pub fn cpu(name: impl Into<String>, memory_total_bytes: Option<u64>, cores: Option<u32>) -> Self {
        Self {
            kind: DeviceKind::Cpu,
            class: CPU_CLASS.to_owned(),
            name: name.into(),
            index: None,
            uuid: None,
            driver: None,
            cuda: None,
            ecc_enabled: None,
            mig_enabled: None,
            memory_total_bytes,
            cores,
        }
    }

    /// What a server that was not launched here runs on: nothing is known of it but the class that the user gives it. The
    /// client that measures it needs cores of this host.
    pub fn remote(class: &str, cores: Option<u32>) -> Self {
        Self { kind: DeviceKind::Remote, class: class.to_owned(), ..Self::cpu("", None, cores) }
    }

    /// Whether a word means this device on its own machine: by kind or class as a [`Selector`] has it, or by its name.
    pub fn is_meant(&self, word: &str) -> bool {
        Selector::from(word).takes(&self.class) || self.is_named(word)
    }

    /// Whether a word is this very device's index, as `gpu:0`, or its UUID.
    pub fn is_named(&self, word: &str) -> bool {
        let index = word.strip_prefix("gpu:").and_then(|index| index.parse().ok());
        self.uuid.as_deref() == Some(word) || index.is_some() && self.index == index
    }
}

/// The class of an NVML device name: lower case, each run of other characters than letters and
/// digits one hyphen. `NVIDIA H100 80GB HBM3` is `nvidia-h100-80gb-hbm3`.
pub fn class_of(name: &str) -> String {
    name.split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_ascii_lowercase)
        .collect::<Vec<_>>()
        .join("-")
}

/// The word of a request for every device.
pub const ALL: &str = "all";

/// The word of a request or cell for any GPU. No device has it for its class.
pub const ANY_GPU: &str = "gpu";

/// What a device word of a request or cell takes in. A word is not a class unless it names one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Selector<'a> {
    /// Devices of every class.
    All,
    /// Devices of any class of GPUs that workers launch engines on.
    AnyGpu,
    /// Devices of this class.
    Class(&'a str),
}

impl<'a> From<&'a str> for Selector<'a> {
    fn from(word: &'a str) -> Self {
        match word {
            ALL => Self::All,
            ANY_GPU => Self::AnyGpu,
            class => Self::Class(class),
        }
    }
}

impl Selector<'_> {
    /// Whether it takes in the devices of this class.
    pub fn takes(self, class: &str) -> bool {
        match self {
            Self::All => true,
            Self::AnyGpu => class != CPU_CLASS && class != REMOTE_CLASS,
            Self::Class(named) => named == class,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_normalised_and_selected() {
        assert_eq!(class_of("NVIDIA H100 80GB HBM3"), "nvidia-h100-80gb-hbm3");
        let takes = |word: &str, class: &str| Selector::from(word).takes(class);
        assert!(takes("gpu", "nvidia-a10") && takes("all", "cpu") && takes("cpu", "cpu"));
        assert!(!takes("gpu", "cpu") && !takes("gpu", "remote") && !takes("nvidia-a10", "nvidia-t4"));
    }

    #[test]
    fn one_device_is_meant_by_index_or_uuid() {
        let class = "nvidia-a10".to_owned();
        let device = |index, uuid: &str| Device {
            kind: DeviceKind::Gpu,
            class: class.clone(),
            index: Some(index),
            uuid: Some(uuid.into()),
            ..Device::cpu("NVIDIA A10", None, None)
        };
        let (first, second) = (device(0, "GPU-a"), device(1, "GPU-b"));
        for word in ["gpu:1", "GPU-b"] {
            assert!(second.is_meant(word) && second.is_named(word) && !first.is_meant(word), "{word}");
        }
        for word in ["all", "gpu", "nvidia-a10"] {
            assert!(first.is_meant(word) && !first.is_named(word), "{word}");
        }
        assert!(!first.is_meant("gpu:") && !first.is_meant("cpu") && !first.is_meant("0"));
    }
}
