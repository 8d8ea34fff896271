//! The custom inspectors of a worker, by name: Rust types, and programs of its configuration. A task only names one.

use super::{Inspector, Subject, child, program::Program};
use crate::engine::Place;
use modelmeter_common::{Code, Problem, error::did_you_mean, load::Load, task::DEFAULT_INSPECTOR};
use std::{collections::BTreeMap, fmt, sync::Arc};

/// Makes the inspector of one cell: what is to be sent is told, the requests and checks are its own.
pub type Maker = Arc<dyn Fn(Subject) -> Result<Arc<dyn Inspector>, Problem> + Send + Sync>;

/// A custom inspector.
#[derive(Clone)]
pub enum Custom {
    /// A type of this program.
    Type(Maker),
    /// A program in any language, started for each cell; it speaks `proto/inspector.proto`.
    Program(Program),
}

impl fmt::Debug for Custom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Type(_) => f.write_str("Type"),
            Self::Program(program) => program.fmt(f),
        }
    }
}

impl Custom {
    pub(crate) async fn make(
        &self,
        name: &str,
        subject: Subject,
        endpoint: &str,
        place: &Arc<Place>,
    ) -> Result<Arc<dyn Inspector>, Problem> {
        match self {
            Self::Type(maker) => maker(subject),
            Self::Program(program) => Ok(Arc::new(child::Child::start(name, program, subject, endpoint, place).await?)),
        }
    }
}

/// The custom inspector of this name; none for the engine's own.
///
/// # Errors
/// `invalid_argument` for a name that is not among these, or a load that the inspector cannot put on.
pub fn find<'a>(
    name: &str,
    load: &Load,
    inspectors: &'a BTreeMap<String, Custom>,
) -> Result<Option<&'a Custom>, Problem> {
    let Some(found) = inspectors.get(name) else {
        if name == DEFAULT_INSPECTOR {
            return Ok(None);
        }
        let known = || inspectors.keys().map(String::as_str).chain([DEFAULT_INSPECTOR]);
        let meant = did_you_mean(name, known());
        let known = known().collect::<Vec<_>>().join(", ");
        return Err(Problem::invalid("inspector", format!("unknown inspector '{name}'")).with_hint(format!(
            "{meant}the inspectors here are {known}; others are named under [inspectors] in modelmeter.toml"
        )));
    };
    match (found, load) {
        (Custom::Program(Program { timed: true, .. }), Load::Open { .. } | Load::SlaSearch { .. }) => {
            Err(Problem::new(Code::InvalidArgument, format!("inspector '{name}' makes the timed calls itself"))
                .with_field("load")
                .with_hint("use a closed load (--concurrency), or set its timed_in to \"modelmeter\""))
        }
        _ => Ok(Some(found)),
    }
}
