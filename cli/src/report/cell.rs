//! A cell as reports see it: what it is called among its neighbours, and the load points that its figures come from.

use super::{
    number::{Shown, number, shown},
    shapes::{settings_text, shapes, shapes_differ},
};
use modelmeter_common::{
    Code,
    model::TensorShape,
    profile::{Latency, Profile, ProfileLoad, ProfilePoint, ProfileState},
    stats::Figure,
};
use std::collections::BTreeSet;

/// The cells of one table, and what tells them apart besides engine and batch size.
pub struct Group<'a> {
    pub cells: Vec<Cell<'a>>,
    pub settings: bool,
    pub devices: bool,
    pub inputs: bool,
}

/// One cell of a group.
pub struct Cell<'a> {
    pub profile: &'a Profile,
    /// What tells it from the others of its group: `rten batch 4`.
    pub name: String,
}

impl<'a> Group<'a> {
    /// The profiles of one request and model, in the order of a table.
    pub fn new(mut profiles: Vec<&'a Profile>) -> Self {
        profiles.sort_by_cached_key(|p| {
            let settings = settings_text(&p.engine.settings);
            (p.engine.name.clone(), settings, p.device.class.clone(), shapes(&p.inputs), p.batch_size)
        });
        let many = |of: &dyn Fn(&Profile) -> String| profiles.iter().map(|p| of(p)).collect::<BTreeSet<_>>().len() > 1;
        let mut group = Self {
            settings: many(&|p| settings_text(&p.engine.settings)),
            devices: many(&|p| p.device.class.clone()),
            inputs: shapes_differ(profiles.iter().map(|p| p.inputs.as_slice())),
            cells: Vec::new(),
        };
        let common = if group.inputs { common(&profiles) } else { Default::default() };
        group.cells = profiles.iter().map(|p| Cell { profile: p, name: group.name(p, &common) }).collect();
        group
    }

    fn name(&self, p: &Profile, common: &BTreeSet<String>) -> String {
        format!("{} batch {}", self.deployment(p, common), p.batch_size)
    }

    fn deployment(&self, p: &Profile, common: &BTreeSet<String>) -> String {
        let mut name = p.engine.name.clone();
        let settings = settings_text(&p.engine.settings);
        if self.settings && !settings.is_empty() {
            name += &format!(" ({settings})");
        }
        if self.devices {
            name += &format!(" {}", p.device.class);
        }
        if self.inputs {
            name += &format!(" {}", differing(&p.inputs, common));
        }
        name
    }

    /// The inputs in which this cell differs from others of the group.
    pub fn input(&self, p: &Profile) -> String {
        let profiles: Vec<&Profile> = self.cells.iter().map(|cell| cell.profile).collect();
        differing(&p.inputs, &common(&profiles))
    }
}

/// The inputs that are the same in all of them.
fn common(profiles: &[&Profile]) -> BTreeSet<String> {
    let of = |p: &&Profile| p.inputs.iter().map(one).collect::<BTreeSet<_>>();
    profiles.iter().map(of).reduce(|a, b| a.intersection(&b).cloned().collect()).unwrap_or_default()
}

fn differing(inputs: &[TensorShape], common: &BTreeSet<String>) -> String {
    inputs.iter().map(one).filter(|input| !common.contains(input)).collect::<Vec<_>>().join(" ")
}

/// `x [N, 128]`.
fn one(input: &TensorShape) -> String {
    let axes: Vec<String> = input.shape.iter().skip(1).map(u64::to_string).collect();
    format!("{} [{}]", input.name, std::iter::once("N".to_owned()).chain(axes).collect::<Vec<_>>().join(", "))
}

impl<'a> Cell<'a> {
    /// The point of its latencies: the reference, or the first point where no reference stands.
    pub fn reference(&self) -> Option<&'a ProfilePoint> {
        let p = self.profile;
        p.reference.as_ref().and_then(|reference| point_of(p, reference.load)).or(p.points.first())
    }

    /// The point of its throughput: the peak, or the fastest point where no peak stands.
    pub fn peak(&self) -> Option<&'a ProfilePoint> {
        let p = self.profile;
        let rate = |point: &ProfilePoint| point.throughput_inferences_per_s.map_or(0.0, |rate| rate.value);
        let fastest = || p.points.iter().max_by(|a, b| rate(a).total_cmp(&rate(b)));
        p.peak.as_ref().and_then(|peak| point_of(p, peak.summary.load)).or_else(fastest)
    }

    /// Inferences a second at its peak.
    pub fn throughput(&self) -> Option<Shown> {
        let point = self.peak()?;
        shown(point.throughput_inferences_per_s, point.valid)
    }

    /// A percentile of its reference.
    pub fn latency(&self, of: fn(&Latency) -> Option<Figure>) -> Option<Shown> {
        let point = self.reference()?;
        shown(of(&point.latency_ms), point.valid)
    }

    /// How it ended, where not every repeat of it was measured.
    pub fn state(&self) -> &'static str {
        state(self.profile)
    }

    /// Whether other cells have the same engine, settings, device and inputs.
    pub fn is_deployed_as(&self, other: &Self) -> bool {
        let key = |p: &Profile| {
            (p.engine.name.clone(), settings_text(&p.engine.settings), p.device.class.clone(), shapes(&p.inputs))
        };
        key(self.profile) == key(other.profile)
    }
}

/// How a cell ended; nothing where all of it was measured.
pub fn state(p: &Profile) -> &'static str {
    match (p.state, p.error.as_ref().map(|error| error.code)) {
        (ProfileState::Done, _) => "",
        (_, Some(Code::Cancelled)) => "cancelled",
        (ProfileState::Failed, _) => "failed",
        (ProfileState::Invalid, _) => "invalid",
        (ProfileState::Partial, _) => "partial",
    }
}

/// The point of this load.
pub fn point_of(p: &Profile, load: ProfileLoad) -> Option<&ProfilePoint> {
    p.points.iter().find(|point| point.load == load)
}

/// `4 in flight`, `200 calls/s`.
pub fn load(load: ProfileLoad) -> String {
    match load {
        ProfileLoad::Closed { concurrency } => format!("{concurrency} in flight"),
        ProfileLoad::Open { rate_per_s, .. } => format!("{} calls/s", number(rate_per_s)),
    }
}
