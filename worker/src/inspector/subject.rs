//! The signature of a model: as its server tells it, and as test data is made for it.

use super::data;
use bytes::Bytes;
use modelmeter_common::{
    Problem,
    model::{Datatype, TensorShape, TensorSpec},
    testdata::DataSet,
};
use std::{collections::BTreeMap, sync::Arc};

/// What a test input is made for.
#[derive(Clone, Debug, PartialEq)]
pub struct Subject {
    /// The model's name as the server knows it.
    pub model: String,
    /// Its version as the server knows it; empty: the server's choice.
    pub version: String,
    /// Of the signature to call, where the protocol has several; empty: the server's choice.
    pub signature: String,
    /// What is sent, batch axis included.
    pub inputs: Vec<TensorShape>,
    /// What is expected back; empty: whatever comes.
    pub outputs: Vec<TensorSpec>,
    /// Items in a call.
    pub batch_size: u32,
    /// Of the test data.
    pub seed: u64,
    /// Test data of the user's own.
    pub data: Option<Arc<DataSet>>,
    /// The axis that counts items in each output of which that is known; none: its rows are its own.
    pub output_axes: BTreeMap<String, Option<u32>>,
}

impl Subject {
    /// The raw contents of each input in the nth distinct request: the user's own, else random from the seed.
    ///
    /// # Errors
    /// `invalid_argument` for data that does not fit.
    pub fn contents(&self, nth: u64) -> Result<Vec<Bytes>, Problem> {
        let seed = |i: usize| self.seed ^ (nth << 32) ^ ((i as u64) << 48);
        let of = |(i, tensor): (usize, &TensorShape)| {
            let Some(given) = &self.data else { return Ok(data::generate(tensor, seed(i))) };
            match given.fill(&tensor.name) {
                Some(fill) => Ok(data::filled(tensor, fill, seed(i))),
                None => Ok(given.contents(tensor, nth)?.unwrap_or_else(|| data::generate(tensor, seed(i)))),
            }
        };
        self.inputs.iter().enumerate().map(of).collect()
    }

    /// A sentence on the inputs for which random values may be wrong, those but floats that nobody gave, with the flags that
    /// set them; none where there is no such input.
    pub fn doubts(&self) -> Option<String> {
        let is_given = |input: &&TensorShape| self.data.as_ref().is_some_and(|data| data.has(&input.name));
        let integers =
            [Datatype::Int16, Datatype::Int32, Datatype::Int64, Datatype::Uint16, Datatype::Uint32, Datatype::Uint64];
        let wide = [Datatype::Int8, Datatype::Uint8, Datatype::Bytes];
        let missing = |dtypes: &[Datatype]| -> Vec<&TensorShape> {
            self.inputs.iter().filter(|input| dtypes.contains(&input.dtype) && !is_given(input)).collect()
        };
        let flag = |input: &TensorShape| match input.elements() {
            0 | 1 => format!("--data {}=16000", input.name),
            _ => format!("--data {}=0..30000", input.name),
        };
        let small: Vec<String> = missing(&integers).into_iter().map(flag).collect();
        let others: Vec<String> =
            missing(&wide).into_iter().map(|input| format!("--data {}=FILE", input.name)).collect();
        let sentences = [
            (small, "random integers are 0 and 1, which may be wrong here; say what they are, as"),
            (others, "random bytes fill some inputs, which may be wrong here; give real ones, as"),
        ];
        let told = sentences.into_iter().filter(|(flags, _)| !flags.is_empty());
        let told: Vec<String> = told.map(|(flags, words)| format!("{words} {}", flags.join(" "))).collect();
        (!told.is_empty()).then(|| told.join("; "))
    }
}

/// What a server says of itself and a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    /// The model's inputs.
    pub inputs: Vec<TensorSpec>,
    /// Its outputs.
    pub outputs: Vec<TensorSpec>,
    /// The signature that these are of, where the protocol has several; else empty.
    pub signature: String,
    /// The model's versions, as the server names them.
    pub versions: Vec<String>,
    /// The server's name, for example `triton`; empty if it does not say.
    pub server_name: String,
    /// The server's version; empty if it does not say.
    pub server_version: String,
}
