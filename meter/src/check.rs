//! What the meter asks of whoever knows what calls carry: whether an answer is right, and, where they make the calls
//! themselves, to make them.

use crate::Caller;
use modelmeter_common::Problem;

/// Knows what the calls of a [`Target`](crate::Target) carry. The meter asks it about a sample of the answers, on threads
/// that do not measure.
pub trait Check: Send + Sync {
    /// Checks an answer's message (without gRPC's prefix) wholly: differences from what the server declared are remarks.
    ///
    /// # Errors
    /// The message cannot be an answer to the call.
    fn examine(&self, message: &[u8]) -> Result<Vec<Remark>, Problem>;

    /// Makes the calls itself, for the meter to pace and time; none where the meter sends them.
    fn caller(&self) -> Option<Box<dyn Caller>> {
        None
    }
}

/// Takes every answer for right: for those who only want times.
impl Check for () {
    fn examine(&self, _: &[u8]) -> Result<Vec<Remark>, Problem> {
        Ok(Vec::new())
    }
}

/// A difference between an answer and what the server declared, which does not change how fast it came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Remark {
    /// For programs: the code of the warning that it becomes.
    pub code: &'static str,
    /// The output that it is about.
    pub output: String,
    /// For people: what was declared and what came.
    pub message: String,
}

impl Remark {
    /// Adds it to others, unless the like of it is among them.
    pub fn add_to(&self, remarks: &mut Vec<Self>) {
        if !remarks.iter().any(|known| (known.code, &known.output) == (self.code, &self.output)) {
            remarks.push(self.clone());
        }
    }
}
