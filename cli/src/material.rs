//! What a job measures: its model, what of that is on this machine, and its test data.

use crate::{
    client::Client,
    data,
    job::Target,
    models::{self, Local},
};
use modelmeter_common::{Problem, model::Model, request::Request, testdata::DataSet};
use std::path::Path;

/// A model and its test data, found and fitted to each other; nothing of it need be in the hub yet.
pub(crate) struct Material {
    pub model: Model,
    local: Option<Local>,
    data: Option<DataSet>,
}

impl Material {
    /// Finds what the target means, of which `local` is what can be found without a hub. The request gets the model's id,
    /// and for axes that are open the data's lengths.
    ///
    /// # Errors
    /// `not_found` with what there is; data that does not fit.
    pub async fn resolve(
        target: &Target,
        request: &mut Request,
        local: Option<Local>,
        client: &mut Client,
    ) -> Result<Self, Problem> {
        let model = models::meant(target, local.as_ref(), client).await?;
        request.model = model.id.to_string();
        let data = data::check(request, &model)?;
        Ok(Self { model, local, data })
    }

    /// Puts into the hub what it lacks; the request then names the data there.
    ///
    /// # Errors
    /// `storage` at home; of the hub.
    pub async fn upload(self, request: &mut Request, home: &Path, client: &mut Client) -> Result<(), Problem> {
        if let Some(local) = &self.local {
            local.add(client).await?;
        }
        if let Some(data) = &self.data {
            request.data = Some(data::store(data, home, client).await?);
        }
        Ok(())
    }
}
