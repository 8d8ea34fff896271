//! The commands that ask: of a coordinator, or of the hub at home through a coordinator in this process.

use super::{Context, print};
use crate::{
    args::{RequestWord, ResultsArgs},
    client::Client,
    embedded::Embedded,
    report::{self, Format},
};
use modelmeter_common::{Code, Problem, Timestamp, profile::Profile};

/// A connection to the coordinator that was named, or to one of our own.
pub(super) struct Asked {
    pub client: Client,
    own: Option<Embedded>,
}

impl Asked {
    pub async fn connect(context: &Context) -> Result<Self, Problem> {
        let coordinators = &context.config.client.coordinators;
        if !coordinators.is_empty() {
            return Ok(Self { client: Client::connect(coordinators).await?, own: None });
        }
        let own = Embedded::start_read_only(&context.config.home).await?;
        Ok(Self { client: own.client().await?, own: Some(own) })
    }

    pub async fn end(self) {
        drop(self.client);
        if let Some(own) = self.own {
            own.stop().await;
        }
    }
}

/// The coordinators that were named; an error where there must be one.
pub(super) fn needs_coordinator<'a>(context: &'a Context, command: &str) -> Result<&'a [String], Problem> {
    let coordinators = &context.config.client.coordinators;
    if coordinators.is_empty() {
        return Err(Problem::invalid("coordinator", format!("`{command}` needs a coordinator")).with_hint(
            "add --coordinator http://host:port; a request without a coordinator ends with the process that made it",
        ));
    }
    Ok(coordinators)
}

pub(super) async fn requests(context: &Context, limit: u32) -> Result<u8, Problem> {
    let mut asked = Asked::connect(context).await?;
    let found = asked.client.requests(limit).await;
    asked.end().await;
    let found = found?;
    print(&if context.json { report::json(&found) } else { report::requests(&found) })?;
    Ok(0)
}

pub(super) async fn status(context: &Context, word: &RequestWord) -> Result<u8, Problem> {
    let mut asked = Asked::connect(context).await?;
    let status = async {
        let id = asked.client.meant(word).await?;
        asked.client.status(id).await
    };
    let status = status.await;
    asked.end().await;
    let status = status?;
    print(&if context.json { report::json(&status) } else { report::cells(&status) })?;
    Ok(0)
}

pub(super) async fn results(context: &Context, args: &ResultsArgs) -> Result<u8, Problem> {
    let mut asked = Asked::connect(context).await?;
    let found = found(&mut asked.client, args).await;
    asked.end().await;
    let found = found?;
    let format = args.report.format(context.json);
    if found.is_empty() && format != Format::Json {
        if args.model.is_some() || args.id.is_some() || args.request.is_some() {
            return Err(Problem::new(Code::NotFound, "no results match")
                .with_hint("`modelmeter results --all` shows all results, `modelmeter requests` all requests"));
        }
        print("no results yet: `modelmeter profile MODEL` makes some\n")?;
        return Ok(0);
    }
    print(&report::render(&found, format, args.report.view(args.points)))?;
    Ok(0)
}

/// The profiles that were asked for: those of the newest request, where nothing was said.
async fn found(client: &mut Client, args: &ResultsArgs) -> Result<Vec<Profile>, Problem> {
    let id = match args.id.as_ref().or(args.request.as_ref()) {
        Some(word) => Some(client.meant(word).await?),
        None if args.all || args.model.is_some() => None,
        None => match client.requests(1).await?.first() {
            Some(latest) => Some(latest.id),
            None => return Ok(Vec::new()),
        },
    };
    client.results(id, args.model.as_deref(), args.limit).await
}

pub(super) async fn cancel(context: &Context, word: &RequestWord) -> Result<u8, Problem> {
    let mut client = Client::connect(needs_coordinator(context, "cancel")?).await?;
    let id = client.meant(word).await?;
    let tasks = client.cancel(id, "cancelled by the user").await?;
    if context.json {
        print(&report::json(&serde_json::json!({ "request_id": id, "tasks_cancelled": tasks })))?;
    } else {
        print(&format!("{} cancelled\n", report::counted(tasks, "task")))?;
    }
    Ok(0)
}

pub(super) async fn workers(context: &Context) -> Result<u8, Problem> {
    let mut client = Client::connect(needs_coordinator(context, "workers")?).await?;
    let found = client.workers().await?;
    print(&if context.json { report::json(&found) } else { report::workers(&found, Timestamp::now()) })?;
    Ok(0)
}
