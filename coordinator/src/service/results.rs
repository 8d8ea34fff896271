//! Results that are there: which profiles a question means.

use super::{requests, stated};
use crate::{core::Core, hub::ProfileFilter};
use modelmeter_common::{Problem, RequestId, model::ModelName, profile::Profile};

/// Profiles that an answer has where neither a request nor a limit is named.
const USUAL_LIMIT: u32 = 1000;

/// The profiles of a request, or of any, of a model, NAME or NAME:VERSION, or of any where it is empty; newest first.
///
/// # Errors
/// `not_found` for the request, `invalid_argument` for what is no name of a model.
pub async fn profiles(
    core: &Core,
    request: Option<RequestId>,
    model: &str,
    limit: Option<u32>,
) -> Result<Vec<Profile>, Problem> {
    let request = match request {
        Some(id) => Some(requests::find(core, id).await?.id),
        None => None,
    };
    let limit = stated(limit).or(if request.is_some() { None } else { Some(USUAL_LIMIT) });
    let all = ProfileFilter { request, limit, ..Default::default() };
    if model.is_empty() {
        return Ok(core.hub.profiles(&all).await?);
    }
    let ModelName { name, version } = model.parse()?;
    // What has no such version may be a name with a colon in it.
    let whole_name = version.is_some().then(|| ProfileFilter { model: Some(model.into()), ..all.clone() });
    let found = core.hub.profiles(&ProfileFilter { model: Some(name), version, ..all }).await?;
    match whole_name {
        Some(whole_name) if found.is_empty() => Ok(core.hub.profiles(&whole_name).await?),
        _ => Ok(found),
    }
}
