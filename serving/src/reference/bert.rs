//! A small BERT encoder with a classifier on its first token. Source: J. Devlin et al., "BERT: Pre-training of Deep
//! Bidirectional Transformers for Language Understanding" (NAACL 2019).

use super::graph::{Graph, Init, Value, float, int, ints};
use modelmeter_common::model::Datatype;

const LAYERS: usize = 4;
const HIDDEN: usize = 256;
const HEADS: usize = 4;
const HEAD: usize = HIDDEN / HEADS;
const TOKENS: usize = 128;
const VOCABULARY: usize = 8192;
const CLASSES: usize = 16;

/// Takes `input_ids` (below 8,192) and `attention_mask` (0: not there), INT64 of `[batch, 128]`.
pub fn build(name: &str) -> Graph {
    let mut graph = Graph::new(name);
    let ids = graph.input("input_ids", Datatype::Int64, &[TOKENS as i64]);
    let mask = graph.input("attention_mask", Datatype::Int64, &[TOKENS as i64]);
    let bias = mask_bias(&mut graph, &mask);
    let mut x = embed(&mut graph, &ids);
    for _ in 0..LAYERS {
        let attended = attention(&mut graph, &x, &bias);
        x = add_norm(&mut graph, &x, &attended);
        let fed = feed_forward(&mut graph, &x);
        x = add_norm(&mut graph, &x, &fed);
    }
    let first = graph.ints(&[], &[0]);
    let pooled = graph.node("Gather", &[&x, &first], vec![int("axis", 1)]);
    let pooled = dense(&mut graph, &pooled, HIDDEN, HIDDEN, 1.0);
    let pooled = graph.node("Tanh", &[&pooled], vec![]);
    let logits = dense(&mut graph, &pooled, HIDDEN, CLASSES, 32.0);
    graph.output("logits", &logits, &[CLASSES as i64]);
    graph
}

/// What is added to attention scores: nothing for a token that is there, so much below that it counts for nothing
/// otherwise. Of shape `[batch, 1, 1, 128]`.
fn mask_bias(graph: &mut Graph, mask: &Value) -> Value {
    let (zero, none, masked) = (graph.ints(&[], &[0]), graph.floats(&[], &[0.0]), graph.floats(&[], &[-10_000.0]));
    let absent = graph.node("Equal", &[mask, &zero], vec![]);
    let bias = graph.node("Where", &[&absent, &masked, &none], vec![]);
    let axes = graph.ints(&[2], &[1, 2]);
    graph.node("Unsqueeze", &[&bias, &axes], vec![])
}

fn embed(graph: &mut Graph, ids: &Value) -> Value {
    let table = graph.weight(&[VOCABULARY, HIDDEN], Init { std: 1.0, centred: false });
    let tokens = graph.node("Gather", &[&table, ids], vec![int("axis", 0)]);
    let positions = graph.weight(&[TOKENS, HIDDEN], Init { std: 0.3, centred: false });
    add_norm(graph, &tokens, &positions)
}

/// The sum of both, normalised over the last axis.
fn add_norm(graph: &mut Graph, x: &Value, y: &Value) -> Value {
    let sum = graph.node("Add", &[x, y], vec![]);
    let (scale, shift) = (graph.floats(&[HIDDEN], &[1.0; HIDDEN]), graph.vector(HIDDEN, 0.02));
    graph.node("LayerNormalization", &[&sum, &scale, &shift], vec![int("axis", -1), float("epsilon", 1e-12)])
}

/// `x` (any leading axes) times a weight plus a bias.
fn dense(graph: &mut Graph, x: &Value, from: usize, to: usize, gain: f32) -> Value {
    let (weight, bias) = (graph.weight(&[from, to], Init::he(gain, from)), graph.vector(to, 0.02));
    let product = graph.node("MatMul", &[x, &weight], vec![]);
    graph.node("Add", &[&product, &bias], vec![])
}

/// Scaled dot-product attention over all heads.
fn attention(graph: &mut Graph, x: &Value, bias: &Value) -> Value {
    let split = graph.ints(&[4], &[0, TOKENS as i64, HEADS as i64, HEAD as i64]);
    let head = |graph: &mut Graph, order: &[i64]| {
        let y = dense(graph, x, HIDDEN, HIDDEN, 1.0);
        let y = graph.node("Reshape", &[&y, &split], vec![]);
        graph.node("Transpose", &[&y], vec![ints("perm", order)])
    };
    let query = head(graph, &[0, 2, 1, 3]);
    let key = head(graph, &[0, 2, 3, 1]);
    let value = head(graph, &[0, 2, 1, 3]);
    let scores = graph.node("MatMul", &[&query, &key], vec![]);
    let root = graph.floats(&[], &[(HEAD as f32).sqrt()]);
    let scores = graph.node("Div", &[&scores, &root], vec![]);
    let scores = graph.node("Add", &[&scores, bias], vec![]);
    let shares = graph.node("Softmax", &[&scores], vec![int("axis", -1)]);
    let mixed = graph.node("MatMul", &[&shares, &value], vec![]);
    let mixed = graph.node("Transpose", &[&mixed], vec![ints("perm", &[0, 2, 1, 3])]);
    let join = graph.ints(&[3], &[0, TOKENS as i64, HIDDEN as i64]);
    let mixed = graph.node("Reshape", &[&mixed, &join], vec![]);
    dense(graph, &mixed, HIDDEN, HIDDEN, 1.0)
}

/// Four times as wide, with a GELU between: x/2·(1 + erf(x/√2)).
fn feed_forward(graph: &mut Graph, x: &Value) -> Value {
    let wide = dense(graph, x, HIDDEN, 4 * HIDDEN, 1.0);
    let root = graph.floats(&[], &[std::f32::consts::SQRT_2]);
    let (one, half) = (graph.floats(&[], &[1.0]), graph.floats(&[], &[0.5]));
    let scaled = graph.node("Div", &[&wide, &root], vec![]);
    let erf = graph.node("Erf", &[&scaled], vec![]);
    let grown = graph.node("Add", &[&erf, &one], vec![]);
    let product = graph.node("Mul", &[&wide, &grown], vec![]);
    let gelu = graph.node("Mul", &[&product, &half], vec![]);
    dense(graph, &gelu, 4 * HIDDEN, HIDDEN, 2.0)
}
