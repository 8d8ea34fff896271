//! Models that several add at once, and plans for models that nobody added.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "the other tests use the rest")]
mod support;

use modelmeter_common::{
    model::{ArtifactRef, Format, Model},
    request::Request,
    status::Dryrun,
    wire::sha256_hex,
};
use modelmeter_proto::control::{AddModelRequest, ArtifactHeader, PlanRequest};
use std::time::Duration;
use support::House;

const FORMATS: [Format; 4] = [Format::Onnx, Format::Torchscript, Format::Savedmodel, Format::Triton];

fn artifact(format: Format) -> ArtifactRef {
    let bytes = format.as_str().as_bytes();
    ArtifactRef { format, sha256: sha256_hex(bytes), bytes: bytes.len() as u64 }
}

fn add(model: &Model, format: Format) -> AddModelRequest {
    let model = Model { artifacts: vec![artifact(format)], ..model.clone() };
    AddModelRequest { model_json: serde_json::to_string(&model).unwrap() }
}

#[tokio::test]
async fn formats_that_are_added_at_once_are_all_kept() {
    let mut house = House::build(Duration::from_secs(30)).await;
    for format in FORMATS {
        let ArtifactRef { sha256, bytes, .. } = artifact(format);
        let header = ArtifactHeader { sha256, format: format.to_string(), bytes };
        house.put_artifact(header, format.as_str().as_bytes()).await;
    }
    let mut stored = house.hub.model("m", None).await.unwrap().unwrap();
    stored.id.name = "several".into();
    for round in 0..8 {
        stored.id.version = format!("{round}");
        let adding = FORMATS.map(|format| {
            let (mut control, request) = (house.control.clone(), add(&stored, format));
            tokio::spawn(async move { control.add_model(request).await.unwrap().into_inner().model_json })
        });
        let mut last_seen = 0;
        for added in adding {
            let model: Model = serde_json::from_str(&added.await.unwrap()).unwrap();
            last_seen = last_seen.max(model.artifacts.len());
        }
        let model = house.hub.model("several", Some(&stored.id.version)).await.unwrap().unwrap();
        assert_eq!((model.artifacts.len(), last_seen), (FORMATS.len(), FORMATS.len()), "{:?}", model.artifacts);
    }
    house.close().await;
}

#[tokio::test]
async fn a_model_whose_artifact_is_not_there_is_refused() {
    let mut house = House::build(Duration::from_secs(30)).await;
    let mut model = house.hub.model("m", None).await.unwrap().unwrap();
    model.id.name = "hollow".into();
    let refused = house.control.add_model(add(&model, Format::Triton)).await.unwrap_err();
    assert!(refused.message().contains("triton artifact") && refused.message().contains("not in the hub"), "{refused}");
    assert_eq!(house.hub.model("hollow", None).await.unwrap(), None);
    house.close().await;
}

#[tokio::test]
async fn a_model_that_the_hub_lacks_is_planned_and_not_stored() {
    let mut house = House::build(Duration::from_secs(30)).await;
    let mut model = house.hub.model("m", None).await.unwrap().unwrap();
    model.id.name = "unknown".into();
    let engines = vec!["rten".into(), "onnx".into()];
    let request = Request { model: model.id.to_string(), engines, batch_sizes: vec![1, 2], ..Request::default() };
    let call = PlanRequest { request_json: serde_json::to_string(&request).unwrap(), model_json: String::new() };
    let refused = house.control.plan(call.clone()).await.unwrap_err();
    assert!(refused.message().contains("no model 'unknown:1'"), "{refused}");
    let call = PlanRequest { model_json: serde_json::to_string(&model).unwrap(), ..call };
    let plan: Dryrun = serde_json::from_str(&house.control.plan(call).await.unwrap().into_inner().plan_json).unwrap();
    assert_eq!((&plan.model, plan.cells.len()), (&model.id, 4));
    for cell in plan.cells {
        let runs = cell.engine == "rten";
        assert_eq!((cell.slots, cell.reason.is_none()), (u32::from(runs), runs), "{cell:?}");
    }
    assert_eq!(house.hub.model("unknown", None).await.unwrap(), None);
    assert_eq!(house.hub.requests(false, 1).await.unwrap(), Vec::new());
    house.close().await;
}
