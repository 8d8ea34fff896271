//! What a reader sees, kept as files beside this one: each case on three screens, plain and in colour, with `--detail`, and
//! as classic blocks. `INSTA_UPDATE=always cargo nextest run -p modelmeter snapshots` writes them anew.

use super::{Format, View, render, samples};
use modelmeter_common::profile::Profile;
use unicode_width::UnicodeWidthStr;

const WIDTHS: [usize; 3] = [80, 120, 200];

/// The same on each screen.
fn on_screens(profiles: &[Profile], format: Format, view: View) -> String {
    let one = |width: usize| {
        let text = render(profiles, format, View { width, ..view });
        // An escape is no character of a file that people read.
        format!("── {width} columns\n{}", text.replace('\u{1b}', "␛"))
    };
    WIDTHS.map(one).join("\n")
}

fn check(case: &str, profiles: &[Profile]) {
    let plain = View { plot: true, ..View::plain() };
    let text = on_screens(profiles, Format::Table, plain);
    for screen in text.split("── ").filter(|screen| !screen.is_empty()) {
        let width: usize = screen.split(' ').next().unwrap().parse().unwrap();
        let too_wide = screen.lines().find(|line| line.width() > width);
        assert_eq!(too_wide, None, "wider than its screen of {width}\n{screen}");
    }
    insta::assert_snapshot!(format!("{case}_screen"), text);
    insta::assert_snapshot!(
        format!("{case}_colour"),
        on_screens(profiles, Format::Table, View { colour: true, ..plain })
    );
    insta::assert_snapshot!(
        format!("{case}_detail"),
        on_screens(profiles, Format::Table, View { detail: true, points: true, ..View::plain() })
    );
    let coloured = |colour| on_screens(profiles, Format::Classic, View { colour, ..View::plain() });
    insta::assert_snapshot!(format!("{case}_classic"), coloured(false) + "\n" + &coloured(true));
}

#[test]
fn all_supported() {
    check("supported", &samples::engines());
}

#[test]
fn observed_only() {
    check("observed", &[samples::observed(4), samples::observed(8)]);
}

#[test]
fn invalid() {
    check("invalid", &[samples::cpu(1), samples::invalid(2)]);
}

#[test]
fn failed_and_cancelled() {
    check("failed", &[samples::cpu(1), samples::cancelled(2), samples::failed(4), samples::failed(8)]);
}

#[test]
fn an_sla_that_is_met_missed_and_open() {
    check("sla", &[samples::sla(1, Some(true)), samples::sla(2, None), samples::sla(4, Some(false))]);
}

#[test]
fn repeats() {
    check("repeats", &[samples::repeats(1), samples::repeats(2)]);
}

#[test]
fn gpus() {
    check("gpu", &[samples::gpu(1, 1), samples::gpu(1, 2)]);
}

#[test]
fn streams_of_warnings() {
    check("warnings", &samples::streams_of_warnings());
}
