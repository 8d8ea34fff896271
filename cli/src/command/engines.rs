//! `engines`: what can run here, and what the rest needs.

use super::{Context, print};
use crate::{
    report::{self, Align, Table},
    servers::discovery,
};
use modelmeter_common::Problem;
use modelmeter_worker::{docker_version, engine::discover::Found, sample::devices};

pub(super) fn run(context: &Context) -> Result<u8, Problem> {
    let found = discovery(&context.config).survey();
    if context.json {
        print(&report::json(&found))?;
        return Ok(0);
    }
    let mut text = table(&found);
    let (devices, no_gpus) = devices();
    let names: Vec<String> = devices.iter().map(|device| format!("{} ({})", device.class, device.name)).collect();
    text += &format!("\ndevices: {}\n", names.join(", "));
    if let Some(why) = no_gpus {
        text += &format!("no GPUs: {why}\n");
    }
    text += &match docker_version() {
        Ok(version) => format!("containers: Docker {version} runs engines from images\n"),
        Err(problem) => format!("no containers: {}\n", problem.message),
    };
    print(&text)?;
    Ok(0)
}

fn table(found: &[Found]) -> String {
    let mut table = Table::default()
        .column("engine", Align::Left)
        .column("runs here", Align::Left)
        .column("version", Align::Left)
        .column("loads", Align::Left)
        .column("what it is", Align::Left);
    for engine in found {
        table.row(vec![
            engine.name.clone(),
            match (engine.available, engine.launch) {
                (true, "docker") => "in a container",
                (true, _) => "yes",
                (false, _) => "no",
            }
            .into(),
            engine.version.clone().unwrap_or_default(),
            engine.formats.join(", "),
            engine.title.into(),
        ]);
    }
    let mut text = table.to_string() + "\n";
    for engine in found {
        match (&engine.location, &engine.reason) {
            (Some(at), None) => text += &format!("{}: {}\n", engine.name, at.display()),
            (_, Some(reason)) => {
                text += &format!("{}: {reason}\n", engine.name);
                if let Some(hint) = &engine.hint {
                    text += &format!("  hint: {hint}\n");
                }
            }
            (None, None) => {}
        }
    }
    text
}
