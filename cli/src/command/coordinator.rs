//! `coordinator`: for workers in other processes.

use super::{Context, patience};
use crate::interrupt;
use modelmeter_common::{
    Code, Problem,
    broker::{Broker, amqp},
    config,
    redact::redact,
};
use modelmeter_coordinator::{
    self as coordinator,
    hub::{self, HubError},
};
use modelmeter_worker::Patience;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::net::{TcpListener, lookup_host};

/// What a loaded network and host can keep to.
const SHORTEST_LEASE: Duration = Duration::from_secs(1);

pub(super) async fn run(context: &Context, no_wait: bool) -> Result<u8, Problem> {
    let settings = &context.config.coordinator;
    let broker_url = required(settings.broker.as_deref(), "broker", "--broker amqp://guest:guest@127.0.0.1:5672/%2f")?;
    let hub_url = required(settings.hub.as_deref(), "hub", "--hub mongodb://127.0.0.1:27017/modelmeter")?;
    let lease = lease(&settings.lease)?;
    let stop = interrupt::listen()?;
    let grpc = listen("listen", &settings.listen, settings.insecure_listen).await?;
    let http = match settings.http.as_str() {
        "" => None,
        address => Some(listen("http", address, settings.insecure_listen).await?),
    };
    let patience = patience(no_wait);
    let started = async {
        let broker = connect(broker_url, &patience).await?;
        let hub = patience.while_unreachable(|| async { hub::open(hub_url).await.map_err(hub_problem) }).await?;
        let options = coordinator::Options { lease, ..coordinator::Options::new(broker.clone(), hub) };
        Ok::<_, Problem>((coordinator::start(options, grpc, http).await?, broker))
    };
    let (mut handle, broker) = tokio::select! {
        started = started => started?,
        () = stop.cancelled() => return Err(interrupt::interrupted()),
    };
    let http = handle.http_addr().map(|at| format!(", HTTP on {at}")).unwrap_or_default();
    eprintln!(
        "coordinator ready: gRPC on {}{http}, broker {}, hub {}",
        handle.grpc_addr(),
        redact(broker_url),
        redact(hub_url)
    );
    let died = tokio::select! {
        () = stop.cancelled() => false,
        () = handle.wait() => true,
    };
    handle.stop().await;
    broker.close().await;
    if died {
        return Err(Problem::new(Code::Internal, "a part of the coordinator ended unexpectedly; its log says which"));
    }
    Ok(0)
}

fn lease(text: &str) -> Result<Duration, Problem> {
    let lease = config::duration(text).map_err(|e| e.with_field("lease"))?;
    if lease < SHORTEST_LEASE {
        let hint = "use 1s or more (default 30s): workers renew their leases three times within it";
        return Err(Problem::invalid("lease", format!("'{text}' is too short")).with_hint(hint));
    }
    Ok(lease)
}

fn required<'a>(value: Option<&'a str>, field: &str, example: &str) -> Result<&'a str, Problem> {
    value.ok_or_else(|| Problem::invalid(field, "no address was given").with_hint(format!("for example {example}")))
}

/// Each kind of failure knows what to do about it, such as a user for the database; what says nothing gets the usual.
fn hub_problem(error: HubError) -> Problem {
    const USUAL: &str =
        "check the address (mongodb://host:port/database), and that the server runs and is reachable from here";
    let problem = Problem::from(error).with_field("hub");
    Problem { hint: problem.hint.or_else(|| Some(USUAL.into())), ..problem }
}

/// Connects to a broker that other processes reach too.
pub(super) async fn connect(url: &str, patience: &Patience) -> Result<Arc<dyn Broker>, Problem> {
    Ok(Arc::new(patience.while_unreachable(|| async { Ok(amqp::connect(url).await?) }).await?))
}

/// Binds an address. Beyond loopback only where the user says that he knows: callers do not authenticate yet.
async fn listen(field: &str, address: &str, insecure: bool) -> Result<TcpListener, Problem> {
    let wrong = |e: std::io::Error| {
        Problem::invalid(field, format!("'{address}' is not an address to listen on: {e}"))
            .with_hint("use host:port, for example 127.0.0.1:7600")
    };
    let addresses: Vec<SocketAddr> = lookup_host(address).await.map_err(wrong)?.collect();
    if !insecure && addresses.iter().any(|at| !at.ip().is_loopback()) {
        return Err(Problem::invalid(
            field,
            format!("other machines can reach '{address}', and this version does not authenticate its callers"),
        )
        .with_hint("listen on 127.0.0.1, or add --insecure-listen in a network where you trust everyone"));
    }
    TcpListener::bind(&addresses[..]).await.map_err(|e| match e.kind() {
        std::io::ErrorKind::AddrInUse => Problem::new(Code::Busy, format!("{address} is in use by another process"))
            .with_field(field)
            .with_hint(format!(
                "stop it (`ss -ltnp` names it), or choose another port with --{field}; port 0 takes a free one"
            )),
        _ => wrong(e),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_that_knows_what_to_do_is_not_talked_over() {
        let refused = HubError::Unauthenticated { address: "h:1".into(), reason: "no user".into() };
        let hint = |error| hub_problem(error).hint.unwrap();
        assert!(
            hint(refused).contains("put a user"),
            "the reason is known: whether the server runs is not in question"
        );
        assert!(hint(HubError::Failed("code 59".into())).contains("mongodb://host:port/database"));
    }
}
