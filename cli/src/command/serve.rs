//! `serve`: the process that the built-in engines are.

use super::complain;
use crate::{args::ServeArgs, interrupt};
use modelmeter_common::{Code, Problem, engine::EXIT_REFUSED};
use modelmeter_serving::{Options, serve};
use serde_json::Value;
use std::{collections::BTreeMap, net::IpAddr};
use tokio::net::TcpListener;

pub(super) fn io_threads(args: &ServeArgs) -> Result<usize, Problem> {
    Ok(modelmeter_serving::io_threads(&args.engine, &settings(args)?))
}

fn settings(args: &ServeArgs) -> Result<BTreeMap<String, Value>, Problem> {
    serde_json::from_str(&args.settings).map_err(|e| {
        Problem::invalid("settings", format!("not a JSON object: {e}")).with_hint(r#"for example {"threads": 2}"#)
    })
}

pub(super) async fn run(args: ServeArgs, json: bool) -> Result<u8, Problem> {
    let settings = settings(&args)?;
    let stop = interrupt::listen()?;
    let grpc = bind(args.host, args.grpc_port, "grpc-port").await?;
    let http = bind(args.host, args.http_port, "http-port").await?;
    let at = |listener: &TcpListener| listener.local_addr().map(|at| at.to_string()).unwrap_or_default();
    eprintln!("serving {} with {}: gRPC on {}, HTTP on {}", args.model_name, args.engine, at(&grpc), at(&http));
    let options = Options {
        engine: args.engine,
        model: args.model,
        model_name: args.model_name,
        settings,
        onnxruntime: args.onnxruntime,
    };
    match serve(options, grpc, http, stop).await {
        // Whatever else ends a server may be gone the next time.
        Err(problem) if matches!(problem.code, Code::InvalidArgument | Code::NotInstalled | Code::EngineFailed) => {
            complain(&problem, json);
            Ok(EXIT_REFUSED)
        }
        ended => ended.map(|()| 0),
    }
}

async fn bind(host: IpAddr, port: u16, field: &str) -> Result<TcpListener, Problem> {
    TcpListener::bind((host, port)).await.map_err(|e| {
        Problem::new(Code::Busy, format!("cannot listen on port {port} of {host}: {e}"))
            .with_field(field)
            .with_hint("choose another port, or 0 for a free one")
    })
}
