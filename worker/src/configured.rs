//! What the engines and inspectors of a configuration have in common: a name, a command, a time-out.

use modelmeter_common::{Code, Problem, config, program::on_path};
use std::path::{Path, PathBuf};

/// The longest name of an engine or inspector.
const MAX_NAME: usize = 64;

/// Checks that an engine or inspector may have this name.
///
/// # Errors
/// `invalid_argument`, naming the field.
pub(crate) fn check_name(name: &str, field: &str) -> Result<(), Problem> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(allowed) {
        return Err(Problem::invalid(field, format!("'{name}' cannot be a name"))
            .with_hint(format!("use 1 to {MAX_NAME} letters, digits, dots, hyphens and underscores")));
    }
    Ok(())
}

/// Splits a command into its program, which must be there, and its arguments.
///
/// # Errors
/// `invalid_argument` for an empty one; `not_installed` for a program that is not there.
pub(crate) fn command(words: &[String], field: &str) -> Result<(PathBuf, Vec<String>), Problem> {
    let field = format!("{field}.command");
    let (program, args) = words.split_first().ok_or_else(|| {
        Problem::invalid(field.clone(), "is empty")
            .with_hint("give a program and its arguments, as [\"python3\", \"server.py\"]")
    })?;
    let program = PathBuf::from(program);
    if !is_there(&program) {
        let message = format!("program '{}' was not found", program.display());
        return Err(Problem::new(Code::NotInstalled, message)
            .with_field(field)
            .with_hint("give a program on PATH, or its path relative to where modelmeter is started"));
    }
    Ok((program, args.to_vec()))
}

/// Whether a program is at this path or, as a bare name, on PATH.
fn is_there(program: &Path) -> bool {
    if program.components().count() > 1 { program.is_file() } else { on_path(program).is_some() }
}

/// Reads a duration above zero.
///
/// # Errors
/// `invalid_argument`, naming the field.
pub(crate) fn positive(text: &str, field: &str) -> Result<std::time::Duration, Problem> {
    match config::duration(text).map_err(|problem| problem.with_field(field))? {
        zero if zero.is_zero() => Err(Problem::invalid(field, "0 is too short").with_hint("for example 60s")),
        duration => Ok(duration),
    }
}
