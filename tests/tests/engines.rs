//! Every engine on the same model: the same answers, and one table. TensorFlow Serving is a stand-in that runs the real
//! TensorFlow (`tests/standins`); the others are the real ones.

#![allow(clippy::unwrap_used)]

use modelmeter_tests::{
    engines::{self, Formats},
    modelmeter::{Output, run},
};
use serde_json::Value;
use std::{path::Path, time::Duration};

const ALL: &str = "onnx,rten,torchscript,triton,tfs";
const LIMIT: Duration = Duration::from_secs(300);

async fn modelmeter(home: &Path, words: &[&str], flags: &[String]) -> Output {
    let args: Vec<&str> = words.iter().copied().chain(flags.iter().map(String::as_str)).collect();
    run(home, &args, LIMIT).await.unwrap()
}

/// What `check --json` printed, by engine.
fn answers(output: &Output) -> Vec<Value> {
    serde_json::from_str(&output.out).unwrap_or_else(|e| panic!("{e}: {}{}", output.out, output.err))
}

#[tokio::test(flavor = "multi_thread")]
async fn five_engines_agree_on_resnet50_and_two_swapped_weights_are_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    engines::configure(&home).unwrap();
    let formats = Formats::make(folder.path(), "resnet50").unwrap();

    let checked = modelmeter(&home, &["check", "--json", "--engines", ALL], &formats.flags()).await;
    let found = answers(&checked);
    assert_eq!(checked.code, Some(0), "{}{}", checked.out, checked.err);
    assert_eq!(found.iter().map(|a| a["engine"].as_str().unwrap()).collect::<Vec<_>>().join(","), ALL);
    for answer in &found {
        assert!(answer["std_dev"].as_f64().unwrap() >= 1.0, "{answer}");
        assert!(answer["std_dev_between_items"].as_f64().unwrap() >= 0.5, "{answer}");
        assert!(answer["max_deviation"].as_f64().unwrap() <= 1e-3, "{answer}");
    }

    let spoiled = folder.path().join("spoiled");
    engines::convert(&formats.onnx, &spoiled, &["--formats", "torchscript", "--swap-two-weights"]).unwrap();
    let flags = [formats.onnx.clone(), spoiled.join("resnet50.pt")].map(|path| path.display().to_string());
    let words = ["check", "--json", "--engines", "onnx,torchscript", "--onnx", &flags[0], "--torchscript", &flags[1]];
    let checked = modelmeter(&home, &words, &[]).await;
    let found = answers(&checked);
    assert_eq!(checked.code, Some(1), "{}{}", checked.out, checked.err);
    assert!(found[1]["max_deviation"].as_f64().unwrap() > 1e-2, "{found:?}");
    assert_eq!((&found[0]["agrees"], &found[1]["agrees"]), (&Value::Bool(true), &Value::Bool(false)));
}

#[tokio::test(flavor = "multi_thread")]
async fn triton_runs_every_format_and_settings_reach_it() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    engines::configure(&home).unwrap();
    let formats = Formats::make(folder.path(), "mlp").unwrap();
    let path = |path: &Path| path.display().to_string();
    for flags in [
        vec!["--onnx".to_owned(), path(&formats.onnx)],
        vec!["--torchscript".to_owned(), path(&formats.torchscript), "--input".to_owned(), "x:fp32:784".to_owned()],
        vec!["--savedmodel".to_owned(), path(&formats.savedmodel)],
        vec!["--triton".to_owned(), path(&formats.triton)],
    ] {
        let engines = match flags[0].as_str() {
            "--onnx" => "onnx,triton",
            "--torchscript" => "torchscript,triton",
            "--savedmodel" => "tfs,triton",
            _ => "triton",
        };
        let checked = modelmeter(&home, &["check", "--json", "--engines", engines], &flags).await;
        assert_eq!(checked.code, Some(0), "{flags:?}: {}{}", checked.out, checked.err);
    }

    let batching = ["--set", "triton.dynamic_batching=true", "--set", "triton.max_queue_delay_us=20000"];
    assert_eq!(executions_a_call(&home, &formats, &[]).await, 1.0);
    let batched = executions_a_call(&home, &formats, &batching).await;
    assert!(batched < 0.9, "{batched}");
}

/// How often the model runs for a call when eight are in flight, as Triton says it.
async fn executions_a_call(home: &Path, formats: &Formats, settings: &[&str]) -> f64 {
    let onnx = formats.onnx.display().to_string();
    let words =
        ["profile", &onnx, "--engines", "triton", "--ports", "auto", "--batch-sizes", "1", "--concurrency", "8"];
    let flags: Vec<String> = settings.iter().chain(&["--batches", "400", "--json"]).map(ToString::to_string).collect();
    let profiles = modelmeter(home, &words, &flags).await.json().unwrap();
    // The first is the reference, with one in flight.
    let point = profiles[0]["points"].as_array().unwrap().last().unwrap();
    let number = |key: &str| point["server"][key].as_f64().unwrap_or_else(|| panic!("no {key} in {profiles:#}"));
    let inside =
        number("queue_ms") + number("compute_input_ms") + number("compute_infer_ms") + number("compute_output_ms");
    let mean = point["latency_ms"]["mean"].as_f64().unwrap();
    assert!(inside > 0.0 && inside < 2.0 * mean, "{inside} ms of {mean} ms");
    number("executions") / number("requests")
}

#[tokio::test(flavor = "multi_thread")]
async fn one_request_profiles_a_model_over_five_engines() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    engines::configure(&home).unwrap();
    let formats = Formats::make(folder.path(), "mlp").unwrap();
    let words = [
        "profile",
        "--engines",
        ALL,
        "--batch-sizes",
        "1,8",
        "--concurrency",
        "1",
        "--batches",
        "50",
        "--ports",
        "auto",
    ];
    let mut flags = formats.flags();
    flags.push("--json".into());
    let profiles = modelmeter(&home, &words, &flags).await.json().unwrap();
    let profiles = profiles.as_array().unwrap();
    assert_eq!(profiles.len(), 10);
    for engine in ALL.split(',') {
        let cells: Vec<&Value> = profiles.iter().filter(|p| p["engine"]["name"] == engine).collect();
        assert_eq!(cells.len(), 2, "{engine}");
        for cell in &cells {
            assert_eq!((&cell["state"], cell["points"][0]["errors"].as_u64()), (&"done".into(), Some(0)), "{cell:#}");
        }
        // One deployment serves both batch sizes.
        assert_eq!(cells[0]["deploy_ms"], cells[1]["deploy_ms"], "{engine}");
        assert_eq!(cells.iter().filter(|cell| !cell["first_inference_ms"].is_null()).count(), 1, "{engine}");
    }
    assert_eq!(profiles.iter().filter(|p| p["points"][0]["server"].is_object()).count(), 2, "Triton alone tells");
    assert!(!home.join("run").exists() || std::fs::read_dir(home.join("run/local")).unwrap().next().is_none());
}
