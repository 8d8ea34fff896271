//! The library: profile a model from a Rust program, in the shape that users of MLModelCI know.

use crate::{
    job::{self, Job},
    progress::Progress,
    report::{self, Format, View},
    run,
};
use modelmeter_common::{
    Problem, RequestId,
    config::{self, Config},
    profile::Profile,
    request::{Request, RequestState},
};
use modelmeter_worker::inspector::{Custom, Inspector, Subject};
use std::{collections::BTreeMap, fmt, ops::Deref, path::PathBuf, sync::Arc};
use tokio_util::sync::CancellationToken;

/// Profiles one model.
///
/// ```no_run
/// # async fn example() -> Result<(), modelmeter::Problem> {
/// let profiles = modelmeter::Profiler::new("mlp").server_name("rten").diagnose(&[1, 8], &["cpu"]).await?;
/// println!("{profiles}");
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Profiler {
    model: String,
    engines: Vec<String>,
    inspector: Option<String>,
    config: Config,
    edit: Vec<Edit>,
    inspectors: BTreeMap<String, Custom>,
    stop: CancellationToken,
    quiet: bool,
}

/// A change of the request that has no method of its own.
struct Edit(Box<dyn Fn(&mut Request) + Send + Sync>);

impl fmt::Debug for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Edit")
    }
}

impl Profiler {
    /// For a built-in reference model, a path to a model file, or `name[:version]` in the hub.
    pub fn new(model: impl Into<String>) -> Self {
        Self {
            model: model.into(),
            engines: Vec::new(),
            inspector: None,
            config: Config::default(),
            edit: Vec::new(),
            inspectors: BTreeMap::new(),
            stop: CancellationToken::new(),
            quiet: true,
        }
    }

    /// Serves it with this engine; repeated, with each of them. By default as `modelmeter profile` chooses.
    #[must_use]
    pub fn server_name(mut self, engine: impl Into<String>) -> Self {
        self.engines.push(engine.into());
        self
    }

    /// Makes its calls with this inspector instead of the engine's own.
    #[must_use]
    pub fn inspector(mut self, name: impl Into<String>) -> Self {
        self.inspector = Some(name.into());
        self
    }

    /// Makes its calls with an inspector of this program's own, under this name in the profiles. It is made for each
    /// cell of what is to be sent. In this process only: the workers of a coordinator have inspectors of their own.
    #[must_use]
    pub fn inspector_type<I: Inspector + 'static>(
        mut self,
        name: impl Into<String>,
        make: impl Fn(Subject) -> Result<I, Problem> + Send + Sync + 'static,
    ) -> Self {
        let name = name.into();
        let made = move |subject| make(subject).map(|made| Arc::new(made) as Arc<dyn Inspector>);
        self.inspectors.insert(name.clone(), Custom::Type(Arc::new(made)));
        self.inspector(name)
    }

    /// Keeps cache, journal and hub there instead of in the user's data directory.
    #[must_use]
    pub fn home(mut self, dir: impl Into<PathBuf>) -> Self {
        self.config.home = dir.into();
        self
    }

    /// Has the workers of this coordinator measure, instead of this process.
    #[must_use]
    pub fn coordinator(mut self, url: impl Into<String>) -> Self {
        self.config.client.coordinators.push(url.into());
        self
    }

    /// Replaces the whole configuration: that of the process's `modelmeter.toml` and environment is
    /// `config::load(&Sources::of_process(None, None))`.
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Changes anything else of the request, such as its load or when to stop.
    #[must_use]
    pub fn request(mut self, edit: impl Fn(&mut Request) + Send + Sync + 'static) -> Self {
        self.edit.push(Edit(Box::new(edit)));
        self
    }

    /// Stops early when this token is cancelled; what is measured by then is given.
    #[must_use]
    pub fn stop_with(mut self, stop: CancellationToken) -> Self {
        self.stop = stop;
        self
    }

    /// Shows its progress on standard error.
    #[must_use]
    pub fn show_progress(mut self) -> Self {
        self.quiet = false;
        self
    }

    /// Measures each batch size on each device (`cpu`, `gpu`, `all` or device classes). Empty: 1, 2, 4, 8 on the CPU.
    ///
    /// # Errors
    /// What is wrong with the input, before anything starts. Cells that fail are profiles with an error.
    pub async fn diagnose(&self, batch_sizes: &[u32], devices: &[&str]) -> Result<Profiles, Problem> {
        let mut config = self.config.clone();
        if config.home.as_os_str().is_empty() {
            config.home = config::load(&config::Sources::of_process(None, None))?.home;
        }
        let embedded = config.client.coordinators.is_empty();
        let target = job::named(Some(&self.model), Vec::new(), Vec::new())?;
        let mut request = Request { inspector: self.inspector.clone(), ..Request::default() };
        match &self.engines[..] {
            [] if embedded => job::quick_start(&mut request, &target),
            [] => {}
            engines => request.engines = engines.to_vec(),
        }
        if !devices.is_empty() {
            request.devices = devices.iter().map(ToString::to_string).collect();
        }
        if !batch_sizes.is_empty() {
            request.batch_sizes = batch_sizes.to_vec();
        }
        let mut job = Job::new(target, request, embedded)?;
        job.inspectors.clone_from(&self.inspectors);
        self.edit.iter().for_each(|edit| (edit.0)(&mut job.request));
        let finished = run::profile(&config, job, &mut Progress::new(self.quiet), &self.stop).await;
        let finished = finished.map_err(|failure| failure.problem)?;
        Ok(Profiles { request_id: finished.request_id, state: finished.state, profiles: finished.profiles })
    }
}

/// What was measured: one profile a cell. Shown, it is the table that `modelmeter profile` prints.
#[derive(Clone, PartialEq, Debug)]
pub struct Profiles {
    /// The request, under which the hub keeps them.
    pub request_id: RequestId,
    /// How it ended.
    pub state: RequestState,
    profiles: Vec<Profile>,
}

impl Deref for Profiles {
    type Target = [Profile];

    fn deref(&self) -> &[Profile] {
        &self.profiles
    }
}

impl fmt::Display for Profiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&report::render(&self.profiles, Format::Table, View::plain()))
    }
}
