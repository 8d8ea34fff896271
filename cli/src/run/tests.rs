use super::*;
use crate::{
    args::{Cli, Command},
    job,
};
use clap::Parser;

#[test]
fn the_first_line_says_how_long_it_takes_and_how_to_change_that() {
    let request = Request { model: "resnet50:1352".into(), budget_ms: Some(120_000), ..Request::default() };
    assert_eq!(
        opening(&request, 4),
        "4 cells of resnet50, up to 2 min (30 s a cell; --budget 5m for sharper figures, --budget none for no limit)"
    );
    let usual = opening(&Request { grace_ms: 1, ..request.clone() }, 4);
    assert!(usual.starts_with("4 cells of resnet50, about 2 min (30 s a cell; "), "{usual}");
    let repeated = opening(&Request { repeats: 3, ..request.clone() }, 12);
    assert!(repeated.starts_with("4 cells of resnet50, each 3 times, up to 2 min (10 s a repeat; "), "{repeated}");
    let unlimited = opening(&Request { budget_ms: None, ..request }, 1);
    assert_eq!(unlimited, "1 cell of resnet50, without a time limit (--budget 2m sets one)");
}

#[test]
fn bad_usage_is_what_was_found_before_anything_began() {
    let lost = || Problem::new(Code::Unreachable, "no coordinator answers");
    assert_eq!(Failure::from(lost()).exit_code(), 2);
    assert_eq!(Failure::later(lost()).exit_code(), 1);
    assert_eq!(Failure::later(interrupted()).exit_code(), 130);
}

/// A job as it stands in a home with these engines of its own, the built-in `mlp` lying there as a file.
async fn sketched(config: &str, words: &[&str]) -> Result<Sketch, Problem> {
    crate::servers::this_is_the_program();
    let home = tempfile::tempdir().unwrap();
    let model = home.path().join("mlp.onnx");
    std::fs::write(&model, modelmeter_serving::reference::bytes("mlp").unwrap()).unwrap();
    let config = Config { home: home.path().to_owned(), ..toml::from_str(config).unwrap() };
    let line = [&["modelmeter", "profile", model.to_str().unwrap()], words].concat();
    let Some(Command::Profile(args)) = Cli::try_parse_from(line).unwrap().command else { panic!("not a profile") };
    sketch(&config, job::resolve(&args, true, false).unwrap(), &Progress::new(true)).await
}

fn names(specs: &[EngineSpec]) -> Vec<&str> {
    specs.iter().map(|spec| spec.name.as_str()).collect()
}

#[tokio::test]
async fn only_engines_that_are_used_need_their_ports() {
    let config = "[engines.mine]\ncommand = ['sh']\nformats = ['onnx']\n\
                  [engines.other]\ncommand = ['sh']\nformats = ['triton']\ngrpc_port = 1";
    let sketch = sketched(config, &[]).await.unwrap();
    assert!(names(&sketch.offer.specs).contains(&"other"));
    let mut used = sketch.offer.specs.clone();
    leave_unused(&mut used, &sketch.cells, &sketch.slots);
    let used = names(&used);
    assert!(used.contains(&"mine") && used.contains(&"rten"), "`auto` takes what loads the model: {used:?}");
    assert!(!used.contains(&"other") && !used.contains(&"null"), "{used:?}");
}

#[tokio::test]
async fn what_no_engine_here_can_do_says_what_it_needs() {
    let none = "[engine.onnx]\nlibrary = '/nowhere/libonnxruntime.so'";
    let sketch = sketched(none, &["--engines", "onnx,rten"]).await.unwrap();
    let reason = |cell| pool::why_not(cell, &sketch.pools);
    let failing: Vec<Problem> = sketch.cells.iter().filter_map(reason).collect();
    assert_eq!(failing.len(), sketch.cells.len() / 2, "its own cells alone");
    assert!(failing[0].message.contains("/nowhere"), "{}", failing[0]);
    let Err(alone) = sketched(none, &["--engines", "onnx"]).await else { panic!("there is no other") };
    assert_eq!((alone.code, alone.field.as_deref()), (Code::NotInstalled, Some("engines")));
}
