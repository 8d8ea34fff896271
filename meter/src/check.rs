//! Checks of answers. The meter's user, who knows what the calls contain, brings them.

use modelmeter_common::Problem;

/// Checks answers to the calls of a [`Target`](crate::Target). The meter asks it about a sample of them, on threads that do
/// not measure.
pub trait Check: Send + Sync {
    /// Checks an answer's message (without gRPC's prefix) wholly. Differences from what the server declared are remarks.
    ///
    /// # Errors
    /// The message cannot be an answer to the call.
    fn examine(&self, message: &[u8]) -> Result<Vec<Remark>, Problem>;
}

/// Takes every answer for right: for users who only want times.
impl Check for () {
    fn examine(&self, _: &[u8]) -> Result<Vec<Remark>, Problem> {
        Ok(Vec::new())
    }
}

/// A difference between an answer and what the server declared, which does not change how fast the answer came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Remark {
    /// For programs: the code of the warning that the remark becomes.
    pub code: &'static str,
    /// The output that the remark is about.
    pub output: String,
    /// For people: what was declared and what came.
    pub message: String,
}

impl Remark {
    /// Adds this remark to others, unless one with the same code and output is among them.
    pub fn add_to(&self, remarks: &mut Vec<Self>) {
        if !remarks.iter().any(|known| (known.code, &known.output) == (self.code, &self.output)) {
            remarks.push(self.clone());
        }
    }
}
