//! TensorFlow Serving: its folder of versions, its batching file, and the flags that go with them.

use super::{
    material::{self, Material},
    settings::{BATCH, COUNT, DELAY_US, Kind, Settings},
};
use modelmeter_common::Problem;
use std::path::Path;

/// `batching` is off when not given; the rest of it belongs to it. `threads` are inside an operator, `inter_op_threads`
/// run operators side by side; TensorFlow's own choice when not given.
pub(super) const SETTINGS: [(&str, Kind); 7] = [
    ("threads", COUNT),
    ("inter_op_threads", COUNT),
    ("batching", Kind::Flag),
    ("max_batch_size", BATCH),
    ("batch_timeout_us", DELAY_US),
    ("batch_threads", COUNT),
    ("max_enqueued_batches", Kind::Count(1, 1_000_000)),
];
/// The settings of batching, with their names in the batching parameters file.
const BATCHING: [(&str, &str); 4] = [
    ("max_batch_size", "max_batch_size"),
    ("batch_timeout_us", "batch_timeout_micros"),
    ("batch_threads", "num_batch_threads"),
    ("max_enqueued_batches", "max_enqueued_batches"),
];

/// Lays the SavedModel out as version 1; gives the flags that the settings ask for.
///
/// # Errors
/// `invalid_argument` for settings, `storage`.
pub(super) fn lay_out(material: &Material<'_>) -> Result<Vec<String>, Problem> {
    let settings = Settings::check(material.engine, material.settings, &SETTINGS)?;
    material::place(material.artifact, &material.folder.join("1"))?;
    let mut args = Vec::new();
    let flags = [("threads", "intra"), ("inter_op_threads", "inter")];
    for (name, which) in flags {
        args.extend(settings.count(name).map(|count| format!("--tensorflow_{which}_op_parallelism={count}")));
    }
    let given = BATCHING.iter().filter_map(|(name, key)| settings.count(name).map(|value| (name, key, value)));
    let given: Vec<_> = given.collect();
    if settings.flag("batching") {
        args.push("--enable_batching=true".into());
        if !given.is_empty() {
            args.push(format!("--batching_parameters_file={}", write(&given, material.folder)?));
        }
    } else if let Some((name, ..)) = given.first() {
        let field = format!("engine_settings.{}.{name}", material.engine);
        return Err(Problem::invalid(field, "belongs to batching, which is off")
            .with_hint(format!("add --set {}.batching=true", material.engine)));
    }
    Ok(args)
}

fn write(given: &[(&&str, &&str, u64)], folder: &Path) -> Result<String, Problem> {
    let path = folder.join("batching.pbtxt");
    let lines: String = given.iter().map(|(_, key, value)| format!("{key} {{ value: {value} }}\n")).collect();
    material::write(&path, &lines)?;
    Ok(path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use modelmeter_common::{device::DeviceKind, model::Format};
    use serde_json::{Value, json};
    use std::{collections::BTreeMap, fs};

    fn laid_out(settings: Value) -> Result<(Vec<String>, tempfile::TempDir), Problem> {
        let home = tempfile::tempdir().unwrap();
        let (artifact, folder) = (home.path().join("a.savedmodel"), home.path().join("run"));
        fs::create_dir_all(artifact.join("variables")).unwrap();
        fs::create_dir(&folder).unwrap();
        fs::write(artifact.join("saved_model.pb"), "graph").unwrap();
        fs::write(artifact.join("variables/v"), "weights").unwrap();
        let settings: BTreeMap<String, Value> = serde_json::from_value(settings).unwrap();
        let material = Material {
            engine: "tfs",
            artifact: &artifact,
            format: Format::Savedmodel,
            model_name: "m",
            inputs: &[],
            settings: &settings,
            device: DeviceKind::Cpu,
            folder: &folder,
        };
        Ok((lay_out(&material)?, home))
    }

    #[test]
    fn the_model_is_version_one_and_nothing_is_batched_unless_asked() {
        let (args, home) = laid_out(json!({})).unwrap();
        assert_eq!(args, Vec::<String>::new());
        assert_eq!(fs::read_to_string(home.path().join("run/1/variables/v")).unwrap(), "weights");
    }

    #[test]
    fn settings_become_flags_and_a_batching_file() {
        let (args, home) =
            laid_out(json!({"threads": 2, "batching": true, "max_batch_size": 32, "batch_timeout_us": 0})).unwrap();
        let file = home.path().join("run/batching.pbtxt");
        let expected = [
            "--tensorflow_intra_op_parallelism=2".to_owned(),
            "--enable_batching=true".to_owned(),
            format!("--batching_parameters_file={}", file.display()),
        ];
        assert_eq!(args, expected);
        let text = fs::read_to_string(file).unwrap();
        assert_eq!(text, "max_batch_size { value: 32 }\nbatch_timeout_micros { value: 0 }\n");
    }

    #[test]
    fn parameters_of_batching_without_it_are_a_mistake() {
        let problem = laid_out(json!({"max_batch_size": 32})).unwrap_err();
        assert!(problem.hint.unwrap().contains("tfs.batching=true"));
        assert!(laid_out(json!({"batch": true})).is_err());
    }
}
