//! How users and workers reach the coordinator. Each verb checks its input, asks the core, and answers; no rule lives here.

mod artifacts;
mod control;
pub mod grpc;
pub mod http;
mod models;
pub mod submit;
mod work;

use crate::{
    core::Core,
    hub::{HubError, ProfileFilter},
};
use modelmeter_common::{Code, Problem, grpc::status_of, model::ModelName, profile::Profile};
use tonic::Status;

/// The profiles of a model, NAME or NAME:VERSION, or of all where it is empty. What has no such version may be a name with a
/// colon in it.
pub(crate) async fn profiles(core: &Core, of_all: ProfileFilter, model: &str) -> Result<Vec<Profile>, Problem> {
    if model.is_empty() {
        return Ok(core.hub.profiles(&of_all).await?);
    }
    let ModelName { name, version } = model.parse()?;
    let whole_name = version.is_some().then(|| ProfileFilter { model: Some(model.into()), ..of_all.clone() });
    let found = core.hub.profiles(&ProfileFilter { model: Some(name), version, ..of_all }).await?;
    match whole_name {
        Some(whole_name) if found.is_empty() => Ok(core.hub.profiles(&whole_name).await?),
        _ => Ok(found),
    }
}

/// A hub's error as a gRPC status.
pub(crate) fn hub_status(error: HubError) -> Status {
    tracing::warn!(%error, "the hub failed a call");
    status_of(&error.into())
}

/// Parses an argument of a call, naming it.
pub(crate) fn parse<T: std::str::FromStr>(field: &str, text: &str) -> Result<T, Status> {
    text.parse().map_err(|_| status_of(&Problem::invalid(field, format!("'{text}' is not a valid id"))))
}

/// Reads a JSON document out of a call, naming it.
pub(crate) fn from_json<T: serde::de::DeserializeOwned>(field: &str, json: &str) -> Result<T, Status> {
    serde_json::from_str(json).map_err(|e| status_of(&Problem::invalid(field, e.to_string())))
}

/// Writes a document for a reply.
pub(crate) fn to_json<T: serde::Serialize>(document: &T) -> Result<String, Status> {
    serde_json::to_string(document).map_err(|e| status_of(&Problem::new(Code::Internal, e.to_string())))
}

/// Something asked for that is not there.
pub(crate) fn not_found(what: &str, id: &str, hint: &str) -> Status {
    status_of(&Problem::new(Code::NotFound, format!("no {what} '{id}'")).with_hint(hint))
}
