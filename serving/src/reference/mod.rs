//! The built-in reference models, written as real ONNX files: architecture and seeded random weights give the
//! same speed as trained ones, and nothing has to be downloaded.
//!
//! Each has an open batch axis named `batch`. The bytes of a model never change for a given build: its sha256 is
//! pinned here, and a cached file is used again only if it has it.

mod bert;
mod graph;
mod layers;
mod mlp;
mod mobilenet;
mod random;
mod resnet;

use graph::Graph;
use modelmeter_common::{Code, Problem, artifact::sha256_of, error::did_you_mean};
use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

/// One built-in model.
#[derive(Clone, Copy)]
pub struct Reference {
    /// Its name on the command line and in the hub.
    pub name: &'static str,
    /// What it is, in a line.
    pub title: &'static str,
    /// The sha256 of its file, in hex.
    pub sha256: &'static str,
    build: fn(&str) -> Graph,
}

/// Every built-in model, the smallest first.
pub const MODELS: [Reference; 5] = [
    Reference {
        name: "mlp",
        title: "multi-layer perceptron, 784-256-128-10, 0.2 million weights",
        sha256: "dcfe1c2987a3f37892f5faf522c3fdc818c3c5c6f7658dc6a059ffa05a212615",
        build: mlp::build,
    },
    Reference {
        name: "mobilenet_v2",
        title: "MobileNetV2 1.0, 224×224 pixels, 3.5 million weights",
        sha256: "02e1f8f9f09071a392d7a8b61b55d2a4ef08508623d6a4d6a1d716614f7f1ab8",
        build: mobilenet::build,
    },
    Reference {
        name: "bert_small",
        title: "BERT encoder, 4 layers, 256 wide, 128 tokens, 5.4 million weights",
        sha256: "7806c92c5d763eb16fb6ba9f46d0da2485cfe8d6df7616fb8186f05483833a3c",
        build: bert::build,
    },
    Reference {
        name: "resnet18",
        title: "ResNet-18, 224×224 pixels, 11.7 million weights",
        sha256: "7a9c22ec1d837c87785fbcbada0a3cbd065b89eafb429eefff9c1a964199b61d",
        build: resnet::resnet18,
    },
    Reference {
        name: "resnet50",
        title: "ResNet-50 v1.5, 224×224 pixels, 25.6 million weights",
        sha256: "135299fc7c3040341cfa7578a68e9222ec57a29fa90bf88fc02e04b1e25a7955",
        build: resnet::resnet50,
    },
];

/// The names of [`MODELS`].
pub const NAMES: [&str; MODELS.len()] = {
    let mut names = [""; MODELS.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = MODELS[i].name;
        i += 1;
    }
    names
};

/// The built-in model of this name.
///
/// # Errors
/// `not_found`, with the names there are.
pub fn find(name: &str) -> Result<&'static Reference, Problem> {
    MODELS.iter().find(|model| model.name == name).ok_or_else(|| {
        let meant = did_you_mean(name, NAMES);
        Problem::new(Code::NotFound, format!("there is no built-in model '{name}'"))
            .with_field("model")
            .with_hint(format!("{meant}built-in models are {}", NAMES.join(", ")))
    })
}

/// The bytes of a built-in model's file.
///
/// # Errors
/// `not_found` for an unknown name.
pub fn bytes(name: &str) -> Result<Vec<u8>, Problem> {
    let model = find(name)?;
    Ok((model.build)(model.name).into_bytes())
}

/// Writes a built-in model to `path`, under another name first, so that no reader ever sees half of it.
///
/// # Errors
/// `not_found` for an unknown name, `storage` when the folder cannot be written to.
pub fn write(name: &str, path: &Path) -> Result<(), Problem> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let bytes = bytes(name)?;
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let unfinished = path.with_extension(format!("{}-{number}.part", std::process::id()));
    let written = File::create_new(&unfinished)
        .and_then(|mut file| file.write_all(&bytes))
        .and_then(|()| std::fs::rename(&unfinished, path));
    written.map_err(|error| {
        // Nothing more can be done about a leftover where nothing can be written.
        let _ = std::fs::remove_file(&unfinished);
        unwritable(path, &error)
    })
}

/// The path of a built-in model's file in `cache`, written now unless it is there with the right content.
///
/// # Errors
/// `not_found` for an unknown name, `storage` when the cache cannot be written to.
pub fn ensure(name: &str, cache: &Path) -> Result<PathBuf, Problem> {
    let model = find(name)?;
    let path = cache.join(format!("{name}.onnx"));
    if sha256_of(&path).is_ok_and(|(sha256, _)| sha256 == model.sha256) {
        return Ok(path);
    }
    std::fs::create_dir_all(cache).map_err(|error| unwritable(&path, &error))?;
    write(name, &path)?;
    Ok(path)
}

fn unwritable(path: &Path, error: &io::Error) -> Problem {
    Problem::new(Code::Storage, format!("cannot write {}: {error}", path.display()))
        .with_field("home")
        .with_hint("the cache must be writable and have room: choose another place with --home or MODELMETER_HOME")
}

#[cfg(test)]
mod tests {
    use super::*;
    use modelmeter_common::wire::sha256_hex;

    #[test]
    fn bytes_are_the_pinned_ones_on_every_build() {
        let built = |model: &Reference| sha256_hex(&bytes(model.name).unwrap());
        let [first, second] = [(); 2].map(|()| MODELS.each_ref().map(built));
        assert_eq!(first, second, "two builds differ");
        assert_eq!(first, MODELS.each_ref().map(|model| model.sha256));
    }

    #[test]
    fn a_cached_file_is_kept_and_a_damaged_one_is_replaced() {
        let cache = tempfile::tempdir().unwrap();
        let path = ensure("mlp", &cache.path().join("new")).unwrap();
        let written = std::fs::metadata(&path).unwrap().modified().unwrap();
        assert_eq!(ensure("mlp", path.parent().unwrap()).unwrap(), path);
        assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), written);
        std::fs::write(&path, "half").unwrap();
        ensure("mlp", path.parent().unwrap()).unwrap();
        assert_eq!(sha256_of(&path).unwrap().0, find("mlp").unwrap().sha256);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "leftovers in the cache");
    }

    #[test]
    fn an_unwritable_cache_and_an_unknown_name_are_clear() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let problem = ensure("mlp", &file.path().join("cache")).unwrap_err();
        assert_eq!(problem.code, Code::Storage);
        assert!(problem.hint.unwrap().contains("--home"));
        let problem = ensure("resnet5", file.path()).unwrap_err();
        assert_eq!(problem.code, Code::NotFound);
        assert!(problem.hint.unwrap().starts_with("did you mean 'resnet50'? built-in models are mlp"));
    }
}
