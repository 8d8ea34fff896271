use super::*;
use crate::plan::{budget, pool::Kind};
use modelmeter_common::{
    SCHEMA_VERSION,
    model::{Datatype, Dim, ModelRef, TensorSpec},
    request::RequestState,
};
use modelmeter_tests::documents;
use serde_json::json;
use uuid::Uuid;

fn model() -> Model {
    let batch = Dim::Dynamic("batch".into());
    Model {
        schema_version: SCHEMA_VERSION,
        id: ModelRef { name: "m".into(), version: "1".into() },
        created_at: Timestamp(0),
        artifacts: vec![ArtifactRef { format: Format::Onnx, sha256: "ab".into(), bytes: 3 }],
        inputs: vec![TensorSpec {
            name: "x".into(),
            dtype: Datatype::Fp32,
            shape: vec![batch, Dim::Fixed(4), Dim::Dynamic("h".into())],
        }],
        outputs: vec![],
        weights: BTreeSet::new(),
    }
}

fn pools() -> Vec<Pool> {
    let pool = |class: &str, engines: &[&str]| {
        Pool::of(class, engines.iter().map(ToString::to_string).collect(), Abilities::default())
    };
    vec![pool("cpu", &["null", "onnx", "rten"]), pool("nvidia-a10", &["onnx"])]
}

fn request() -> Request {
    let settings = json!({"threads": [1, 2], "graph_optimization_level": "all"});
    Request {
        model: "m".into(),
        engines: vec!["rten".into(), "onnx".into()],
        engine_settings: [("onnx".into(), serde_json::from_value(settings).unwrap())].into(),
        shapes: [("x".into(), vec![vec![1, 4, 8], vec![1, 4, 16]])].into(),
        devices: vec!["all".into()],
        batch_sizes: vec![8, 1, 8],
        repeats: 2,
        ..Request::default()
    }
}

fn stored(request: &Request, cells: &[Cell]) -> RequestDoc {
    RequestDoc {
        request: resolved(request, cells),
        formats: formats_of(cells),
        devices_of: devices_of(cells),
        ..documents::request("m", RequestState::Running, 0)
    }
}

#[test]
fn the_matrix_is_whole_and_each_task_is_there_once() {
    let request = request();
    let cells = cells(&request, &model(), &pools()).unwrap();
    // (rten 1 + onnx 2 settings) × 2 classes × 2 shapes × 2 batch sizes
    assert_eq!(cells.len(), 3 * 2 * 2 * 2);
    assert!(cells.iter().any(|c| c.batch_size == 8 && c.inputs[0].shape == [8, 4, 16]));
    let id = RequestId(Uuid::from_u128(5));
    let tasks = tasks(id, &request, &cells, Timestamp(0));
    let ids: BTreeSet<_> = tasks.iter().map(|task| task.id).collect();
    assert_eq!(ids.len(), cells.len() * 2);
    assert_eq!(
        tasks,
        super::tasks(id, &request, &cells.iter().rev().cloned().collect::<Vec<_>>(), Timestamp(0)),
        "the order is the seed's, not the input's"
    );
    let runs = tasks.chunk_by(|a, b| a.deployment_key == b.deployment_key).count();
    assert_eq!(runs, 6, "the tasks of a deployment lie together");
}

#[test]
fn a_choice_that_is_given_twice_is_one_cell() {
    let mut twice = request();
    twice.engine_settings.insert("onnx".into(), [("threads".to_owned(), json!([1, 2, 1]))].into());
    twice.shapes.values_mut().for_each(|shapes| shapes.push(shapes[0].clone()));
    let mut once = request();
    once.engine_settings.insert("onnx".into(), [("threads".to_owned(), json!([1, 2]))].into());
    assert_eq!(cells(&twice, &model(), &pools()).unwrap(), cells(&once, &model(), &pools()).unwrap());
}

#[test]
fn auto_takes_what_fits_and_is_offered_and_never_the_null_engine() {
    let request = Request { engines: vec!["auto".into()], engine_settings: BTreeMap::new(), ..request() };
    let cells = cells(&request, &model(), &pools()).unwrap();
    let names: BTreeSet<_> = cells.iter().map(|c| c.engine.as_str()).collect();
    assert_eq!(names, ["onnx", "rten"].into());
    let devices = [("onnx", vec!["cpu", "nvidia-a10"]), ("rten", vec!["cpu"])];
    let owned = |words: Vec<&str>| words.into_iter().map(str::to_owned).collect::<BTreeSet<_>>();
    let devices = devices.map(|(engine, classes)| (engine.to_owned(), owned(classes)));
    assert_eq!(devices_of(&cells), devices.into(), "an engine is measured where somebody has it");
    let stored = stored(&request, &cells);
    assert_eq!(cells_again(&stored, &model()).unwrap(), cells);
    assert_eq!(super::cells(&request, &model(), &[]).unwrap_err().code, Code::NoWorker);
}

#[test]
fn an_engine_of_a_configuration_is_chosen_by_what_it_loads() {
    let mut model = model();
    let of = |format| ArtifactRef { format, sha256: "cd".into(), bytes: 3 };
    model.artifacts.push(of(Format::Torchscript));
    let formats = [("mine".to_owned(), vec![Format::Torchscript])].into();
    let abilities = Abilities { formats, ..Abilities::default() };
    let pools = [Pool::of("cpu", vec!["mine".into(), "rten".into()], abilities)];
    let request = Request { engine_settings: BTreeMap::new(), ..request() };
    let loaded = |request: &Request, pools: &[Pool]| formats_of(&cells(request, &model, pools).unwrap());
    let both = [("mine".to_owned(), Format::Torchscript), ("rten".to_owned(), Format::Onnx)].into();
    assert_eq!(loaded(&Request { engines: vec!["auto".into()], ..request.clone() }, &pools), both);
    let mine = Request { engines: vec!["mine".into()], ..request };
    assert_eq!(loaded(&mine, &pools)["mine"], Format::Torchscript, "not whatever comes first");
    let silent = [Pool::of("cpu", vec!["mine".into()], Abilities::default())];
    assert_eq!(loaded(&mine, &silent)["mine"], Format::Onnx);
    model.artifacts.pop();
    let error = cells(&mine, &model, &pools).unwrap_err();
    assert!(error.message.contains("engine 'mine' loads torchscript"), "{error}");
}

#[test]
fn where_auto_finds_nothing_the_reason_is_given() {
    let auto = Request { engines: vec!["auto".into()], engine_settings: BTreeMap::new(), ..request() };
    let lacks = Problem::new(Code::NotInstalled, "no library").with_hint("pip install it");
    let abilities = Abilities { lacking: [("onnx".to_owned(), lacks)].into(), ..Abilities::default() };
    let error = cells(&auto, &model(), &[Pool::of("cpu", vec!["null".into()], abilities)]).unwrap_err();
    assert!(error.message.contains("engine 'onnx' on device 'cpu': no library"), "{error}");
    assert_eq!((error.code, error.hint.as_deref()), (Code::NoWorker, Some("pip install it")));
    let mut unknown = auto;
    unknown.engine_settings.insert("onxn".into(), BTreeMap::new());
    assert_eq!(cells(&unknown, &model(), &pools()).unwrap_err().field.as_deref(), Some("engine_settings"));
}

#[test]
fn settings_of_an_engine_that_is_not_offered_are_left_out() {
    let mut request = Request { engines: vec!["auto".into()], ..request() };
    request.engine_settings.insert("triton".into(), [("instances".to_owned(), json!([1, 2]))].into());
    let chosen = cells(&request, &model(), &pools()).unwrap();
    assert_eq!(cells_again(&self::stored(&request, &chosen), &model()).unwrap(), chosen);
    let stored = resolved(&request, &chosen);
    assert_eq!(stored.engine_settings.keys().collect::<Vec<_>>(), ["onnx"]);
    assert_eq!(narrowed(&request, &stored.engines, &stored.devices, &stored.batch_sizes), stored, "and is known again");
}

#[test]
fn mistakes_are_named_with_what_is_known() {
    let wrong = |change: fn(&mut Request)| {
        let mut request = request();
        request.engine_settings.clear();
        change(&mut request);
        cells(&request, &model(), &pools()).unwrap_err()
    };
    assert!(wrong(|r| r.engines = vec!["onxx".into()]).hint.unwrap().contains("did you mean 'onnx'"));
    assert!(wrong(|r| r.devices = vec!["cup".into()]).hint.unwrap().contains("did you mean 'cpu'"));
    assert!(wrong(|r| r.engines = vec!["tfs".into()]).message.contains("loads savedmodel"));
    assert!(wrong(|r| r.shapes.clear()).hint.unwrap().contains("--shape x=1,4,224"));
    assert_eq!(wrong(|r| r.batch_sizes = vec![0]).field.unwrap(), "batch_sizes");
    assert!(wrong(|r| r.inspector = Some("photos".into())).message.contains("unknown inspector 'photos'"));
    let large = wrong(|r| r.shapes = [("x".into(), vec![vec![1, 4, 99_999_999_999]])].into());
    assert!(large.field.as_deref() == Some("shapes") && large.message.contains("GiB"), "{large}");
    let uncountable = wrong(|r| r.shapes = [("x".into(), vec![vec![1, 4, u64::MAX]])].into());
    assert_eq!(uncountable.field.as_deref(), Some("shapes"));
    let many = || (0..200).map(|n| json!(n)).collect::<Vec<_>>();
    let settings = |values: Vec<Value>| [("a", values.clone()), ("b", values)].map(|(k, v)| (k.to_owned(), json!(v)));
    let with = |values| Request { engine_settings: [("onnx".into(), settings(values).into())].into(), ..request() };
    let error = cells(&with(many()), &model(), &pools()).unwrap_err();
    assert!(error.message.contains("more than 20000 cells"), "{error}");
    let error = cells(&with(Vec::new()), &model(), &pools()).unwrap_err();
    assert_eq!(error.field.as_deref(), Some("engine_settings.onnx.a"));
    let mut fixed = model();
    fixed.inputs[0].shape = vec![Dim::Fixed(1), Dim::Fixed(4), Dim::Fixed(8)];
    let request = Request { shapes: BTreeMap::new(), engine_settings: BTreeMap::new(), ..request() };
    assert!(cells(&request, &fixed, &pools()).unwrap_err().message.contains("fixed at 1"));
    fixed.inputs[0].shape.clear();
    assert!(cells(&request, &fixed, &pools()).unwrap_err().message.contains("no batch axis"));
    assert!(cells(&Request { batch_sizes: vec![1], ..request }, &fixed, &pools()).is_ok());
}

#[test]
fn a_stored_request_needs_the_slots_that_its_cells_need() {
    let request = Request { repeats: 3, ..request() };
    let cells = cells(&request, &model(), &pools()).unwrap();
    let doc = stored(&request, &cells);
    let by_pool = |pool: &Pool, kinds: Vec<Kind<'_>>| budget::rounds(kinds, std::slice::from_ref(pool));
    for pool in pools() {
        let of_cells = cells.iter().map(|cell| Kind::of(cell, 3)).collect();
        assert_eq!(by_pool(&pool, budget::kinds(&doc)), by_pool(&pool, of_cells), "{pool:?}");
    }
    assert_eq!(budget::kinds(&doc).iter().map(|kind| kind.tasks).sum::<u64>(), 3 * cells.len() as u64);
}

#[test]
fn auto_goes_only_to_engines_that_have_the_models_types() {
    let auto = Request { engines: vec!["auto".into()], engine_settings: BTreeMap::new(), ..request() };
    let chosen = |model: &Model| -> Vec<String> {
        let cells = cells(&auto, model, &pools()).unwrap();
        cells.iter().map(|cell| cell.engine.clone()).collect::<BTreeSet<_>>().into_iter().collect()
    };
    assert_eq!(chosen(&model()), ["onnx", "rten"]);
    let mut halves = model();
    halves.inputs[0].dtype = Datatype::Bf16;
    assert_eq!(chosen(&halves), ["onnx"]);
    let mut outputs = model();
    outputs.outputs = vec![TensorSpec { dtype: Datatype::Fp64, ..model().inputs[0].clone() }];
    assert_eq!(chosen(&outputs), ["onnx"]);
    let weights = Model { weights: [Datatype::Fp32, Datatype::Bf16].into(), ..model() };
    assert_eq!(chosen(&weights), ["onnx"]);
    let taken = Model { weights: [Datatype::Fp16, Datatype::Int64].into(), ..model() };
    assert_eq!(chosen(&taken), ["onnx", "rten"], "rten makes FP16 weights FP32");
    let named = Request { engine_settings: BTreeMap::new(), ..request() };
    let refused = cells(&named, &halves, &pools()).unwrap_err();
    assert_eq!(refused.field.as_deref(), Some("engines"));
    assert!(refused.message.contains("'rten'") && refused.message.contains("input 'x' is BF16"), "{refused}");
    assert!(refused.hint.unwrap().contains("onnx"));
    let mut words = model();
    words.inputs[0].dtype = Datatype::Bytes;
    let refused = cells(&auto, &words, &pools()).unwrap_err();
    assert!(refused.message.contains("input 'x' is BYTES"), "{refused}");
}

#[test]
fn without_sizes_the_models_only_batch_is_what_is_measured() {
    let plain = Request { batch_sizes: Vec::new(), engine_settings: BTreeMap::new(), ..request() };
    let sizes = |model: &Model, request: &Request| {
        let cells = cells(request, model, &pools()).unwrap();
        assert_eq!(cells_again(&stored(request, &cells), model).unwrap(), cells, "and again");
        cells.iter().map(|cell| cell.batch_size).collect::<BTreeSet<_>>()
    };
    assert_eq!(sizes(&model(), &plain), [1, 2, 4, 8].into());
    let mut fixed = model();
    fixed.inputs[0].shape[0] = Dim::Fixed(3);
    let one = Request { shapes: [("x".into(), vec![vec![3, 4, 8]])].into(), ..plain };
    assert_eq!(sizes(&fixed, &one), [3].into());
    let asked = Request { batch_sizes: vec![1], ..one };
    assert!(cells(&asked, &fixed, &pools()).unwrap_err().message.contains("fixed at 3"));
}

#[test]
fn a_model_that_tells_no_inputs_is_not_called_without_any() {
    let silent = Model { inputs: Vec::new(), ..model() };
    let plain = Request { shapes: BTreeMap::new(), engine_settings: BTreeMap::new(), ..request() };
    let refused = cells(&plain, &silent, &pools()).unwrap_err();
    assert!(refused.field.as_deref() == Some("input") && refused.hint.unwrap().contains("--input x:fp32"));
    let own = Request { inspector: Some("mine".into()), batch_sizes: vec![1], ..plain };
    let abilities = Abilities { inspectors: ["mine".to_owned()].into(), ..Abilities::default() };
    let pools = [Pool::of("cpu", vec!["rten".into(), "onnx".into()], abilities)];
    assert!(cells(&own, &silent, &pools).is_ok(), "an inspector of the user's own makes its own calls");
}
