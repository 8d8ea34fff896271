//! Stored results: the profiles that a question means.

use super::{requests, stated};
use crate::{
    core::Core,
    hub::{self, HubError, ProfileFilter, ProfileQuery},
};
use futures::stream::BoxStream;
use modelmeter_common::{Problem, RequestId, model::ModelName, profile::Profile};

/// Profiles in an answer to a question that names neither a request nor a limit.
const USUAL_LIMIT: u32 = 1000;

/// A stream of profiles.
pub type Profiles = BoxStream<'static, Result<Profile, HubError>>;

/// The profiles of a request, or of any, of a model, NAME or NAME:VERSION, or of any where it is empty; newest first.
///
/// # Errors
/// `not_found` for the request, `invalid_argument` for what is no name of a model.
pub async fn profiles(
    core: &Core,
    request: Option<RequestId>,
    model: &str,
    limit: Option<u32>,
) -> Result<Profiles, Problem> {
    let request = match request {
        Some(id) => Some(requests::find(core, id).await?.id),
        None => None,
    };
    let limit = stated(limit).or(if request.is_some() { None } else { Some(USUAL_LIMIT) });
    let of = |model, version| {
        let filter = ProfileFilter { request, model, version, ..Default::default() };
        ProfileQuery { filter, limit, ..Default::default() }
    };
    if model.is_empty() {
        return Ok(hub::stream(core.hub.clone(), of(None, None)));
    }
    let ModelName { name, version } = model.parse()?;
    let (has_version, query) = (version.is_some(), of(Some(name), version));
    // A word without such a version may be a name with a colon in it.
    let one = ProfileQuery { limit: Some(1), ..query.clone() };
    if has_version && core.hub.profiles(&one).await?.items.is_empty() {
        return Ok(hub::stream(core.hub.clone(), of(Some(model.to_owned()), None)));
    }
    Ok(hub::stream(core.hub.clone(), query))
}
