use super::*;
use crate::unary::{Call, Unary};
use modelmeter_common::load::Stop;
use std::{collections::BTreeMap, sync::Arc};

fn target() -> Target {
    let call = Call { path: "/p.S/M".into(), frames: vec![Default::default()], batch_size: 1 };
    Target::new("127.0.0.1:1".parse().unwrap(), Arc::new(Unary::new(call)), Arc::new(()))
}

fn rules() -> Rules {
    Rules { stop: Stop::default(), batches: None, seed: 0, slice: None, sla: None, aim: Default::default() }
}

/// One that takes reports but has no client.
fn meter<'a>(target: &'a Target, rules: &'a Rules) -> Meter<'a> {
    let (control, _) = Control::new(None).unwrap();
    let (_, reports) = tokio::sync::mpsc::unbounded_channel();
    Meter::new(target, LoadPoint::Closed { concurrency: 1 }, rules, Started { control, reports })
}

fn down() -> Report {
    Report::Down { failure: Failure::Refused, words: "refused".into() }
}

#[test]
fn a_server_that_answers_with_failures_has_not_gone() {
    let (target, rules) = (target(), rules());
    let mut meter = meter(&target, &rules);
    let mut after_a_while = |failure| {
        meter.last_seen = Instant::now() - 2 * Duration::from_millis(rules.stop.timeout_ms);
        let window = Window { errors: BTreeMap::from([(failure, 1)]), ..Window::default() };
        let next = meter.take(Report::Window(Box::new(window)));
        (next == Next::Go, meter.gone.take())
    };
    assert_eq!(after_a_while(Failure::Grpc(13)), (true, None));
    assert_eq!(after_a_while(Failure::Http(503)), (true, None));
    assert!(matches!(after_a_while(Failure::Timeout), (false, Some(_))));
}

#[test]
fn an_outage_lasts_from_the_loss_of_the_last_connection() {
    let (target, rules) = (target(), rules());
    let mut meter = meter(&target, &rules);
    // Calls that take so long: that nothing came says nothing.
    meter.last_seen = Instant::now() - 2 * GONE_AFTER;
    for _ in 0..2 * GONE_ATTEMPTS {
        assert!(meter.take(down()) == Next::Go && meter.gone.is_none());
    }
    assert!(meter.take(Report::Up) == Next::Go && meter.down.is_none());
    // Long enough, but a few attempts say nothing either.
    meter.take(down());
    meter.down.as_mut().unwrap().since -= GONE_AFTER;
    for _ in 2..GONE_ATTEMPTS {
        assert!(meter.take(down()) == Next::Go);
    }
    assert!(meter.take(down()) == Next::End);
    assert_eq!(meter.gone.as_deref(), Some("refused"));
}
