//! Results that are there: which profiles a question means.

use super::{requests, stated};
use crate::{
    core::Core,
    hub::{self, HubError, ProfileFilter, ProfileQuery},
};
use futures::stream::BoxStream;
use modelmeter_common::{Problem, RequestId, model::ModelName, profile::Profile};

/// Profiles that an answer has where neither a request nor a limit is named.
const USUAL_LIMIT: u32 = 1000;

/// Profiles on their way.
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
    // What has no such version may be a name with a colon in it.
    let one = ProfileQuery { limit: Some(1), ..query.clone() };
    if has_version && core.hub.profiles(&one).await?.items.is_empty() {
        return Ok(hub::stream(core.hub.clone(), of(Some(model.to_owned()), None)));
    }
    Ok(hub::stream(core.hub.clone(), query))
}
