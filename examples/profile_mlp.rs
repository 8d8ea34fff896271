//! Profile a model from a Rust program: `cargo run --release -p modelmeter --example profile_mlp`.
//!
//! The built-in engines are processes of the `modelmeter` binary, so build that first: `cargo build --release`.

use modelmeter::{Problem, Profiler, profile::ProfileState};

#[tokio::main]
async fn main() -> Result<(), Problem> {
    let profiles = Profiler::new("mlp")
        .server_name("rten")
        .request(|request| request.budget_ms = Some(20_000))
        .show_progress()
        .diagnose(&[1, 8], &["cpu"])
        .await?;
    println!("{profiles}");

    let measured = profiles.iter().filter(|profile| profile.state == ProfileState::Done);
    for (batch_size, peak) in measured.filter_map(|profile| Some((profile.batch_size, profile.peak.as_ref()?))) {
        println!(
            "batch size {batch_size}: {:.0} inferences a second",
            peak.summary.throughput_inferences_per_s.unwrap_or(0.0)
        );
    }
    Ok(())
}
