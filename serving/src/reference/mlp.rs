//! A multi-layer perceptron for 28×28 pictures: small enough that a client's own cost shows.

use super::{
    graph::{Graph, Init},
    layers::{linear, relu},
};
use modelmeter_common::model::Datatype;

/// 784 → 256 → 128 → 10.
pub fn build(name: &str) -> Graph {
    let mut graph = Graph::new(name);
    let mut x = graph.input("x", Datatype::Fp32, &[784]);
    for (from, to) in [(784, 256), (256, 128)] {
        let y = linear(&mut graph, &x, from, to, Init::centred_he(2.0, from));
        x = relu(&mut graph, &y);
    }
    // Pixels from 0 to 1 spread by 0.29, and so do the layers after them.
    let logits = linear(&mut graph, &x, 128, 10, Init::centred_he(64.0, 128));
    graph.output("logits", &logits, &[10]);
    graph
}
