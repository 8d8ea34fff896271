//! Pools, purely: slots with equal abilities share one queue. Never a queue per device × engine: prefetch is
//! per consumer, and a slot would hoard.

use crate::hub::TaskKind;
use modelmeter_common::{
    Code, PoolId, Problem,
    device::{CPU_CLASS, Selector},
    model::Format,
    status::{Abilities, SlotDoc, WorkerDoc},
    task::{Cell, DEFAULT_INSPECTOR},
    wire::sha256_hex,
};
use std::collections::BTreeMap;

/// Hint where a slot is missing and no worker gave a reason.
const HINT: &str =
    "`modelmeter engines` says what a machine can run; `modelmeter workers` lists a coordinator's workers";

/// Slots with equal abilities.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pool {
    /// Device class, a dot, and the start of the hash of its engines: also the end of its queue's name.
    pub id: PoolId,
    /// The device class of its slots.
    pub class: String,
    /// The engines that each of its slots can run, sorted.
    pub engines: Vec<String>,
    /// Other abilities of the slots. The reasons for missing engines are those of one slot.
    pub abilities: Abilities,
    /// Number of slots.
    pub slots: u32,
}

/// An engine with what it loads on a class of devices: what a slot has to offer.
#[derive(Clone, Copy, Debug)]
pub struct Offer<'a> {
    /// The engine.
    pub engine: &'a str,
    /// The format of what it loads; none: nothing, or it does not matter.
    pub format: Option<Format>,
    /// The device class.
    pub device_class: &'a str,
}

impl<'a> Offer<'a> {
    /// What this cell needs.
    fn of(cell: &'a Cell) -> Self {
        let format = cell.artifact.as_ref().map(|artifact| artifact.format);
        Self { engine: &cell.engine, format, device_class: &cell.device_class }
    }

    /// The same offer of any format.
    fn of_any_format(self) -> Self {
        Self { format: None, ..self }
    }
}

/// Tasks that the same slots can run.
#[derive(Clone, Copy, Debug)]
pub struct Kind<'a> {
    /// The engine.
    pub engine: &'a str,
    /// The format of what it loads, if it loads something.
    pub format: Option<Format>,
    /// The device class.
    pub device_class: &'a str,
    /// The inspector.
    pub inspector: &'a str,
    /// How many tasks.
    pub tasks: u64,
}

impl<'a> Kind<'a> {
    /// So many tasks of this cell.
    pub fn of(cell: &'a Cell, tasks: u64) -> Self {
        Self {
            engine: &cell.engine,
            format: cell.artifact.as_ref().map(|artifact| artifact.format),
            device_class: &cell.device_class,
            inspector: &cell.inspector,
            tasks,
        }
    }
}

impl Pool {
    /// The pool of one slot.
    pub fn of(class: &str, mut engines: Vec<String>, abilities: Abilities) -> Self {
        engines.sort();
        let id = format!("{class}.{}", &sha256_hex(what_counts(&engines, &abilities).as_bytes())[..8]).into();
        Self { id, class: class.to_owned(), engines, abilities, slots: 1 }
    }

    /// Whether a slot of it can run the cell.
    pub fn fits(&self, cell: &Cell) -> bool {
        self.runs(&Kind::of(cell, 1))
    }

    /// Those of these kinds that a slot of it can run, as the hub is asked for their tasks. Where a request does not say what
    /// format an engine loads, it may be any that the pool loads.
    pub fn takes<'a>(&self, kinds: impl IntoIterator<Item = Kind<'a>>) -> Vec<TaskKind> {
        let formats = |kind: &Kind<'_>| match kind.format {
            Some(format) => vec![Some(format)],
            None => Format::ALL.into_iter().map(Some).chain([None]).collect(),
        };
        let all =
            kinds.into_iter().flat_map(|kind| formats(&kind).into_iter().map(move |format| Kind { format, ..kind }));
        let owned = |kind: Kind<'_>| TaskKind {
            engine: kind.engine.to_owned(),
            format: kind.format,
            device_class: kind.device_class.to_owned(),
            inspector: kind.inspector.to_owned(),
        };
        all.filter(|kind| self.runs(kind)).map(owned).collect()
    }

    /// Whether a slot of it can run such tasks.
    pub(super) fn runs(&self, kind: &Kind<'_>) -> bool {
        let Kind { engine, format, device_class, .. } = *kind;
        self.offers(Offer { engine, format, device_class }) && self.has_inspector(kind.inspector)
    }

    /// Whether it has an inspector of this name; each has the engines' own.
    pub fn has_inspector(&self, name: &str) -> bool {
        name == DEFAULT_INSPECTOR || self.abilities.inspectors.contains(name)
    }

    /// Whether it has the engine on such a device, and that loads the format.
    fn offers(&self, Offer { engine, format, device_class }: Offer<'_>) -> bool {
        let formats = self.abilities.formats.get(engine).filter(|formats| !formats.is_empty());
        Selector::from(device_class).takes(&self.class)
            && self.engines.iter().any(|offered| offered == engine)
            && format.is_none_or(|format| formats.is_none_or(|all| all.contains(&format)))
    }
}

impl From<&SlotDoc> for Pool {
    fn from(slot: &SlotDoc) -> Self {
        Self { id: slot.pool.clone(), ..Self::of(&slot.device.class, slot.engines.clone(), slot.abilities.clone()) }
    }
}

/// Abilities that slots of one pool have in common: `onnx=onnx,rten=onnx,inspector photos`.
fn what_counts(engines: &[String], abilities: &Abilities) -> String {
    let one = |engine: &String| match abilities.formats.get(engine) {
        Some(formats) => {
            let formats: Vec<&str> = formats.iter().map(|format| format.as_str()).collect();
            format!("{engine}={}", formats.join("+"))
        }
        None => engine.clone(),
    };
    let inspectors = abilities.inspectors.iter().map(|name| format!("inspector {name}"));
    engines.iter().map(one).chain(inspectors).collect::<Vec<_>>().join(",")
}

/// The pools that these workers form, in the order of their ids.
pub fn pools(workers: &[WorkerDoc]) -> Vec<Pool> {
    gathered(workers.iter().flat_map(|worker| &worker.slots).map(Pool::from))
}

/// Pools of single slots as the pools that they form, in the order of their ids.
pub fn gathered(slots: impl IntoIterator<Item = Pool>) -> Vec<Pool> {
    let mut pools: BTreeMap<PoolId, Pool> = BTreeMap::new();
    for slot in slots {
        pools.entry(slot.id.clone()).and_modify(|pool| pool.slots += slot.slots).or_insert(slot);
    }
    pools.into_values().collect()
}

/// Whether some slot has the engine on such a device, and that loads the format.
pub fn is_offered(offer: Offer<'_>, pools: &[Pool]) -> bool {
    pools.iter().any(|pool| pool.offers(offer))
}

/// Whether some slot takes from the queue of this pool.
pub fn is_there(id: &PoolId, pools: &[Pool]) -> bool {
    pools.iter().any(|pool| pool.id == *id)
}

/// The reason why no pool can run this cell, with what to do; none if a pool can.
pub fn why_not(cell: &Cell, pools: &[Pool]) -> Option<Problem> {
    if pools.iter().any(|pool| pool.fits(cell)) {
        return None;
    }
    let Cell { engine, device_class, artifact, inspector, .. } = cell;
    let offer = Offer::of(cell);
    if !is_offered(offer.of_any_format(), pools) {
        return Some(missing(offer, pools));
    }
    let message = match artifact {
        Some(artifact) if !is_offered(offer, pools) => {
            format!("no slot's engine '{engine}' loads {}", artifact.format)
        }
        _ => format!("no slot with engine '{engine}' on device '{device_class}' has inspector '{inspector}'"),
    };
    Some(Problem::new(Code::NoWorker, message).with_hint(HINT))
}

/// The error where no pool offers this engine on this device class, in any format.
pub fn missing(offer: Offer<'_>, pools: &[Pool]) -> Problem {
    let Offer { engine, device_class, .. } = offer;
    let what = if pools.is_empty() {
        "no worker is connected".to_owned()
    } else if !pools.iter().any(|pool| Selector::from(device_class).takes(&pool.class)) {
        format!("no slot has device '{device_class}'")
    } else {
        format!("no slot offers engine '{engine}' on device '{device_class}'")
    };
    let reason = reason(offer, pools);
    let message = reason.map_or_else(|| what.clone(), |reason| format!("{what}: {}", reason.message));
    let hint = reason.and_then(|reason| reason.hint.as_deref()).unwrap_or(HINT);
    Problem::new(Code::NoWorker, message).with_hint(hint)
}

/// The reason that a machine gave: one with such a device for a missing engine, any machine for GPUs that none has.
pub fn reason<'a>(Offer { engine, device_class, .. }: Offer<'_>, pools: &'a [Pool]) -> Option<&'a Problem> {
    let mut on_device = pools.iter().filter(|pool| Selector::from(device_class).takes(&pool.class)).peekable();
    if on_device.peek().is_some() {
        return on_device.find_map(|pool| pool.abilities.lacking.get(engine));
    }
    let no_gpus = device_class != CPU_CLASS && pools.iter().all(|pool| pool.class == CPU_CLASS);
    pools.iter().find_map(|pool| pool.abilities.no_gpu.as_ref()).filter(|_| no_gpus)
}

#[cfg(test)]
mod tests {
    use super::*;
    use modelmeter_common::model::ArtifactRef;
    use modelmeter_tests::documents;

    fn pool(class: &str, engines: &[&str]) -> Pool {
        Pool::of(class, engines.iter().map(ToString::to_string).collect(), Abilities::default())
    }

    fn loading(engine: &str, formats: &[Format]) -> Pool {
        let abilities = Abilities { formats: [(engine.to_owned(), formats.to_vec())].into(), ..Abilities::default() };
        Pool::of("cpu", vec![engine.into()], abilities)
    }

    fn cell(engine: &str, device_class: &str, format: Format) -> Cell {
        let artifact = ArtifactRef { format, ..documents::cell(1).artifact.unwrap() };
        let (engine, device_class) = (engine.into(), device_class.into());
        Cell { engine, device_class, artifact: Some(artifact), ..documents::cell(1) }
    }

    #[test]
    fn a_pool_is_what_its_slots_can_do_whatever_the_order() {
        assert_eq!(pool("cpu", &["onnx", "rten"]), pool("cpu", &["rten", "onnx"]));
        assert_ne!(pool("cpu", &["onnx", "rten"]).id, pool("cpu", &["onnx"]).id);
        assert_ne!(loading("mine", &[Format::Onnx]).id, loading("mine", &[Format::Triton]).id);
        let two = gathered([pool("cpu", &["onnx"]), pool("cpu", &["rten"]), pool("cpu", &["onnx"])]);
        assert_eq!(two.iter().map(|pool| pool.slots).sum::<u32>(), 3);
        assert_eq!(two.len(), 2);
    }

    #[test]
    fn an_engine_runs_what_it_loads() {
        let pools = [loading("mine", &[Format::Torchscript])];
        assert_eq!(why_not(&cell("mine", "cpu", Format::Torchscript), &pools), None);
        let wrong = why_not(&cell("mine", "cpu", Format::Onnx), &pools).unwrap();
        assert!(wrong.message.contains("engine 'mine' loads onnx"), "{wrong}");
        let silent = [pool("cpu", &["mine"])];
        assert_eq!(why_not(&cell("mine", "cpu", Format::Onnx), &silent), None, "it may say so when it is tried");
    }

    #[test]
    fn a_pool_takes_the_kinds_that_it_runs() {
        let kind =
            |engine: &'static str, format| Kind { engine, format, device_class: "cpu", inspector: "default", tasks: 1 };
        let onnx = loading("mine", &[Format::Onnx]);
        let formats = |pool: &Pool, kinds: &[Kind<'static>]| -> Vec<Option<Format>> {
            pool.takes(kinds.iter().copied()).into_iter().map(|kind| kind.format).collect()
        };
        assert_eq!(formats(&onnx, &[kind("mine", Some(Format::Onnx)), kind("other", None)]), [Some(Format::Onnx)]);
        assert_eq!(formats(&onnx, &[kind("mine", Some(Format::Triton))]), []);
        assert_eq!(formats(&onnx, &[kind("mine", None)]), [Some(Format::Onnx), None], "it is not known which");
        assert_eq!(formats(&pool("cpu", &["mine"]), &[kind("mine", None)]).len(), Format::ALL.len() + 1);
    }

    #[test]
    fn an_inspector_is_run_where_it_is() {
        let with = |names: &[&str]| {
            let inspectors = names.iter().map(ToString::to_string).collect();
            Pool::of("cpu", vec!["rten".into()], Abilities { inspectors, ..Abilities::default() })
        };
        let (plain, other) = (with(&[]), with(&["photos"]));
        assert_ne!(plain.id, other.id);
        let cell = Cell { inspector: "photos".into(), ..cell("rten", "cpu", Format::Onnx) };
        assert!(!plain.fits(&cell) && other.fits(&cell));
        assert_eq!(why_not(&cell, &[plain.clone(), other]), None);
        assert!(why_not(&cell, &[plain]).unwrap().message.ends_with("has inspector 'photos'"));
    }

    #[test]
    fn says_what_is_missing_and_why() {
        let why = |engine: &str, class: &str, pools: &[Pool]| why_not(&cell(engine, class, Format::Onnx), pools);
        let mut pools = [pool("cpu", &["rten"])];
        assert_eq!(why("rten", "cpu", &pools), None);
        assert!(why("onnx", "cpu", &pools).unwrap().message.contains("engine 'onnx'"));
        assert!(why("rten", "gpu", &pools).unwrap().message.contains("device 'gpu'"));
        assert!(why("rten", "cpu", &[]).unwrap().message.contains("no worker"));

        let lacks = |what: &str| Problem::new(Code::NotInstalled, what).with_hint("pip install it");
        pools[0].abilities.lacking.insert("onnx".into(), lacks("no library"));
        pools[0].abilities.no_gpu = Some(Problem::new(Code::NotInstalled, "no driver"));
        let onnx = why("onnx", "cpu", &pools).unwrap();
        assert!(onnx.message.ends_with("on device 'cpu': no library"), "{onnx}");
        assert_eq!((onnx.code, onnx.hint.as_deref()), (Code::NoWorker, Some("pip install it")));
        let gpu = why("rten", "gpu", &pools).unwrap();
        assert!(gpu.message == "no slot has device 'gpu': no driver" && gpu.hint.is_some(), "{gpu}");
        let mixed = [pools[0].clone(), pool("nvidia-a10", &["onnx"])];
        assert_eq!(why("onnx", "nvidia-t4", &mixed).unwrap().message, "no slot has device 'nvidia-t4'");
    }
}
