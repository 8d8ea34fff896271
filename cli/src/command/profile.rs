//! `profile` and `watch`.

use super::{Context, print};
use crate::{
    args::{ProfileArgs, WatchArgs},
    client::Client,
    failure::Failure,
    follow, interrupt, job,
    progress::Progress,
    report::{self, Format},
    run,
};
use modelmeter_common::Problem;

/// All was measured, and an SLA was missed.
const EXIT_MISSED: u8 = 4;

pub(super) async fn run(context: &Context, args: &ProfileArgs) -> Result<u8, Failure> {
    let embedded = context.config.client.coordinators.is_empty();
    let job = job::resolve(args, embedded, context.json)?;
    if args.fail_on_sla && job.request.sla.is_none() {
        let problem = Problem::invalid("fail-on-sla", "there is no SLA that could be missed");
        return Err(problem.with_hint("add one, for example --sla p95=50ms").into());
    }
    let stop = interrupt::listen()?;
    let (format, points) = (job.format, job.points);
    let mut progress = Progress::new(false);
    if job.dry_run {
        let plan = run::dry_run(&context.config, job, &progress, &stop).await?;
        print(&if format == Format::Json { report::json(&plan) } else { report::dryrun(&plan) })?;
        return Ok(0);
    }
    let finished = run::profile(&context.config, job, &mut progress, &stop).await?;
    if !finished.profiles.is_empty() || format == Format::Json {
        print(&report::render(&finished.profiles, format, args.report.view(points)))?;
    }
    Ok(match finished.exit_code() {
        0 if args.fail_on_sla && !finished.keeps_sla() => EXIT_MISSED,
        code => code,
    })
}

pub(super) async fn watch(context: &Context, args: &WatchArgs) -> Result<u8, Failure> {
    let mut client = Client::connect(super::listing::needs_coordinator(context, "watch")?).await?;
    let id = client.meant(&args.id.id).await?;
    let stop = interrupt::listen()?;
    let mut progress = Progress::new(false);
    // From here on the request is known to be there.
    client.status(id).await?;
    let status = tokio::select! {
        status = follow::watch(&mut client, id, &mut progress) => status.map_err(Failure::later)?,
        // Only the watching ends: the request goes on.
        () = stop.cancelled() => return Err(interrupt::interrupted().into()),
    };
    progress.finish();
    let profiles = client.results(Some(id), None, Some(u32::MAX)).await.map_err(Failure::later)?;
    let finished = run::Finished { request_id: id, state: status.state, interrupted: false, profiles };
    let format = args.report.format(context.json);
    if !finished.profiles.is_empty() || format == Format::Json {
        print(&report::render(&finished.profiles, format, args.report.view(false)))?;
    }
    Ok(finished.exit_code())
}
