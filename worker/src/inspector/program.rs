//! A custom inspector that is a program, as the configuration has it.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

/// How a custom inspector that is a program is run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Program {
    /// The executable: a path, or a name on PATH.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Set besides the worker's own environment.
    pub env: BTreeMap<String, String>,
    /// Each of its answers may take this long.
    pub timeout: Duration,
    /// Whether its own calls are what is timed.
    pub timed: bool,
}
