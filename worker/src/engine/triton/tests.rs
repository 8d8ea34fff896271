use super::*;
use modelmeter_common::model::TensorShape;
use modelmeter_proto::onnx::{
    GraphProto, ModelProto, OperatorSetIdProto, TensorShapeProto, TypeProto, ValueInfoProto,
    tensor_shape_proto::Dimension, tensor_shape_proto::dimension, type_proto,
};
use prost::Message;
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs};

/// An ONNX file x[first, 3] → y[first, 2], without nodes: it is laid out, not run.
fn onnx(first: Option<i64>) -> Vec<u8> {
    let value = |name: &str, last: i64| {
        let first = first.map_or(dimension::Value::DimParam("batch".into()), dimension::Value::DimValue);
        let dim = [first, dimension::Value::DimValue(last)].map(|value| Dimension { value: Some(value) }).to_vec();
        let tensor = type_proto::Tensor { elem_type: 1, shape: Some(TensorShapeProto { dim }) };
        ValueInfoProto {
            name: name.into(),
            r#type: Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)) }),
        }
    };
    let graph = GraphProto { input: vec![value("x", 3)], output: vec![value("y", 2)], ..Default::default() };
    let opset_import = vec![OperatorSetIdProto { domain: String::new(), version: 17 }];
    ModelProto { ir_version: 8, graph: Some(graph), opset_import, ..Default::default() }.encode_to_vec()
}

struct Case {
    backends: &'static [&'static str],
    format: Format,
    settings: Value,
}

const PYTHON_ONNX: Case = Case { backends: &["python"], format: Format::Onnx, settings: Value::Null };

impl Case {
    fn lay_out(&self, put: impl FnOnce(&Path)) -> Result<(String, tempfile::TempDir), Problem> {
        let home = tempfile::tempdir().unwrap();
        let (artifact, folder) = (home.path().join("artifact"), home.path().join("run"));
        put(&artifact);
        fs::create_dir(&folder).unwrap();
        let settings = if self.settings.is_null() { json!({}) } else { self.settings.clone() };
        let settings: BTreeMap<String, Value> = serde_json::from_value(settings).unwrap();
        let inputs = [TensorShape::new("x", Datatype::Fp32, vec![4, 3])];
        let material = Material {
            engine: "triton",
            artifact: &artifact,
            format: self.format,
            model_name: "net",
            inputs: &inputs,
            settings: &settings,
            device: DeviceKind::Cpu,
            folder: &folder,
        };
        let backends = self.backends.iter().map(|&name| name.to_owned()).collect();
        Ok((super::lay_out(&backends, &material)?, home))
    }

    fn config(&self, put: impl FnOnce(&Path)) -> Result<String, Problem> {
        let (name, home) = self.lay_out(put)?;
        Ok(fs::read_to_string(home.path().join("run").join(name).join("config.pbtxt")).unwrap())
    }
}

fn batched(path: &Path) {
    fs::write(path, onnx(None)).unwrap();
}

#[test]
fn an_onnx_file_without_the_native_backend_runs_in_python() {
    let (name, home) = PYTHON_ONNX.lay_out(batched).unwrap();
    let model = home.path().join("run").join(name);
    assert_eq!(fs::read(model.join("1/model.onnx")).unwrap(), onnx(None));
    assert!(fs::read_to_string(model.join("1/model.py")).unwrap().contains("class TritonPythonModel"));
    let expected = "backend: \"python\"\nmax_batch_size: 4096\n\
         input [ { name: \"x\" data_type: TYPE_FP32 dims: [ 3 ] } ]\n\
         output [ { name: \"y\" data_type: TYPE_FP32 dims: [ 2 ] } ]\n\
         instance_group [ { kind: KIND_CPU count: 1 } ]\n";
    assert_eq!(fs::read_to_string(model.join("config.pbtxt")).unwrap(), expected);
    // What is written reads back as what it says.
    assert_eq!(read(&model).unwrap().inputs[0].shape.len(), 2);
}

#[test]
fn the_native_backend_is_taken_where_it_is() {
    let native = Case { backends: &["onnxruntime", "python"], settings: json!({"threads": 2}), ..PYTHON_ONNX };
    let (name, home) = native.lay_out(batched).unwrap();
    let model = home.path().join("run").join(name);
    assert!(!model.join("1/model.py").exists());
    let config = fs::read_to_string(model.join("config.pbtxt")).unwrap();
    assert!(config.contains("backend: \"onnxruntime\"") && config.contains("intra_op_thread_count"), "{config}");
}

#[test]
fn a_fixed_batch_axis_is_not_tritons() {
    let config = PYTHON_ONNX.config(|path| fs::write(path, onnx(Some(1))).unwrap()).unwrap();
    assert!(config.contains("max_batch_size: 0\n") && config.contains("dims: [ 1, 3 ]"), "{config}");
    let batching = Case { settings: json!({"dynamic_batching": true}), ..PYTHON_ONNX };
    assert!(batching.config(|path| fs::write(path, onnx(Some(1))).unwrap()).is_err());
}

#[test]
fn settings_are_written_and_mistakes_refused() {
    let settings = json!({"dynamic_batching": true, "max_queue_delay_us": 50, "instances": 3, "max_batch_size": 8});
    let config = Case { settings, ..PYTHON_ONNX }.config(batched).unwrap();
    for part in ["count: 3", "max_batch_size: 8", "dynamic_batching { max_queue_delay_microseconds: 50 }"] {
        assert!(config.contains(part), "{config} should have {part}");
    }
    for wrong in [json!({"instances": 0}), json!({"batching": true}), json!({"max_queue_delay_us": 5})] {
        let problem = Case { settings: wrong, ..PYTHON_ONNX }.config(batched).unwrap_err();
        assert!(problem.field.unwrap().starts_with("engine_settings.triton."));
    }
}

#[test]
fn torchscript_says_nothing_of_its_outputs() {
    let case = Case { format: Format::Torchscript, ..PYTHON_ONNX };
    let config = case.config(|path| fs::write(path, "PK").unwrap()).unwrap();
    assert!(config.contains("dims: [ -1 ]") && config.contains(r#"string_value: "[[4,3]]""#), "{config}");
    assert!(!config.contains("output"), "{config}");
}

#[test]
fn without_a_backend_it_says_which_is_missing() {
    let none = Case { backends: &["fil"], ..PYTHON_ONNX };
    let problem = none.lay_out(batched).unwrap_err();
    assert_eq!(problem.code, Code::NotInstalled);
    assert!(problem.message.contains("[fil]") && problem.hint.unwrap().contains("onnxruntime or python"));
}

#[test]
fn a_triton_directory_is_taken_as_it_is_under_its_own_name() {
    let directory = |text: &'static str| {
        move |path: &Path| {
            fs::create_dir_all(path.join("1")).unwrap();
            fs::write(path.join("config.pbtxt"), text).unwrap();
        }
    };
    let case = Case { format: Format::Triton, ..PYTHON_ONNX };
    let (name, home) = case.lay_out(directory("name: 'own'")).unwrap();
    assert_eq!(name, "own");
    assert_eq!(fs::read_to_string(home.path().join("run/own/config.pbtxt")).unwrap(), "name: 'own'");
    assert_eq!(case.lay_out(directory("")).unwrap().0, "net");
    assert!(case.lay_out(directory("name: '../own'")).is_err());
    assert!(Case { settings: json!({"instances": 2}), ..case }.lay_out(directory("")).is_err());
}

#[test]
fn an_onnx_file_has_its_data_files_beside_it() {
    /// A field with a length, of contents that are short.
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, content.len() as u8], content].concat()
    }
    let location = field(13, &[field(1, b"location"), field(2, b"parts/w.bin")].concat());
    let weight = field(7, &field(5, &[location, vec![14 << 3, 1]].concat()));
    let put = |path: &Path| {
        fs::create_dir_all(path.join("parts")).unwrap();
        fs::write(path.join("parts/w.bin"), "weights").unwrap();
        fs::write(path.join("model.onnx"), [onnx(None), weight].concat()).unwrap();
    };
    let (name, home) = PYTHON_ONNX.lay_out(put).unwrap();
    let version = home.path().join("run").join(name).join("1");
    assert!(version.join("model.onnx").is_file() && version.join("model.py").is_file());
    assert_eq!(fs::read_to_string(version.join("parts/w.bin")).unwrap(), "weights");
}
