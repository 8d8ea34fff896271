//! `selfcheck`: has this machine and the client itself measured, against the engine that does nothing, and prints what can
//! be measured here.

mod words;

use super::{Context, print};
use crate::{
    embedded, interrupt,
    progress::Progress,
    report::{self, Align, Table, number},
};
use modelmeter_common::{
    Code, Problem, artifact,
    model::{Dim, TensorShape},
};
use modelmeter_meter::Target;
use modelmeter_serving::{Options, reference};
use modelmeter_worker::{
    hold_cpu,
    inspector::{self, Subject, kserve_v2::KserveV2},
    lock_dir,
    selfcheck::{self, SelfCheck},
};
use serde::Serialize;
use std::{collections::BTreeMap, net::Ipv4Addr, path::Path, sync::Arc};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The built-in model that the null engine serves.
const MODEL: &str = "mlp";

/// A self-check as JSON has it.
#[derive(Serialize)]
struct Printed {
    #[serde(flatten)]
    check: SelfCheck,
    /// What can be measured here, in words.
    findings: Vec<String>,
}

pub(super) async fn run(context: &Context) -> Result<u8, Problem> {
    let stop = interrupt::listen()?;
    let config = &context.config;
    embedded::writable(&config.home)?;
    let _alone = hold_cpu(&lock_dir(config), "selfcheck")?;
    let progress = Progress::new(context.json);
    let server = stop.child_token();
    let null_engine = null_engine(&config.home.join("cache"), &server).await?;
    let measured = selfcheck::measure(&null_engine, &|what| progress.say(what), &stop).await;
    server.cancel();
    match measured {
        Ok(check) => {
            progress.finish();
            let findings = selfcheck::findings(&check).iter().map(words::sentence).collect();
            let printed = Printed { check, findings };
            print(&if context.json { report::json(&printed) } else { text(&printed) })?;
            Ok(0)
        }
        Err(problem) if problem.code == Code::Cancelled => Ok(interrupt::EXIT_INTERRUPTED),
        Err(problem) => Err(problem),
    }
}

/// Starts the null engine on a free port; it ends with the token.
async fn null_engine(cache: &Path, stop: &CancellationToken) -> Result<Target, Problem> {
    let model = reference::ensure(MODEL, cache)?;
    let opened = artifact::open(&model)?;
    let bind = async || {
        let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
        bound.map_err(|e| Problem::new(Code::Busy, format!("no free port on loopback: {e}")))
    };
    let (grpc, http) = (bind().await?, bind().await?);
    let address = grpc.local_addr().map_err(|e| Problem::new(Code::Internal, e.to_string()))?.to_string();
    let (model_name, settings) = (MODEL.to_owned(), BTreeMap::new());
    let options = Options { engine: "null".into(), model, model_name, settings, onnxruntime: None };
    let served = modelmeter_serving::serve(options, grpc, http, stop.clone());
    tokio::spawn(async move {
        if let Err(problem) = served.await {
            tracing::error!(%problem, "the null engine failed");
        }
    });
    let length = |dim: &Dim| match dim {
        Dim::Fixed(length) => *length,
        Dim::Dynamic(_) => 1,
    };
    let inputs = opened
        .inputs
        .into_iter()
        .map(|input| TensorShape::new(input.name, input.dtype, input.shape.iter().map(length).collect()));
    let (model, version, inputs) = (MODEL.to_owned(), String::new(), inputs.collect());
    let subject = Subject {
        model,
        version,
        signature: String::new(),
        inputs,
        outputs: opened.outputs,
        batch_size: 1,
        seed: 0,
        data: None,
        output_axes: Default::default(),
    };
    inspector::target(address.parse()?, Arc::new(KserveV2::new(subject)))
}

fn text(printed: &Printed) -> String {
    let check = &printed.check;
    let us = |ns: u64| number(ns as f64 / 1e3);
    let timer = &check.timer;
    let mut text = format!(
        "{} cores of {}; clock of {} ns, a sleep ends {} µs late (p99 {} µs)\n\n",
        check.cores,
        check.cpu,
        timer.resolution_ns,
        us(timer.sleep_late_p50_ns),
        us(timer.sleep_late_p99_ns)
    );
    text += &closed(check).to_string();
    text += "\n";
    text += &open(check).to_string();
    text += "\nwhat can be measured here\n";
    for finding in &printed.findings {
        text += &format!("- {finding}\n");
    }
    text
}

fn closed(check: &SelfCheck) -> Table {
    let mut table = Table::default()
        .group("null engine, closed loop", "load", Align::Left)
        .column("calls/s", Align::Right)
        .column("p50, µs", Align::Right)
        .column("client's core", Align::Right);
    for point in &check.closed {
        table.row(vec![
            format!("{} in flight", point.concurrency),
            number(point.calls_per_s),
            point.p50_latency_us.map_or_else(|| "–".into(), number),
            format!("{:.0} %", 100.0 * point.client_cpu_cores),
        ]);
    }
    table
}

fn open(check: &SelfCheck) -> Table {
    let mut table = Table::default()
        .group("null engine, open loop", "load", Align::Left)
        .group("sent late, µs", "p50", Align::Right)
        .column("p99", Align::Right)
        .column("max", Align::Right)
        .group("", "over 1 ms", Align::Right)
        .column("valid", Align::Left);
    for point in &check.open {
        let late = &point.send_lateness_us;
        table.row(vec![
            format!("{} calls/s", number(point.rate_per_s)),
            number(late.p50),
            number(late.p99),
            number(late.max),
            format!("{:.3} %", 100.0 * late.over_1ms_ratio),
            if point.valid { "yes" } else { "no" }.into(),
        ]);
    }
    table
}
