use super::*;
use crate::args::{Cli, Command};
use clap::Parser;
use modelmeter_common::{Code, load::Arrivals};
use modelmeter_coordinator::plan::alone::{set_usual_budget, small_budget};

fn job_of(line: &str, embedded: bool) -> Result<Job, Problem> {
    let words = ["modelmeter", "profile"].into_iter().chain(line.split_whitespace());
    let Some(Command::Profile(args)) = Cli::try_parse_from(words).unwrap().command else { panic!("not a profile") };
    resolve(&args, embedded, false)
}

fn job(line: &str) -> Job {
    job_of(line, true).unwrap()
}

#[test]
fn the_quick_start_runs_anywhere_within_its_budget() {
    let request = job("resnet50").request;
    assert_eq!((request.engines, request.budget_ms), (vec!["rten".to_owned()], None));
    let request = job("resnet50 --engines onnx --batches 5").request;
    assert_eq!(request.engines, ["onnx"]);
    let request = job_of("resnet50", false).unwrap().request;
    assert_eq!(request.engines, ["auto"]);
    assert_eq!(job("dir/m.onnx").request.engines, ["auto"]);
}

#[test]
fn without_a_coordinator_and_a_word_on_time_a_request_has_the_usual_budget() {
    let budget = |mut job: Job, tasks| {
        if job.usual_budget {
            set_usual_budget(&mut job.request, tasks);
        }
        job.request.budget_ms
    };
    for line in ["resnet50", "dir/m.onnx", "--endpoint h:1 --model m", "m.onnx --precision 1%"] {
        assert_eq!([1, 4, 300].map(|tasks| budget(job(line), tasks).unwrap()), [30_000, 120_000, 600_000], "{line}");
    }
    for line in ["m.onnx --budget none", "m.onnx --batches 5", "m.onnx --max-duration 2m", "m.onnx --certified"] {
        assert_eq!(budget(job(line), 4), None, "{line}");
    }
    assert_eq!(budget(job("m.onnx --budget 1m"), 4), Some(60_000));
    assert_eq!(budget(job_of("resnet50", false).unwrap(), 4), None, "a cluster has none");
    assert!(small_budget(20_000, 300).unwrap().contains("--budget 150m") && small_budget(120_000, 4).is_none());
}

#[test]
fn a_name_beside_files_may_have_a_version_and_others_may_have_colons() {
    let files = |line| match job(line).target {
        Target::Files(files) => files.name,
        other => panic!("{other:?}"),
    };
    let v2 = ModelName { name: "resnet50".into(), version: Some("v2".into()) };
    assert_eq!(files("resnet50:v2 --onnx f.onnx"), Some(v2));
    assert_eq!(files("./bert:v2.onnx"), None, "named after its file");
    let Target::Endpoint { model, .. } = job("--endpoint h:8001 --model llama:8b").target else { panic!() };
    assert_eq!(model, "llama:8b");
    assert_eq!(job_of(":v2 --onnx f.onnx", true).unwrap_err().field.as_deref(), Some("model"));
}

#[test]
fn every_field_of_a_request_has_its_flag() {
    let line = "m.onnx --engines onnx,rten --set onnx.threads=1,2 --shape x=1,3 --shape x=1,5 --batch-axis x=1 --devices cpu,gpu --batch-sizes 1,2 \
         --concurrency 1,4 --batches 9 --precision 3% --min-duration 1s --max-duration 5s --timeout 2s --max-in-flight 7 \
         --budget 1m --sla p95=50ms --repeats 3 --inspector mine --data x=f.npy --seed 7 --priority 20 --deadline 1h --no-wait --labels a=b,c=d";
    let got = serde_json::to_value(job(line).request).unwrap();
    let default = serde_json::to_value(Request::default()).unwrap();
    for (field, value) in default.as_object().unwrap() {
        // The model is named elsewhere; a grace belongs to the usual budget.
        let is_elsewhere = ["model", "grace_ms"].contains(&field.as_str());
        assert!(is_elsewhere || got[field] != *value, "no flag sets {field}");
    }
    let certified = job("m.onnx --certified").request.stop.certified;
    for (field, value) in default["stop"].as_object().unwrap() {
        assert!(got["stop"][field] != *value || (field == "certified" && certified), "no flag sets stop.{field}");
    }
    assert_eq!(got["shapes"]["x"], serde_json::json!([[1, 3], [1, 5]]));
    assert_eq!(got["engine_settings"]["onnx"]["threads"], serde_json::json!([1, 2]));
    let again = job("m.onnx --engines onnx --set onnx.threads=1 --set onnx.threads=2,4").request;
    assert_eq!(again.engine_settings["onnx"]["threads"], serde_json::json!([1, 2, 4]));
}

#[test]
fn a_minimum_or_a_maximum_alone_moves_the_other() {
    let stop = |line: &str| {
        let stop = job(&format!("m.onnx {line}")).request.stop;
        (stop.min_duration_ms, stop.max_duration_ms)
    };
    assert_eq!(stop("--max-duration 1s"), (1_000, 1_000));
    assert_eq!(stop("--min-duration 1m"), (60_000, 120_000));
    assert_eq!(stop("--min-duration 5s"), (5_000, 30_000));
    let both = job_of("m.onnx --min-duration 5s --max-duration 1s", true);
    assert_eq!(both.unwrap_err().code, Code::InvalidArgument);
}

#[test]
fn loads_are_told_apart_and_contradictions_refused() {
    assert_eq!(
        job("m.onnx --rate 200 --arrivals constant").request.load,
        Load::Open { rates: vec![200.0], arrivals: Arrivals::Constant }
    );
    assert_eq!(
        job("m.onnx --load sla-search --sla p95=5ms").request.load,
        Load::SlaSearch { arrivals: Arrivals::Poisson }
    );
    for line in [
        "m.onnx --rate 2 --concurrency 2",
        "m.onnx --arrivals poisson",
        "m.onnx --load open",
        "m.onnx --load sla-search",
        "m.onnx --load closed --rate 5",
        "m.onnx --batch-sizes 0",
        "m.onnx --batch-sizes 100000",
        "--batches 1",
        "m.onnx --certified --precision 5%",
        "m.onnx --certified --max-duration 30s",
        "m.onnx --certified --repeats 1",
        "--endpoint h:1",
        "--endpoint h:1 --model m --protocol thrift",
        "--endpoint h:1 --model m --onnx m.onnx",
        "mlp --input x:fp32:3",
        "--endpoint h:1 --model m --engines onnx",
    ] {
        assert_eq!(job_of(line, true).unwrap_err().code, Code::InvalidArgument, "{line}");
    }
    assert_eq!(job_of("--endpoint h:1 --model m", false).unwrap_err().field.as_deref(), Some("endpoint"));
}

#[test]
fn an_endpoint_has_its_protocol_and_inputs_that_it_does_not_tell() {
    let job = job("--endpoint h:1 --model m --protocol mlmodelci-predict --input x:fp32:3,4");
    let Target::Endpoint { protocol, inputs, .. } = job.target else { panic!("not an endpoint") };
    assert_eq!((protocol, inputs[0].name.as_str()), (Protocol::MlmodelciPredict, "x"));
    let near = job_of("--endpoint h:1 --model m --protocol kserve", true).unwrap_err();
    assert!(near.hint.unwrap().contains("did you mean 'kserve-v2'"));
}

#[test]
fn a_file_is_read_flags_beat_it_and_unknown_keys_are_named() {
    let path = std::env::temp_dir().join(format!("modelmeter-job-{}.toml", uuid::Uuid::new_v4()));
    let text = "model = 'mlp'\nbatch_sizes = [1, 16]\nrepeats = 2\n[load]\nmode = 'open'\nrates = [5.0]\n";
    std::fs::write(&path, text).unwrap();
    let from_file = job(&format!("-f {} --repeats 5", path.display()));
    std::fs::write(&path, "modle = 'mlp'\n").unwrap();
    let unknown = job_of(&format!("-f {}", path.display()), true).unwrap_err();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(from_file.target, Target::Name("mlp".into()));
    assert_eq!((from_file.request.batch_sizes, from_file.request.repeats), (vec![1, 16], 5));
    assert_eq!(from_file.request.load, Load::Open { rates: vec![5.0], arrivals: Arrivals::Poisson });
    assert!(unknown.message.contains("line 1") && unknown.message.contains("modle"), "{unknown}");
}
