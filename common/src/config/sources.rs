//! Where the configuration is read from, and how file and environment are merged.

use super::{Config, duration, environment};
use crate::Problem;
use std::{
    collections::BTreeMap,
    io::ErrorKind,
    path::{Path, PathBuf},
};
use toml::{Table, Value};

/// The name of the file.
pub const FILE: &str = "modelmeter.toml";

/// What the configuration is read from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// A file that the user named: it must be there.
    pub file: Option<PathBuf>,
    /// The home that the user named by flag.
    pub home: Option<PathBuf>,
    /// Where `modelmeter.toml` is looked for first.
    pub cwd: PathBuf,
    /// The environment.
    pub env: BTreeMap<String, String>,
}

impl Sources {
    /// This process's own.
    pub fn of_process(file: Option<PathBuf>, home: Option<PathBuf>) -> Self {
        let env =
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect();
        Self { file, home, cwd: std::env::current_dir().unwrap_or_default(), env }
    }

    /// The home: flag, environment, or the user's data directory.
    fn home(&self) -> Option<PathBuf> {
        let var = |name: &str| self.env.get(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        self.home
            .clone()
            .or_else(|| var("MODELMETER_HOME"))
            .or_else(|| var("XDG_DATA_HOME").map(|dir| dir.join("modelmeter")))
            .or_else(|| var("HOME").map(|dir| dir.join(".local/share/modelmeter")))
    }

    /// The file to read: the one named, else the one here, else the one at home.
    fn find(&self) -> Result<Option<(PathBuf, String)>, Problem> {
        let named = self.file.clone().or_else(|| self.env.get("MODELMETER_CONFIG").map(PathBuf::from));
        let candidates = match &named {
            Some(path) => vec![path.clone()],
            None => std::iter::once(self.cwd.clone()).chain(self.home()).map(|dir| dir.join(FILE)).collect(),
        };
        for path in candidates {
            match std::fs::read_to_string(&path) {
                Ok(text) => return Ok(Some((path, text))),
                Err(e) if named.is_none() && matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
                Err(e) => return Err(Problem::invalid("config", format!("cannot read {}: {e}", path.display()))),
            }
        }
        Ok(None)
    }
}

/// Merges defaults, file and environment. Errors name the key and the file or variable that it stands in.
pub fn load(sources: &Sources) -> Result<Config, Problem> {
    let (mut table, origin) = match sources.find()? {
        Some((path, text)) => (parse(&path, &text)?, format!("{} and the environment", path.display())),
        None => (Table::new(), "the environment".to_owned()),
    };
    environment::apply(&sources.env, &mut table)?;
    let mut config: Config = Value::Table(table)
        .try_into()
        .map_err(|e: toml::de::Error| Problem::invalid("config", format!("{} (from {origin})", e.message())))?;
    if let Some(home) = &sources.home {
        config.home.clone_from(home);
    }
    if config.home.as_os_str().is_empty() {
        config.home = sources.home().ok_or_else(|| {
            Problem::invalid("home", "there is no home directory to keep results in")
                .with_hint("name one with --home DIR")
        })?;
    }
    for (field, text) in
        [("coordinator.lease", &config.coordinator.lease), ("engine.ready_timeout", &config.engine.ready_timeout)]
    {
        duration(text).map_err(|e| Problem { field: Some(field.into()), ..e })?;
    }
    Ok(config)
}

/// Reads a file alone, so that an unknown key is told with its file and line.
fn parse(path: &Path, text: &str) -> Result<Table, Problem> {
    let wrong = |e: &toml::de::Error| {
        let line = e.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        Problem::invalid("config", format!("{}, line {line}: {}", path.display(), e.message().trim()))
    };
    toml::from_str::<Config>(text).map_err(|e| wrong(&e))?;
    toml::from_str::<Table>(text).map_err(|e| wrong(&e))
}
