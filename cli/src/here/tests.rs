use super::*;
use crate::{
    args::{Cli, Command},
    job,
};
use clap::Parser;
use modelmeter_common::Code;
use modelmeter_worker::EngineSpec;

/// A job as it stands in a home with these engines of its own, the built-in `mlp` lying there as a file.
async fn sketched(config: &str, words: &[&str]) -> Result<Sketch, Problem> {
    crate::servers::this_is_the_program();
    let home = tempfile::tempdir().unwrap();
    let model = home.path().join("mlp.onnx");
    std::fs::write(&model, modelmeter_serving::reference::bytes("mlp").unwrap()).unwrap();
    let config = Config { home: home.path().to_owned(), ..toml::from_str(config).unwrap() };
    let line = [&["modelmeter", "profile", model.to_str().unwrap()], words].concat();
    let Some(Command::Profile(args)) = Cli::try_parse_from(line).unwrap().command else { panic!("not a profile") };
    Sketch::of(&config, job::resolve(&args, true, false).unwrap(), &Progress::new(true)).await
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
    let mut offer = sketch.offer.clone();
    offer.leave_unused(&sketch.cells, &slots::kinds(&sketch.slots));
    let used = names(&offer.specs);
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
