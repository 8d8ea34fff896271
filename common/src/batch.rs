//! Which axis of each input counts the items of a call, and the concrete inputs at a batch size. Pure.
//!
//! A user states it (`--batch-axis`); else it is the axis that the model names so, else an open first axis, else a fixed
//! first axis, which then allows one batch size only.

use crate::{
    Problem,
    model::{Dim, TensorShape, TensorSpec, describe},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};

const FIELD: &str = "batch_axes";
const SHAPES: &str = "shapes";
/// What is measured where nobody says otherwise.
pub const DEFAULT_SIZES: [u32; 4] = [1, 2, 4, 8];

/// Where a user says that the batch of an input is: an axis from 0, or `none`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stated(pub Option<u32>);

impl FromStr for Stated {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        match text.trim() {
            "none" => Ok(Self(None)),
            number => number.parse().map(|axis| Self(Some(axis))).map_err(|_| {
                Problem::invalid(FIELD, format!("'{text}' is not an axis")).with_hint("a number from 0, or none")
            }),
        }
    }
}

impl fmt::Display for Stated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(axis) => axis.fmt(f),
            None => f.write_str("none"),
        }
    }
}

impl Serialize for Stated {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(axis) => serializer.serialize_u32(axis),
            None => serializer.serialize_str("none"),
        }
    }
}

impl<'de> Deserialize<'de> for Stated {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(u32),
            Word(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Number(axis) => Ok(Self(Some(axis))),
            Form::Word(word) => word.parse().map_err(D::Error::custom),
        }
    }
}

/// The batch of a model: its axis in each input, and the sizes that it can have.
#[derive(Clone, PartialEq, Debug)]
pub struct Batch<'a> {
    inputs: &'a [TensorSpec],
    /// In the order of the inputs; none: not there, or of a fixed length.
    axes: Vec<Option<usize>>,
    /// The only size that there is, where no axis of it is open.
    fixed: Option<u32>,
    /// Whether a fixed axis is what it is.
    has_axis: bool,
}

impl<'a> Batch<'a> {
    /// Finds the axes.
    ///
    /// # Errors
    /// `invalid_argument` for a statement about an input or axis that is not there.
    pub fn of(inputs: &'a [TensorSpec], stated: &BTreeMap<String, Stated>) -> Result<Self, Problem> {
        check_stated(inputs, stated)?;
        let says = |input: &TensorSpec| stated.get(&input.name).map(|stated| stated.0.map(|axis| axis as usize));
        let mut axes: Vec<Option<usize>> =
            inputs.iter().map(|input| says(input).unwrap_or_else(|| named_or_first(input))).collect();
        // An axis of the same name as the batch of another input is the batch too.
        let symbols: BTreeSet<&str> =
            inputs.iter().zip(&axes).filter_map(|(input, axis)| symbol(input, (*axis)?)).collect();
        for (input, axis) in
            inputs.iter().zip(&mut axes).filter(|(input, axis)| axis.is_none() && says(input).is_none())
        {
            let same = |at: &usize| symbol(input, *at).is_some_and(|name| symbols.contains(name));
            *axis = (0..input.shape.len()).find(same);
        }
        let length = |input: &TensorSpec, axis: usize| match input.shape[axis] {
            Dim::Fixed(length) => Some(length),
            Dim::Dynamic(_) => None,
        };
        let stated_fixed = inputs.iter().zip(&axes).find_map(|(input, axis)| length(input, (*axis)?));
        let is_open =
            inputs.iter().zip(&axes).any(|(input, axis)| axis.is_some_and(|axis| length(input, axis).is_none()));
        let firsts = || {
            inputs.iter().filter(|input| says(input).is_none()).filter_map(|input| match input.shape.first() {
                Some(Dim::Fixed(length)) => Some(*length),
                _ => None,
            })
        };
        let (fixed, has_axis) = match stated_fixed {
            Some(length) => (Some(length), true),
            None if is_open => (None, true),
            None => most_common(firsts()).map_or((Some(1), false), |length| (Some(length), true)),
        };
        for (input, axis) in inputs.iter().zip(&mut axes) {
            *axis = axis.filter(|&at| length(input, at).is_none());
        }
        let fixed = fixed.map(|length| u32::try_from(length).unwrap_or(u32::MAX));
        Ok(Self { inputs, axes, fixed, has_axis })
    }

    /// The sizes to measure where these were asked for: where none were, the usual ones, or the only one that there is.
    pub fn sizes(&self, asked: &[u32]) -> Vec<u32> {
        match (asked, self.fixed) {
            ([], Some(only)) => vec![only],
            ([], None) => DEFAULT_SIZES.to_vec(),
            (asked, _) => asked.iter().copied().collect::<BTreeSet<_>>().into_iter().collect(),
        }
    }

    /// The axis of this input, by its place among the inputs.
    pub fn axis(&self, input: usize) -> Option<usize> {
        self.axes[input]
    }

    /// The axis of this input that counts items in data: also a fixed one, where no input has an open one.
    pub(crate) fn items(&self, input: usize) -> Option<usize> {
        let fixed = || (self.fixed.is_some() && self.has_axis && !self.inputs[input].shape.is_empty()).then_some(0);
        self.axes[input].or_else(fixed)
    }

    /// What was taken for the batch where that is not the first axis, or where that replaces a stated length.
    pub fn notes(&self, shapes: &BTreeMap<String, Vec<Vec<u64>>>, sizes: &[u32]) -> Vec<String> {
        let mut notes = Vec::new();
        for (input, &axis) in self.inputs.iter().zip(&self.axes) {
            let Some(axis) = axis else { continue };
            let stated = || shapes.get(&input.name).into_iter().flatten().filter_map(|shape| shape.get(axis));
            let list = || sizes.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
            if axis > 0 {
                notes.push(format!("the batch of input '{}' is axis {axis} of {}", input.name, describe(&input.shape)));
            } else if let Some(length) = stated().find(|&&length| length != 1 && sizes != [length as u32]) {
                let name = &input.name;
                notes.push(format!(
                    "the {length} on axis 0 of input '{name}' is taken for the batch: it is replaced by the batch sizes {}",
                    list()
                ));
            }
        }
        notes
    }

    /// Whether the shapes of a request fit the model and leave nothing open.
    ///
    /// # Errors
    /// `invalid_argument` naming the input, with what it takes or what to set.
    pub fn check_shapes(&self, shapes: &BTreeMap<String, Vec<Vec<u64>>>, sizes: &[u32]) -> Result<(), Problem> {
        for (name, given) in shapes {
            match self.inputs.iter().position(|input| &input.name == name) {
                Some(place) => given.iter().try_for_each(|shape| self.check_shape(place, shape, sizes))?,
                None => self.check_named_axis(name, given)?,
            }
        }
        for (place, input) in self.inputs.iter().enumerate() {
            if shapes.contains_key(&input.name) {
                continue;
            }
            let open = |(at, dim): (usize, &Dim)| match dim {
                Dim::Dynamic(name) if Some(at) != self.axes[place] => {
                    length_of(name, |name| shapes.get(name).cloned()).is_none()
                }
                _ => false,
            };
            if input.shape.iter().enumerate().any(open) {
                return Err(self.asks_for_shape(place));
            }
        }
        Ok(())
    }

    fn asks_for_shape(&self, place: usize) -> Problem {
        let input = &self.inputs[place];
        if !input.is_shaped() {
            let message = format!("the model does not tell the shape of input '{}'", input.name);
            let dtype = input.dtype.as_str().to_ascii_lowercase();
            return Problem::invalid(SHAPES, message).with_hint(format!(
                "state it without its batch axis, for example --input {}:{dtype}:3,224,224",
                input.name
            ));
        }
        let named = input.shape.iter().enumerate().find_map(|(at, dim)| match dim {
            Dim::Dynamic(name) if Some(at) != self.axes[place] && !name.is_empty() => Some(name),
            _ => None,
        });
        let each = named.map(|name| format!(", or --shape {name}=224 wherever {name} occurs")).unwrap_or_default();
        let unnamed = |(at, dim): (usize, &Dim)| (at > 0 && *dim == Dim::Dynamic(String::new())).then_some(at);
        let other = input.shape.iter().enumerate().find_map(unnamed).filter(|_| self.axes[place].is_none());
        let other =
            other.map(|at| format!("; if one is the batch: --batch-axis {}={at}", input.name)).unwrap_or_default();
        Problem::invalid(SHAPES, format!("input '{}' has open axes: {}", input.name, describe(&input.shape)))
            .with_hint(format!("set them, for example --shape {}={}{each}{other}", input.name, self.example(place)))
    }

    fn example(&self, place: usize) -> String {
        let axis = |(at, dim): (usize, &Dim)| match dim {
            Dim::Fixed(n) => n.to_string(),
            Dim::Dynamic(_) if Some(at) == self.axes[place] => "1".into(),
            Dim::Dynamic(_) => "224".into(),
        };
        self.inputs[place].shape.iter().enumerate().map(axis).collect::<Vec<_>>().join(",")
    }

    fn check_shape(&self, place: usize, shape: &[u64], sizes: &[u32]) -> Result<(), Problem> {
        let input = &self.inputs[place];
        let name = &input.name;
        // A fixed batch may be written as 1, as an open one is.
        let is_one = |at: usize, got: u64| at == 0 && got == 1 && self.axes.iter().all(Option::is_none);
        let fits = shape.len() == input.shape.len()
            && shape.iter().zip(&input.shape).enumerate().all(|(at, (got, dim))| match dim {
                Dim::Fixed(n) => n == got || is_one(at, *got),
                Dim::Dynamic(_) => true,
            });
        if !fits {
            return Err(Problem::invalid(SHAPES, format!("{name}={shape:?} does not fit {}", describe(&input.shape))));
        }
        let Some(axis) = self.axes[place] else { return Ok(()) };
        let length = shape[axis];
        if length == 1 || sizes.iter().any(|&size| u64::from(size) == length) {
            return Ok(());
        }
        let list = sizes.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
        let message = format!(
            "{name}={shape:?} has {length} on axis {axis}, which is taken for the batch, but the batch sizes are {list}"
        );
        let other = usize::from(axis == 0);
        let size = if length > 0 { format!(", or --batch-sizes {length}") } else { String::new() };
        Err(Problem::invalid(SHAPES, message).with_hint(format!(
            "give 1 there{size}; where the batch is another axis: --batch-axis {name}={other}, \
             where the input has none: --batch-axis {name}=none"
        )))
    }

    /// A length for each axis of that name.
    fn check_named_axis(&self, name: &str, given: &[Vec<u64>]) -> Result<(), Problem> {
        let symbols: BTreeSet<&str> = self.inputs.iter().flat_map(|input| &input.shape).flat_map(terms).collect();
        if !symbols.contains(name) {
            let known: Vec<&str> = self.inputs.iter().map(|input| input.name.as_str()).collect();
            let axes: Vec<&str> = symbols.into_iter().collect();
            let axes = if axes.is_empty() { String::new() } else { format!("; its open axes are {}", axes.join(", ")) };
            return Err(Problem::invalid(
                SHAPES,
                format!("the model has no input '{name}' and no open axis of that name"),
            )
            .with_hint(format!("its inputs are {}{axes}", known.join(", "))));
        }
        let is_batch =
            |(input, axis): (&TensorSpec, &Option<usize>)| axis.and_then(|at| symbol(input, at)) == Some(name);
        if self.inputs.iter().zip(&self.axes).any(is_batch) {
            let message = format!("axis '{name}' is the batch");
            return Err(Problem::invalid(SHAPES, message).with_hint("its lengths are set with --batch-sizes"));
        }
        if given.iter().any(|shape| shape.len() != 1) {
            let message = format!("'{name}' is one axis, which takes one length");
            return Err(Problem::invalid(SHAPES, message).with_hint(format!("for example --shape {name}=128")));
        }
        Ok(())
    }

    /// The inputs as they are sent at this batch size, with one shape for each input or axis that is set.
    ///
    /// # Errors
    /// `invalid_argument` for a size that the model does not take, and for axes that are still open.
    pub fn inputs(&self, shapes: &BTreeMap<String, Vec<u64>>, size: u32) -> Result<Vec<TensorShape>, Problem> {
        self.check_size(size)?;
        let named = |name: &str| Some(vec![shapes.get(name)?.clone()]);
        let concrete = |(place, input): (usize, &TensorSpec)| {
            let given = shapes.get(&input.name);
            let axis = |(at, dim): (usize, &Dim)| match dim {
                Dim::Fixed(n) => Some(*n),
                Dim::Dynamic(_) if Some(at) == self.axes[place] => Some(u64::from(size)),
                Dim::Dynamic(name) => match given {
                    Some(given) => given.get(at).copied(),
                    None => length_of(name, named),
                },
            };
            let shape: Option<Vec<u64>> = input.shape.iter().enumerate().map(axis).collect();
            let shape = shape.ok_or_else(|| self.asks_for_shape(place))?;
            let batch_axis = self.axes[place].map(|at| at as u32);
            Ok(TensorShape { name: input.name.clone(), dtype: input.dtype, shape, batch_axis })
        };
        self.inputs.iter().enumerate().map(concrete).collect()
    }

    fn check_size(&self, size: u32) -> Result<(), Problem> {
        let Some(only) = self.fixed.filter(|&only| only != size) else { return Ok(()) };
        if !self.has_axis {
            return Err(Problem::invalid("batch_sizes", format!("{size}, but the model has no batch axis"))
                .with_hint("ask for batch size 1 alone"));
        }
        let message = format!("{size}, but the model's batch axis is fixed at {only}");
        Err(Problem::invalid("batch_sizes", message).with_hint(format!(
            "ask for batch size {only} alone, export the model with a dynamic batch axis, or say which axis is the batch: \
             --batch-axis INPUT=AXIS"
        )))
    }

    /// Where these outputs have the batch, as far as their axes' names say it: the axis; none for rows of their own. What
    /// is not in it is not known.
    pub fn of_outputs(&self, outputs: &[TensorSpec]) -> BTreeMap<String, Option<u32>> {
        let symbols: BTreeSet<&str> =
            self.inputs.iter().zip(&self.axes).filter_map(|(input, axis)| symbol(input, (*axis)?)).collect();
        let axis = |output: &TensorSpec| {
            let is_batch =
                |at: &usize| symbol(output, *at).is_some_and(|name| symbols.contains(name) || is_batch_name(name));
            let first = symbol(output, 0).filter(|_| output.is_shaped());
            match ((0..output.shape.len()).find(is_batch), first) {
                (Some(at), _) => Some((output.name.clone(), Some(at as u32))),
                (None, Some(_)) => Some((output.name.clone(), None)),
                (None, None) => None,
            }
        };
        outputs.iter().filter_map(axis).collect()
    }
}

fn check_stated(inputs: &[TensorSpec], stated: &BTreeMap<String, Stated>) -> Result<(), Problem> {
    for (name, axis) in stated {
        let Some(input) = inputs.iter().find(|input| &input.name == name) else {
            let known: Vec<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
            return Err(Problem::invalid(FIELD, format!("the model has no input '{name}'"))
                .with_hint(format!("its inputs are {}", known.join(", "))));
        };
        if axis.0.is_some_and(|axis| axis as usize >= input.shape.len()) {
            let message = format!("input '{name}' has no axis {axis}: {}", describe(&input.shape));
            return Err(Problem::invalid(FIELD, message).with_hint("axes are counted from 0"));
        }
    }
    Ok(())
}

/// The axis that is named as a batch is, where one is; else an open first one.
fn named_or_first(input: &TensorSpec) -> Option<usize> {
    let is_named = |at: &usize| symbol(input, *at).is_some_and(is_batch_name);
    let mut named = (0..input.shape.len()).filter(is_named);
    match (named.next(), named.next()) {
        (Some(only), None) => Some(only),
        _ => matches!(input.shape.first(), Some(Dim::Dynamic(_))).then_some(0).filter(|_| input.is_shaped()),
    }
}

/// How exporters and people call the batch.
fn is_batch_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.contains("batch") || matches!(name.as_str(), "n" | "b" | "bs")
}

fn symbol(tensor: &TensorSpec, axis: usize) -> Option<&str> {
    match tensor.shape.get(axis)? {
        Dim::Dynamic(name) if !name.is_empty() => Some(name),
        _ => None,
    }
}

/// The names in an axis: one, or a sum as `past + seq`.
fn terms(dim: &Dim) -> impl Iterator<Item = &str> {
    let text = match dim {
        Dim::Dynamic(name) => name.as_str(),
        Dim::Fixed(_) => "",
    };
    let parts = text.split('+').map(str::trim);
    parts.filter(|term| !term.is_empty() && *term != TensorSpec::UNSHAPED && term.parse::<u64>().is_err())
}

/// The length of a named axis, or of a sum of such and numbers, where each is set.
pub(crate) fn length_of(text: &str, set: impl Fn(&str) -> Option<Vec<Vec<u64>>>) -> Option<u64> {
    let one = |name: &str| match set(name)?.first()?[..] {
        [length] => Some(length),
        _ => None,
    };
    one(text).or_else(|| text.split('+').map(|term| term.trim().parse().ok().or_else(|| one(term.trim()))).sum())
}

/// The most common length; the first of them where several are.
fn most_common(lengths: impl Iterator<Item = u64> + Clone) -> Option<u64> {
    let count = |length: u64| lengths.clone().filter(|other| *other == length).count();
    let most = lengths.clone().map(count).max()?;
    lengths.clone().find(|length| count(*length) == most)
}

#[cfg(test)]
#[path = "batch_tests.rs"]
mod tests;
