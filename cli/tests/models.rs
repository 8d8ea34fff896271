//! Models as exporters and people write them, measured by the real binary with the engine that is always there.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/onnx.rs"]
mod onnx;
mod support;

use onnx::{BF16, BOOL, FLOAT, INT64, floats, integers, model, model_with, node, value, weight_elsewhere};
use serde_json::Value;
use std::{fs, path::Path, process::Output};
use support::{command, json};

const SHORT: [&str; 6] = ["--batches", "20", "--concurrency", "1", "--engines", "rten"];

fn profile(home: &Path, args: &[&str]) -> Output {
    command(home, &[&["profile", "m.onnx"], args, &SHORT[..]].concat()).output().unwrap()
}

/// Measures, and gives the documents.
fn measured(home: &Path, args: &[&str]) -> Vec<Value> {
    let output = profile(home, &[args, &["--json"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let profiles = json(&output);
    let profiles = profiles.as_array().unwrap().clone();
    assert!(profiles.iter().all(|profile| profile["state"] == "done"), "{profiles:?}");
    profiles
}

fn warnings(profile: &Value) -> Vec<(&str, &str)> {
    let all = profile["points"][0]["warnings"].as_array().unwrap().iter();
    all.map(|warning| (warning["code"].as_str().unwrap(), warning["message"].as_str().unwrap())).collect()
}

fn home() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn weights_beside_the_file_go_with_it() {
    let home = home();
    let home = home.path();
    fs::create_dir(home.join("parts")).unwrap();
    let weights: Vec<u8> = [0.5f32; 60].iter().flat_map(|weight| weight.to_le_bytes()).collect();
    fs::write(home.join("parts/layer.bin"), &weights).unwrap();
    let bytes = model_with(
        vec![node("MatMul", &["x", "w"], "y")],
        vec![value("x", FLOAT, Some(&["rows", "12"]))],
        vec![value("y", FLOAT, Some(&["rows", "5"]))],
        vec![],
        weight_elsewhere("w", &[12, 5], "parts/layer.bin"),
    );
    fs::write(home.join("m.onnx"), bytes).unwrap();
    let [only] = measured(home, &["--batch-sizes", "3"]).try_into().unwrap();
    assert_eq!(only["inputs"][0]["shape"], serde_json::json!([3, 12]));
    let added = command(home, &["model", "add", "kept", "--onnx", "m.onnx"]).output().unwrap();
    assert!(added.status.success());
    fs::remove_dir_all(home.join("parts")).unwrap();
    fs::remove_dir_all(home.join("cache")).unwrap();
    let kept = command(home, &[&["profile", "kept", "--batch-sizes", "2"], &SHORT[..]].concat()).output().unwrap();
    assert_eq!(kept.status.code(), Some(0), "from the hub alone: {}", String::from_utf8_lossy(&kept.stderr));
    let lost = profile(home, &[]);
    let stderr = String::from_utf8_lossy(&lost.stderr);
    assert_eq!(lost.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("parts/layer.bin, which is not there"), "{stderr}");
}

#[test]
fn outputs_that_are_not_as_declared_are_measured_with_a_word() {
    let home = home();
    let home = home.path();
    let bytes = model(
        vec![
            node("Reshape", &["x", "pairs"], "found"),
            node("Where", &["keep", "x", "never"], "scores"),
            node("Neg", &["x"], "shapeless"),
        ],
        vec![value("x", FLOAT, Some(&["images", "6"])), value("keep", BOOL, Some(&["images", "6"]))],
        vec![
            value("found", FLOAT, Some(&["objects", "2"])),
            value("scores", FLOAT, Some(&["images", "7"])),
            value("shapeless", FLOAT, None),
        ],
        vec![integers("pairs", &[-1, 2]), floats("never", &[], &[f32::NEG_INFINITY])],
    );
    fs::write(home.join("m.onnx"), bytes).unwrap();
    let [only] = measured(home, &["--batch-sizes", "2"]).try_into().unwrap();
    let found = warnings(&only);
    let of = |code: &str| found.iter().filter(|(known, _)| *known == code).map(|(_, said)| *said).collect::<Vec<_>>();
    let [differs] = of("output_differs").try_into().unwrap();
    assert!(differs.contains("'scores' has shape [2, 6]") && differs.contains("[?, 7] was declared"), "{differs}");
    let [infinite] = of("output_not_finite").try_into().unwrap();
    assert!(infinite.contains("'scores'"), "{infinite}");
    assert_eq!(only["points"][0]["valid"], true);
}

#[test]
fn the_batch_may_be_on_another_axis() {
    let home = home();
    let home = home.path();
    let of = |axes: &[&str]| {
        let bytes = model(
            vec![node("Neg", &["x"], "y")],
            vec![value("x", FLOAT, Some(axes))],
            vec![value("y", FLOAT, Some(axes))],
            vec![],
        );
        fs::write(home.join("m.onnx"), bytes).unwrap();
    };
    let sent = |profiles: &[Value]| profiles.iter().map(|p| p["inputs"][0]["shape"].to_string()).collect::<Vec<_>>();
    of(&["frames", "N", "9"]);
    let named = measured(home, &["--batch-sizes", "3", "--shape", "frames=11"]);
    assert_eq!(sent(&named), ["[11,3,9]"]);
    let table = command(home, &["results"]).output().unwrap();
    let table = String::from_utf8_lossy(&table.stdout);
    assert!(table.contains("x FP32 [11, N, 9]"), "{table}");
    of(&["?", "?", "9"]);
    let stated = measured(home, &["--batch-sizes", "3", "--shape", "x=11,1,9", "--batch-axis", "x=1"]);
    assert_eq!(sent(&stated), ["[11,3,9]"]);
    let none = measured(home, &["--shape", "x=11,4,9", "--batch-axis", "x=none"]);
    assert_eq!(sent(&none), ["[11,4,9]"]);
    let unsaid = profile(home, &["--batch-sizes", "3", "--shape", "x=11,1,9"]);
    let stderr = String::from_utf8_lossy(&unsaid.stderr);
    assert_eq!(unsaid.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("has 11 on axis 0") && stderr.contains("--batch-axis x=1"), "{stderr}");
}

#[test]
fn a_batch_that_the_exporter_fixed_is_what_is_measured() {
    let home = home();
    let home = home.path();
    let bytes = model(
        vec![node("Neg", &["x"], "y")],
        vec![value("x", FLOAT, Some(&["4", "9"]))],
        vec![value("y", FLOAT, Some(&["4", "9"]))],
        vec![],
    );
    fs::write(home.join("m.onnx"), bytes).unwrap();
    let output = profile(home, &[]);
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stdout.contains("x FP32 [4, 9]"), "the axis is not open: {stdout}");
    assert!(stderr.contains("batches of 4 alone"), "{stderr}");
    assert!(String::from_utf8_lossy(&profile(home, &["--batch-sizes", "1"]).stderr).contains("fixed at 4"));
}

#[test]
fn an_axis_by_its_name_may_be_empty() {
    let home = home();
    let home = home.path();
    let bytes = model(
        vec![node("Cast", &["ids"], "floats"), node("Concat", &["past", "floats"], "y")],
        vec![value("ids", INT64, Some(&["batch", "words"])), value("past", FLOAT, Some(&["batch", "before"]))],
        vec![value("y", FLOAT, Some(&["batch", "before + words"]))],
        vec![],
    );
    let mut decoded = <modelmeter_proto::onnx::ModelProto as prost::Message>::decode(&bytes[..]).unwrap();
    let nodes = &mut decoded.graph.as_mut().unwrap().node;
    let attribute = |name: &str, i: i64| modelmeter_proto::onnx::AttributeProto {
        name: name.into(),
        i,
        r#type: modelmeter_proto::onnx::attribute_proto::AttributeType::Int as i32,
        ..Default::default()
    };
    nodes[0].attribute = vec![attribute("to", i64::from(FLOAT))];
    nodes[1].attribute = vec![attribute("axis", 1)];
    fs::write(home.join("m.onnx"), prost::Message::encode_to_vec(&decoded)).unwrap();
    let [only] =
        measured(home, &["--batch-sizes", "2", "--shape", "words=7", "--shape", "before=0"]).try_into().unwrap();
    assert_eq!(only["inputs"][0]["shape"], serde_json::json!([2, 7]));
    assert_eq!(only["inputs"][1]["shape"], serde_json::json!([2, 0]));
}

#[test]
fn a_refusal_is_told_once_with_the_flag_that_mends_it() {
    let home = home();
    let home = home.path();
    let bytes = model(
        vec![node("Reshape", &["x", "shape"], "y")],
        vec![value("x", FLOAT, Some(&["batch", "6"])), value("shape", INT64, Some(&["1"]))],
        vec![value("y", FLOAT, Some(&["?"]))],
        vec![],
    );
    fs::write(home.join("m.onnx"), bytes).unwrap();
    let refused = profile(home, &["--batch-sizes", "2"]);
    let all = [refused.stdout.clone(), refused.stderr.clone()].concat();
    let all = String::from_utf8_lossy(&all);
    assert_eq!(refused.status.code(), Some(1), "{all}");
    assert!(all.contains("--data shape=16000"), "{all}");
    assert!(!all.contains("WARN"), "{all}");
    let status = json(&command(home, &["requests", "--json"]).output().unwrap());
    let id = status[0]["_id"].as_str().unwrap();
    let status = json(&command(home, &["status", id, "--json"]).output().unwrap());
    assert_eq!(status["cells"][0]["attempts"], 1, "{status}");
    let results = json(&command(home, &["results", "--json"]).output().unwrap());
    assert_eq!(results[0]["error"]["code"], "engine_refused");
    let log = results[0]["error"]["hint"].as_str().unwrap().rsplit("the whole log is ").next().unwrap();
    assert!(Path::new(log).is_file(), "{log}");
    measured(home, &["--batch-sizes", "2", "--data", "shape=-1"]);
}

#[test]
fn an_engine_that_cannot_take_the_types_is_refused_before_anything_starts() {
    let home = home();
    let home = home.path();
    let bytes = model(
        vec![node("Identity", &["x"], "y")],
        vec![value("x", BF16, Some(&["batch", "6"]))],
        vec![value("y", BF16, Some(&["batch", "6"]))],
        vec![],
    );
    fs::write(home.join("m.onnx"), bytes).unwrap();
    let refused = profile(home, &[]);
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("'rten'") && stderr.contains("input 'x' is BF16") && stderr.contains("onnx"), "{stderr}");
    assert!(!home.join("logs").exists());
}
