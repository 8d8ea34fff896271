use super::*;
use modelmeter_proto::onnx::{OperatorSetIdProto, TensorShapeProto, TypeProto, tensor_shape_proto::Dimension};

fn value(name: &str, elem_type: i32, dims: &[Option<dimension::Value>]) -> ValueInfoProto {
    let dim = dims.iter().map(|value| Dimension { value: value.clone() }).collect();
    let tensor = type_proto::Tensor { elem_type, shape: Some(TensorShapeProto { dim }) };
    ValueInfoProto { name: name.into(), r#type: Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)) }) }
}

fn weight() -> TensorProto {
    TensorProto { name: "w".into(), dims: vec![2, 3], data_type: 1, raw_data: vec![7; 24].into(), ..Default::default() }
}

/// x[batch, 3] and an initializer w listed as an input, as old exporters do.
fn model() -> ModelProto {
    let batch = Some(dimension::Value::DimParam("batch".into()));
    let graph = GraphProto {
        initializer: vec![weight()],
        input: vec![value("x", 1, &[batch.clone(), Some(dimension::Value::DimValue(3))]), value("w", 1, &[])],
        output: vec![value("y", 7, &[batch, None])],
        ..Default::default()
    };
    let opset_import = vec![OperatorSetIdProto { domain: String::new(), version: 17 }];
    ModelProto { ir_version: 8, graph: Some(graph), opset_import, ..Default::default() }
}

fn open_bytes(name: &str, bytes: &[u8]) -> Result<Opened, Problem> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    open(&path)
}

fn refused(model: &ModelProto) -> String {
    let problem = open_bytes("m.onnx", &model.encode_to_vec()).unwrap_err();
    assert_eq!(problem.code, Code::InvalidArgument);
    assert!(problem.hint.is_some());
    problem.message
}

#[test]
fn signature_hash_and_size_are_read() {
    let bytes = model().encode_to_vec();
    let opened = open_bytes("tiny.onnx", &bytes).unwrap();
    assert_eq!(opened.name_stem, "tiny");
    assert_eq!(opened.artifact.bytes, bytes.len() as u64);
    assert_eq!(opened.artifact.sha256, crate::wire::sha256_hex(&bytes));
    let batch = Dim::Dynamic("batch".into());
    let x = TensorSpec { name: "x".into(), dtype: Datatype::Fp32, shape: vec![batch.clone(), Dim::Fixed(3)] };
    let y = TensorSpec { name: "y".into(), dtype: Datatype::Int64, shape: vec![batch, Dim::Dynamic(String::new())] };
    assert_eq!((opened.inputs, opened.outputs), (vec![x], vec![y]));
}

#[test]
fn a_missing_file_is_not_found() {
    let problem = open(Path::new("no/such/model.onnx")).unwrap_err();
    assert_eq!(problem.code, Code::NotFound);
    assert!(problem.message.contains("no/such/model.onnx") && problem.hint.is_some());
}

#[test]
fn what_is_no_onnx_is_called_so() {
    let long_text = "a model is worth a thousand words\n".repeat(100);
    let bodies: [&[u8]; 6] =
        [b"", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", long_text.as_bytes(), b"\n\n\n", b"PK\x03\x04", &[0xff; 40]];
    for body in bodies {
        let problem = open_bytes("m.onnx", body).unwrap_err();
        assert_eq!(problem.code, Code::InvalidArgument);
        assert!(problem.message.ends_with("is not an ONNX file"), "{problem} for {:?}", &body[..body.len().min(8)]);
    }
}

#[test]
fn every_cut_of_a_file_is_refused() {
    let bytes = model().encode_to_vec();
    for cut in 0..bytes.len() {
        let problem = open_bytes("m.onnx", &bytes[..cut]).unwrap_err();
        assert_eq!(problem.code, Code::InvalidArgument, "cut at {cut}");
        assert!(cut < 2 || problem.message.contains("cut off"), "cut at {cut}: {problem}");
    }
}

#[test]
fn a_weight_shorter_than_its_dimensions_is_refused() {
    let mut model = model();
    model.graph.as_mut().unwrap().initializer[0].raw_data.truncate(20);
    assert!(refused(&model).contains("tensor 'w' of dimensions [2, 3] has 20 bytes"));
}

/// A message in a field of another: enough of protobuf for the parts of ONNX that are not read otherwise.
fn within(fields: &[u64], inner: Vec<u8>) -> Vec<u8> {
    let number = |mut n: u64| {
        let mut bytes = Vec::new();
        while n > 127 {
            bytes.push((n & 127) as u8 | 128);
            n >>= 7;
        }
        bytes.push(n as u8);
        bytes
    };
    fields.iter().rev().fold(inner, |inner, field| [number(field << 3 | 2), number(inner.len() as u64), inner].concat())
}

/// A TensorProto `name` of FP16 whose data lie at `location`, from byte 8 to byte 8 + `length`.
fn elsewhere(name: &str, location: &str, length: u64) -> Vec<u8> {
    let entry = |key: &str, value: &str| within(&[13], [within(&[1], key.into()), within(&[2], value.into())].concat());
    let (kind, external) = (vec![2 << 3, 10], vec![14 << 3, 1]);
    let said = [("location", location), ("offset", "8"), ("length", &length.to_string())];
    [kind, within(&[8], name.into()), said.map(|(key, value)| entry(key, value)).concat(), external].concat()
}

/// The model with more fields, in a folder with `data/w.bin` of 24 bytes beside it.
fn beside(more: &[Vec<u8>]) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("data")).unwrap();
    std::fs::write(folder.path().join("data/w.bin"), [9; 24]).unwrap();
    let path = folder.path().join("net.onnx");
    std::fs::write(&path, [model().encode_to_vec(), more.concat()].concat()).unwrap();
    (folder, path)
}

#[test]
fn data_in_other_files_go_with_the_model_wherever_the_format_has_tensors() {
    // initializer; attribute t, tensors, g → initializer; sparse initializer; a function's node; training's graph
    for place in [
        &[7, 5][..],
        &[7, 1, 5, 5],
        &[7, 1, 5, 10],
        &[7, 1, 5, 6, 5],
        &[7, 1, 5, 11, 1, 5, 5],
        &[7, 15, 1],
        &[7, 1, 5, 22, 2],
        &[25, 7, 5, 5],
        &[25, 11, 5],
        &[20, 1, 5],
    ] {
        let (folder, path) = beside(&[within(place, elsewhere("w2", "./data/w.bin", 16))]);
        let opened = open(&path).unwrap_or_else(|problem| panic!("{place:?}: {problem}"));
        assert!(opened.weights.contains(&Datatype::Fp16), "{place:?}: {:?}", opened.weights);
        assert_eq!(opened.inputs[0].name, "x");
        let renamed =
            external::renamed(&std::fs::read(&path).unwrap(), |location| format!("{location}.{}", "x".repeat(200)));
        let found = tensors::read(Cursor::new(renamed.unwrap())).unwrap();
        let renamed = &found.external[0];
        assert!(renamed.location.starts_with("./data/w.bin.xxx") && renamed.is_complete, "{place:?}");
        assert_eq!((renamed.end, found.types, found.external.len()), (24, opened.weights.clone(), 1), "{place:?}");
        let mut packed = Vec::new();
        archive::write_to(&path, &mut packed).unwrap();
        assert_eq!(opened.artifact.sha256, crate::wire::sha256_hex(&packed), "{place:?}");
        let unpacked = tempfile::tempdir().unwrap();
        archive::unpack(packed.as_slice(), unpacked.path()).unwrap();
        assert_eq!(std::fs::read(unpacked.path().join("data/w.bin")).unwrap(), [9; 24], "{place:?}");
        assert_eq!(
            std::fs::read(external::model_file(unpacked.path())).unwrap(),
            std::fs::read(&path).unwrap(),
            "{place:?}"
        );
        assert_eq!(signature(unpacked.path(), Format::Onnx).unwrap().inputs, opened.inputs);
        let archive_file = folder.path().join("packed");
        std::fs::write(&archive_file, packed).unwrap();
        assert!(archive::is_archive(&archive_file).unwrap() && !archive::is_archive(&path).unwrap());
    }
}

#[test]
fn data_in_other_files_are_part_of_the_address() {
    let (folder, path) = beside(&[within(&[7, 5], elsewhere("w2", "data/w.bin", 16))]);
    let before = open(&path).unwrap().artifact;
    std::fs::write(folder.path().join("data/w.bin"), [8; 24]).unwrap();
    assert_ne!(open(&path).unwrap().artifact.sha256, before.sha256);
    let renamed = folder.path().join("other.onnx");
    std::fs::rename(&path, &renamed).unwrap();
    std::fs::write(folder.path().join("data/w.bin"), [9; 24]).unwrap();
    assert_eq!(open(&renamed).unwrap().artifact, before, "the file's name is not part of it");
}

#[test]
fn a_place_that_is_not_told_follows_from_the_shape() {
    let entry = within(&[13], [within(&[1], "location".into()), within(&[2], "data/w.bin".into())].concat());
    let of = |rows: u8| [vec![1 << 3, rows, 1 << 3, 2, 2 << 3, 1], entry.clone(), vec![14 << 3, 1]].concat();
    let (_folder, path) = beside(&[within(&[7, 5], of(3))]);
    open(&path).unwrap();
    assert!(!external::files(&path).unwrap()[0].is_complete);
    let told = external::renamed(&std::fs::read(&path).unwrap(), str::to_owned).unwrap();
    let found = tensors::read(Cursor::new(told)).unwrap();
    assert_eq!((found.external[0].end, found.external[0].is_complete), (24, true));
    let (_folder, path) = beside(&[within(&[7, 5], of(4))]);
    assert!(open(&path).unwrap_err().message.contains("cut off: it has 24"));
}

#[test]
fn data_that_are_missing_cut_off_or_outside_are_refused() {
    for (location, length, why) in [
        ("gone.data", 16, "which is not there"),
        ("data/w.bin", 17, "which is cut off: it has 24"),
        ("data", 1, "which is no file"),
        ("../w.bin", 1, "outside the model's folder"),
        ("data/../../w.bin", 1, "outside the model's folder"),
        ("/etc/passwd", 1, "outside the model's folder"),
        ("", 1, "does not say in which file"),
        ("model.onnx", 1, "the model's own name"),
        ("data/w.bin", u64::MAX, "beyond any file's end"),
    ] {
        let (_folder, path) = beside(&[within(&[7, 5], elsewhere("w2", location, length))]);
        let problem = open(&path).unwrap_err();
        assert!(problem.message.contains(why) && problem.hint.is_some(), "{location}: {problem}");
        assert_eq!(problem.field.as_deref(), Some("model"));
    }
}

#[test]
fn a_shape_that_is_not_told_and_outputs_that_are_no_tensors_are_no_flaw() {
    let mut open_shape = model();
    let graph = open_shape.graph.as_mut().unwrap();
    let sequence = within(&[12], [within(&[1], "map".into()), within(&[2, 4, 1, 1], vec![1 << 3, 1])].concat());
    let shapeless = type_proto::Tensor { elem_type: 1, shape: None };
    graph.output[0].r#type = Some(TypeProto { value: Some(type_proto::Value::TensorType(shapeless)) });
    let bytes = [open_shape.encode_to_vec(), within(&[7], sequence)].concat();
    let opened = open_bytes("m.onnx", &bytes).unwrap();
    assert_eq!(opened.outputs.len(), 1, "{:?}", opened.outputs);
    assert!(!opened.outputs[0].is_shaped() && opened.inputs[0].is_shaped());
}

#[test]
fn a_graph_without_inputs_is_refused() {
    let mut model = model();
    model.graph.as_mut().unwrap().input.remove(0);
    assert!(refused(&model).contains("no graph inputs"));
}

#[test]
fn unsupported_elements_are_refused() {
    let mut complex = model();
    complex.graph.as_mut().unwrap().input[0] = value("x", 14, &[]);
    assert!(refused(&complex).contains("input 'x' has elements of the unsupported type COMPLEX64"));
    let mut unknown = model();
    unknown.graph.as_mut().unwrap().input[0] = value("x", 99, &[]);
    assert!(refused(&unknown).contains("number 99"));
    let mut untyped = model();
    untyped.graph.as_mut().unwrap().output[0].r#type = None;
    assert!(refused(&untyped).contains("no outputs that are tensors"));
}

#[test]
fn formats_are_told_by_name_and_kind() {
    let folder = tempfile::tempdir().unwrap();
    assert!(open(folder.path()).unwrap_err().message.contains("directory without a model"));
    std::fs::write(folder.path().join("config.pbtxt"), "").unwrap();
    assert_eq!(detect(folder.path()), Ok(Format::Triton));
    std::fs::write(folder.path().join("saved_model.pb"), "").unwrap();
    assert_eq!(detect(folder.path()), Ok(Format::Savedmodel));
    assert!(open(folder.path()).unwrap_err().message.contains("tag 'serve'"));
}

#[test]
fn a_directorys_address_is_its_archives() {
    let folder = tempfile::tempdir().unwrap();
    let text = "max_batch_size: 4 input { name: 'x' data_type: TYPE_FP32 dims: 3 }";
    std::fs::write(folder.path().join("config.pbtxt"), text).unwrap();
    let opened = open(folder.path()).unwrap();
    let mut bytes = Vec::new();
    archive::write_to(folder.path(), &mut bytes).unwrap();
    assert_eq!((opened.artifact.bytes, opened.artifact.sha256), (bytes.len() as u64, crate::wire::sha256_hex(&bytes)));
    assert_eq!(opened.inputs[0].name, "x");
}

#[test]
fn torchscript_is_told_from_saved_weights() {
    // What matters of a zip archive here: its first bytes, and the names in the directory at its end.
    let opened = open_bytes("m.pt", b"PK\x03\x04...m/code/__torch__.py...m/constants.pkl").unwrap();
    assert_eq!((opened.artifact.format, opened.inputs.len()), (Format::Torchscript, 0));
    for wrong in [&b"PK\x03\x04...m/data.pkl"[..], b"weights", b"P", b""] {
        let problem = open_bytes("m.pt", wrong).unwrap_err();
        assert!(problem.message.contains("is not a TorchScript file"), "{problem}");
    }
}
