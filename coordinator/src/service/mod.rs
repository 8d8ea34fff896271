//! Every rule of what may be asked of a coordinator, once, as functions on our own types. gRPC and HTTP convert, call one of
//! these, and convert back; the leader's loops call the same ones.
//!
//! | where it is decided | file |
//! |---|---|
//! | what may be submitted | `submit` |
//! | which slot may run a task, and which task next | `claim` |
//! | who may register, what a silent worker loses | `workers` |
//! | how a task's state changes | `transition` (the rules themselves: `modelmeter_common::task`) |
//! | how a request becomes tasks | `expansion` (the rules: [`crate::plan::expand`]) |
//! | when a cell is folded and a request ends | `ending` |
//! | what is shown of a request | `requests`, `status`; of results: `results` |
//! | what those who follow a request are told | `tell`, `watch` |
//! | which artifacts and models are taken | `artifacts`, `models` |

pub mod artifacts;
pub mod claim;
pub mod ending;
pub mod expansion;
pub mod models;
pub mod requests;
pub mod results;
pub mod status;
pub mod submit;
pub mod tell;
pub mod transition;
pub mod watch;
pub mod workers;

use modelmeter_common::{Code, Problem};

/// Something asked for that is not there.
fn not_found(what: &str, id: &str, hint: &str) -> Problem {
    Problem::new(Code::NotFound, format!("no {what} '{id}'")).with_hint(hint)
}

/// A limit as it is asked for: none and 0 leave it to the service.
fn stated(limit: Option<u32>) -> Option<u32> {
    limit.filter(|limit| *limit > 0)
}
