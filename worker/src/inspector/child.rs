//! A custom inspector that is a program: a child of the worker that makes the requests, checks a sample of the responses
//! or, where it is to be timed itself, makes the calls.
//!
//! Each of its answers has a deadline. What it does wrong ends it, and fails its cell alone.

use super::{
    Inspector, Subject, bad_response,
    pipe::{Flaw, Pipe},
    process::Kept,
    program::Program,
};
use crate::engine::{self, Place};
use async_trait::async_trait;
use bytes::Bytes;
use modelmeter_common::{Code, Problem, model::Dim};
use modelmeter_meter::{Caller, Ended, unary::frame_around};
use modelmeter_proto::inspector::{Command, Infer, MakeRequest, Open, Reply, Tensor, command, reply};
use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

const MAX_METHOD: usize = 512;

/// A running inspector. Ended when dropped.
pub(super) struct Child {
    name: String,
    subject: Subject,
    timed: bool,
    wants_data: OnceLock<bool>,
    method: OnceLock<String>,
    talk: Arc<Mutex<Talk>>,
    process: Arc<Kept>,
}

/// The conversation: one command after another, or several that are timed at once.
struct Talk {
    pipe: Pipe,
    timeout: Duration,
    last_id: u64,
    /// Why there is none any more.
    broken: Option<Broken>,
    process: Arc<Kept>,
}

#[derive(Clone, Debug)]
struct Broken {
    code: Code,
    /// What follows the inspector's name in a sentence.
    what: String,
    /// It closed its output: how it ended says more.
    ended: bool,
}

impl Talk {
    fn send(&mut self, what: command::What) -> Result<u64, Broken> {
        if let Some(broken) = &self.broken {
            return Err(broken.clone());
        }
        self.last_id += 1;
        let command = Command { id: self.last_id, what: Some(what) };
        self.pipe.push(&command).map_err(|flaw| self.end(flaw))?;
        Ok(self.last_id)
    }

    /// The next reply to whatever was asked.
    fn receive(&mut self, until: Instant) -> Result<Option<(u64, reply::What)>, Broken> {
        if let Some(broken) = &self.broken {
            return Err(broken.clone());
        }
        match self.pipe.pull(until).map_err(|flaw| self.end(flaw))? {
            None => Ok(None),
            Some(Reply { id, what: Some(what) }) if (1..=self.last_id).contains(&id) => Ok(Some((id, what))),
            Some(_) => Err(self.end(Flaw::Garbage("answered what was not asked".into()))),
        }
    }

    /// One command and its reply. Replies to calls that were given up may come before it.
    fn exchange(&mut self, name: &str, what: command::What) -> Result<reply::What, Broken> {
        let asked = self.send(what)?;
        let until = Instant::now() + self.timeout;
        loop {
            match self.receive(until)? {
                Some((id, what)) if id == asked => return Ok(what),
                Some(_) if Instant::now() < until => {}
                _ => {
                    let what = format!("did not answer {name} within {} s", self.timeout.as_secs_f64());
                    return Err(self.give_up(Broken { code: Code::DeadlineExceeded, what, ended: false }));
                }
            }
        }
    }

    fn end(&mut self, flaw: Flaw) -> Broken {
        self.give_up(match flaw {
            Flaw::Ended => Broken { code: Code::EngineFailed, what: "ended".into(), ended: true },
            Flaw::Garbage(what) => Broken { code: Code::BadResponse, what, ended: false },
        })
    }

    fn give_up(&mut self, broken: Broken) -> Broken {
        // One that closed its output may be about to say why, and with what status it ends.
        if !broken.ended {
            self.process.kill();
        }
        self.broken.get_or_insert(broken).clone()
    }
}

impl Child {
    /// Starts the program and tells it what is to be measured.
    ///
    /// # Errors
    /// `not_installed` if it is not there, and whatever it does wrong, with its last lines.
    pub async fn start(
        name: &str,
        program: &Program,
        subject: Subject,
        endpoint: &str,
        place: &Arc<Place>,
    ) -> Result<Self, Problem> {
        let failed = |e: std::io::Error| Problem::new(Code::Internal, format!("no pipe for inspector {name}: {e}"));
        let (pipe, stdin, stdout) = Pipe::new().map_err(failed)?;
        let command = engine::Command {
            what: format!("inspector {name}"),
            program: program.program.clone(),
            args: program.args.clone(),
            env: program.env.clone().into_iter().collect(),
            cores: None,
            inherit: place.lock.fds(),
            log: place.logs.join(format!("inspector-{name}-slot{}.log", place.index)),
            census: place.census.clone(),
            talk: Some((stdin, stdout)),
        };
        let process = Kept::start(command, place).await.map_err(|problem| {
            problem.with_field("inspector").with_hint("its command stands in modelmeter.toml, under [inspectors]")
        })?;
        let process = Arc::new(process);
        let talk = Talk { pipe, timeout: program.timeout, last_id: 0, broken: None, process: process.clone() };
        let child = Self {
            name: name.to_owned(),
            subject,
            timed: program.timed,
            wants_data: OnceLock::new(),
            method: OnceLock::new(),
            talk: Arc::new(Mutex::new(talk)),
            process,
        };
        let open = command::What::Open(child.open(endpoint));
        let opened = child.blocking(move |talk| talk.exchange("open", open)).await;
        match opened.map_err(|broken| child.problem(&broken)).and_then(|reply| child.opened(reply)) {
            Ok(()) => Ok(child),
            Err(problem) => Err(child.health().await.err().unwrap_or(problem)),
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Talk) -> Result<T, Broken> + Send + 'static,
    ) -> Result<T, Broken> {
        let talk = self.talk.clone();
        let worked = tokio::task::spawn_blocking(move || work(&mut lock(&talk))).await;
        worked.unwrap_or_else(|e| Err(Broken { code: Code::Internal, what: format!("was lost: {e}"), ended: false }))
    }

    fn open(&self, endpoint: &str) -> Open {
        let subject = &self.subject;
        let axis = |dim: &Dim| match dim {
            Dim::Fixed(n) => *n as i64,
            Dim::Dynamic(_) => -1,
        };
        let tensor = |name: &str, datatype: String, shape: Vec<i64>| Tensor { name: name.into(), datatype, shape };
        let input = subject.inputs.iter();
        let output = subject.outputs.iter();
        Open {
            endpoint: endpoint.to_owned(),
            model: subject.model.clone(),
            model_version: subject.version.clone(),
            inputs: input
                .map(|t| tensor(&t.name, t.dtype.to_string(), t.shape.iter().map(|&n| n as i64).collect()))
                .collect(),
            outputs: output.map(|t| tensor(&t.name, t.dtype.to_string(), t.shape.iter().map(axis).collect())).collect(),
            batch_size: subject.batch_size,
            seed: subject.seed,
            timed: self.timed,
        }
    }

    fn opened(&self, reply: reply::What) -> Result<(), Problem> {
        let reply::What::Opened(opened) = reply else { return Err(self.unexpected("open", reply)) };
        if self.subject.data.is_some() && !opened.wants_data {
            let message = format!("inspector '{}' brings its own test data", self.name);
            return Err(Problem::invalid("data", message).with_hint("leave --data out"));
        }
        self.wants_data.get_or_init(|| opened.wants_data);
        Ok(())
    }

    /// What it answered instead: its own words where it said that it failed.
    fn unexpected(&self, to: &str, reply: reply::What) -> Problem {
        let name = &self.name;
        match reply {
            reply::What::Failure(failure) => bad_response(format!("inspector {name}: {}", failure.message)),
            _ => bad_response(format!("inspector {name} gave the wrong kind of answer to {to}")),
        }
        .with_field("inspector")
    }

    fn problem(&self, broken: &Broken) -> Problem {
        Problem::new(broken.code, format!("inspector {} {}", self.name, broken.what)).with_field("inspector")
    }

    fn exchange(&self, name: &str, what: command::What) -> Result<reply::What, Problem> {
        lock(&self.talk).exchange(name, what).map_err(|broken| self.problem(&broken))
    }

    fn method_is(&self, method: String) -> Result<(), Problem> {
        let plain = method.len() <= MAX_METHOD && method.bytes().all(|b| b.is_ascii_graphic());
        let parts = method.strip_prefix('/').and_then(|rest| rest.split_once('/'));
        let well_formed = parts.is_some_and(|(service, name)| !service.is_empty() && !name.is_empty());
        let name = &self.name;
        if !plain || !well_formed {
            let message = format!("inspector {name} makes requests for '{}'", method.escape_debug());
            return Err(bad_response(message)
                .with_field("inspector")
                .with_hint("a method's full name, such as /inference.GRPCInferenceService/ModelInfer"));
        }
        let first = self.method.get_or_init(|| method.clone());
        if *first != method {
            let message = format!("inspector {name} makes requests for {first} and for {method}");
            return Err(bad_response(message).with_field("inspector").with_hint("one method is measured at a time"));
        }
        Ok(())
    }
}

fn lock(talk: &Mutex<Talk>) -> MutexGuard<'_, Talk> {
    talk.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Inspector for Child {
    fn data_preprocess(&self, nth: u64) -> Result<Vec<Bytes>, Problem> {
        match self.wants_data.get() {
            Some(true) => self.subject.contents(nth),
            _ => Ok(Vec::new()),
        }
    }

    fn make_request(&self, data: &[Bytes]) -> Result<Bytes, Problem> {
        let ask = command::What::MakeRequest(MakeRequest { contents: data.to_vec() });
        match self.exchange("make_request", ask)? {
            reply::What::Request(_) if self.timed => Ok(Bytes::new()),
            reply::What::Request(request) => {
                self.method_is(request.method)?;
                frame_around(&request.message)
            }
            other => Err(self.unexpected("make_request", other)),
        }
    }

    fn path(&self) -> &str {
        self.method.get().map_or("", String::as_str)
    }

    fn batch_size(&self) -> u32 {
        self.subject.batch_size
    }

    fn check(&self, message: &[u8]) -> Result<(), Problem> {
        let ask = command::What::Infer(Infer { response: Some(Bytes::copy_from_slice(message)) });
        match self.exchange("infer", ask)? {
            reply::What::Inferred(_) => Ok(()),
            other => Err(self.unexpected("infer", other)),
        }
    }

    fn caller(&self) -> Option<Box<dyn Caller>> {
        self.timed.then(|| Box::new(Calls { talk: self.talk.clone(), name: self.name.clone() }) as Box<dyn Caller>)
    }

    async fn health(&self) -> Result<(), Problem> {
        let Some(broken) = lock(&self.talk).broken.clone() else { return Ok(()) };
        let mut problem = self.problem(&broken);
        if broken.ended
            && let Some(how) = self.process.end().await
        {
            problem.message = format!("inspector {} {how} while it was needed", self.name);
        }
        Err(self.process.explain(problem).await)
    }
}

/// The timed calls that a child makes.
struct Calls {
    talk: Arc<Mutex<Talk>>,
    name: String,
}

impl Calls {
    fn words(&self, broken: &Broken) -> String {
        format!("inspector {} {}", self.name, broken.what)
    }
}

impl Caller for Calls {
    fn begin(&mut self) -> Result<u64, String> {
        let sent = lock(&self.talk).send(command::What::Infer(Infer { response: None }));
        sent.map_err(|broken| self.words(&broken))
    }

    fn next(&mut self, until: Instant) -> Result<Option<Ended>, String> {
        let received = lock(&self.talk).receive(until).map_err(|broken| self.words(&broken))?;
        Ok(received.map(|(id, what)| match what {
            reply::What::Inferred(_) => (id, Ok(())),
            reply::What::Failure(failure) => (id, Err(failure.message)),
            _ => (id, Err("gave the wrong kind of answer to infer".to_owned())),
        }))
    }
}

#[cfg(test)]
#[path = "child_tests.rs"]
mod tests;
