//! Why a command did not do what it was asked for, and the exit code that says so.

use modelmeter_common::Problem;

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub struct Failure {
    /// What stood in the way.
    pub problem: Problem,
    /// The request was taken in before: nobody can mend it by asking otherwise.
    pub begun: bool,
}

impl Failure {
    /// Something went wrong with a request that runs.
    pub fn later(problem: Problem) -> Self {
        Self { problem, begun: true }
    }

    /// As [`Code::exit_code`]; 2 only as long as nothing has begun.
    pub fn exit_code(&self) -> u8 {
        match self.problem.code.exit_code() {
            2 if self.begun => 1,
            code => code,
        }
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self { problem, begun: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupt::interrupted;
    use modelmeter_common::Code;

    #[test]
    fn bad_usage_is_what_was_found_before_anything_began() {
        let lost = || Problem::new(Code::Unreachable, "no coordinator answers");
        assert_eq!(Failure::from(lost()).exit_code(), 2);
        assert_eq!(Failure::later(lost()).exit_code(), 1);
        assert_eq!(Failure::later(interrupted()).exit_code(), 130);
    }
}
