//! Inspectors that the configuration defines.

use super::{Custom, Program};
use crate::configured::{check_name, command, positive};
use modelmeter_common::{
    Problem,
    config::{Config, CustomInspector, TimedIn},
    task::DEFAULT_INSPECTOR,
};
use std::collections::BTreeMap;

/// The inspectors of the configuration, by name.
///
/// # Errors
/// `invalid_argument`, naming the key.
pub fn configured(config: &Config) -> Result<BTreeMap<String, Custom>, Problem> {
    config.inspectors.iter().map(|(name, custom)| Ok((name.clone(), inspector(name, custom)?))).collect()
}

fn inspector(name: &str, custom: &CustomInspector) -> Result<Custom, Problem> {
    let field = format!("inspectors.{name}");
    check_name(name, &field)?;
    if name == DEFAULT_INSPECTOR {
        return Err(
            Problem::invalid(field, "'default' means the engine's own inspector").with_hint("choose another name")
        );
    }
    let (program, args) = command(&custom.command, &field)?;
    Ok(Custom::Program(Program {
        program,
        args,
        env: custom.env.clone(),
        timeout: positive(&custom.timeout, &format!("{field}.timeout"))?,
        timed: custom.timed_in == TimedIn::Child,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Config {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn an_inspector_is_a_command() {
        let found = configured(&read("[inspectors.mine]\ncommand = ['sh', 'x']\ntimed_in = 'child'")).unwrap();
        let Custom::Program(program) = &found["mine"] else { panic!("not a program") };
        assert!(program.timed && program.args == ["x"] && program.timeout.as_secs() == 60);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let inspector = |text: &str| configured(&read(text)).unwrap_err();
        assert!(inspector("[inspectors.default]\ncommand = ['sh']").message.contains("engine's own"));
        assert!(inspector("[inspectors.x]\ncommand = ['sh']\ntimeout = '0s'").message.contains("too short"));
        assert!(toml::from_str::<Config>("[inspectors.x]\ncommand = ['sh']\ntimed_in = 'rust'").is_err());
    }
}
