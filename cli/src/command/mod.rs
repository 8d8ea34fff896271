//! The commands: each takes its arguments and the configuration, and gives an exit code or a problem.

mod check;
mod coordinator;
mod engines;
mod listing;
mod model;
mod profile;
mod selfcheck;
mod serve;
mod worker;

use crate::{
    args::{Cli, Command, Global},
    failure::Failure,
    notes,
};
use clap::{CommandFactory, Parser, error::ErrorKind as Usage};
use modelmeter_common::{
    Code, Problem,
    config::{self, Config, Sources},
};
use modelmeter_worker::Patience;
use std::{
    io::{ErrorKind, IsTerminal, Write},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};
use tracing_subscriber::EnvFilter;

/// What is left of the runtime when a command has ended may take this long to go.
const SHUTDOWN: Duration = Duration::from_millis(500);

/// What every command gets.
pub(crate) struct Context {
    pub config: Config,
    pub json: bool,
}

/// Parses the process's arguments and runs the command.
pub fn main() -> ExitCode {
    crate::servers::this_is_the_program();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let json = cli.global.json;
    log_to_stderr(cli.global.verbose);
    ExitCode::from(run(cli).unwrap_or_else(|failure| {
        complain(&failure.problem, json);
        failure.exit_code()
    }))
}

fn run(cli: Cli) -> Result<u8, Failure> {
    let context = Context { config: configure(&cli)?, json: cli.global.json };
    if cli.global.dump_config {
        print(&context.config.dump())?;
        return Ok(0);
    }
    let Some(command) = cli.command else {
        return Err(Problem::invalid("command", "no command was given").with_hint("see modelmeter --help").into());
    };
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if let Command::Serve(args) = &command {
        runtime.worker_threads(serve::io_threads(args)?);
    }
    let runtime = runtime
        .enable_all()
        .build()
        .map_err(|e| Problem::new(Code::Internal, format!("cannot start the runtime: {e}")))?;
    let ended = runtime.block_on(dispatch(context, command));
    runtime.shutdown_timeout(SHUTDOWN);
    ended
}

async fn dispatch(context: Context, command: Command) -> Result<u8, Failure> {
    Ok(match command {
        Command::Profile(args) => profile::run(&context, &args).await?,
        Command::Model(command) => model::run(&context, command).await?,
        Command::Coordinator(args) => coordinator::run(&context, args.no_wait).await?,
        Command::Worker(args) => worker::run(&context, args.no_wait).await?,
        Command::Requests(args) => listing::requests(&context, args.limit).await?,
        Command::Status(args) => listing::status(&context, &args.id).await?,
        Command::Watch(args) => profile::watch(&context, &args).await?,
        Command::Cancel(args) => listing::cancel(&context, &args.id).await?,
        Command::Workers => listing::workers(&context).await?,
        Command::Check(args) => check::run(&context, args).await?,
        Command::Engines => engines::run(&context)?,
        Command::Selfcheck => selfcheck::run(&context).await?,
        Command::Results(args) => listing::results(&context, &args).await?,
        Command::Serve(args) => serve::run(args, context.json).await?,
    })
}

/// Defaults < file < environment < flags.
fn configure(cli: &Cli) -> Result<Config, Problem> {
    let Global { home, config: file, coordinators, .. } = &cli.global;
    let sources = Sources::of_process(file.clone(), home.clone());
    for name in config::unknown_variables(&sources.env) {
        tracing::warn!("the environment variable {name} has no meaning here");
    }
    let mut config = config::load(&sources)?;
    if !coordinators.is_empty() {
        config.client.coordinators.clone_from(coordinators);
    }
    match &cli.command {
        Some(Command::Coordinator(args)) => args.apply(&mut config),
        Some(Command::Worker(args)) => {
            args.apply(&mut config);
            if !coordinators.is_empty() {
                config.worker.coordinators.clone_from(coordinators);
            }
        }
        Some(Command::Profile(args)) => args.apply(&mut config),
        _ => {}
    }
    Ok(config)
}

/// What a service does about a device that another process holds, and about what it needs and cannot reach.
fn patience(no_wait: bool) -> Patience {
    if no_wait {
        return Patience::Refuse;
    }
    Patience::Wait(Arc::new(|problem| drop(writeln!(std::io::stderr(), "{}", notes::waiting(problem)))))
}

/// Prints to standard output; a reader that has gone away is not an error.
///
/// # Errors
/// `internal` where it cannot be written: a full disk must not look like a result.
pub(crate) fn print(text: &str) -> Result<(), Problem> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            Err(Problem::new(Code::Internal, format!("cannot write to standard output: {e}")))
        }
        _ => Ok(()),
    }
}

/// `error: …` and `hint: …`, or the same as JSON.
fn complain(problem: &Problem, json: bool) {
    let text = if json {
        serde_json::json!({ "error": problem }).to_string()
    } else {
        match &problem.hint {
            Some(hint) => format!("error: {problem}\nhint: {hint}"),
            None => format!("error: {problem}"),
        }
    };
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// What clap says; as JSON where that was asked for.
fn usage(error: &clap::Error) -> ExitCode {
    let asked_for = matches!(error.kind(), Usage::DisplayHelp | Usage::DisplayVersion);
    if !asked_for && std::env::args_os().any(|arg| arg == "--json") {
        let text = error.render().to_string();
        let line = text.lines().next().unwrap_or_default();
        let command = Cli::command().get_name().to_owned();
        let problem = Problem::invalid("arguments", line.strip_prefix("error: ").unwrap_or(line));
        complain(&problem.with_hint(format!("see {command} --help")), true);
    } else {
        // Nothing can be said where standard error is closed.
        let _ = error.print();
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

/// Warnings for users; more with `-v`; `RUST_LOG` beats both.
fn log_to_stderr(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => {
            "warn,modelmeter=info,modelmeter_coordinator=info,modelmeter_worker=info,modelmeter_serving=info,modelmeter_common=info"
        }
        _ => {
            "info,modelmeter=debug,modelmeter_coordinator=debug,modelmeter_worker=debug,modelmeter_serving=debug,modelmeter_common=debug"
        }
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(ansi)
        .with_target(verbose > 0)
        // A reader that has gone away is no defect.
        .log_internal_errors(false)
        .init();
}
