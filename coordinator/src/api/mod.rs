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
    hub::{self, HubError, ProfileFilter, ProfileQuery},
};
use futures::stream::BoxStream;
use modelmeter_common::{Code, Problem, grpc::status_of, model::ModelName, profile::Profile};
use tonic::Status;

/// The profiles of a model, NAME or NAME:VERSION, or of all where it is empty. What has no such version may be a name with a
/// colon in it.
pub(crate) async fn profiles(core: &Core, of_all: ProfileQuery, model: &str) -> Result<Profiles, Problem> {
    if model.is_empty() {
        return Ok(hub::stream(core.hub.clone(), of_all));
    }
    let ModelName { name, version } = model.parse()?;
    let of = |name: String, version| {
        let filter = ProfileFilter { model: Some(name), version, ..of_all.filter.clone() };
        ProfileQuery { filter, ..of_all.clone() }
    };
    let (whole_name, query) = (version.is_some().then(|| of(model.into(), None)), of(name, version));
    if let Some(whole_name) = whole_name {
        let one = ProfileQuery { limit: Some(1), ..query.clone() };
        if core.hub.profiles(&one).await?.items.is_empty() {
            return Ok(hub::stream(core.hub.clone(), whole_name));
        }
    }
    Ok(hub::stream(core.hub.clone(), query))
}

type Profiles = BoxStream<'static, Result<Profile, HubError>>;

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
