//! Layers that several reference models share. Batch normalisation is folded into weights and bias, as every
//! engine folds it before serving.

use super::graph::{Graph, Init, Value, int, ints};

/// Standard deviation of biases: enough to matter, little against activations near 1.
const BIAS_STD: f32 = 0.02;

/// A square convolution with "same" padding for odd kernels.
pub struct Conv {
    pub from: usize,
    pub to: usize,
    pub kernel: usize,
    pub stride: i64,
    /// The variance of a weight times its number of inputs.
    pub gain: f32,
    /// One filter a channel.
    pub depthwise: bool,
}

impl Conv {
    /// Dense, for inputs that came out of a ReLU.
    pub fn new(from: usize, to: usize, kernel: usize, stride: i64) -> Self {
        Self { from, to, kernel, stride, gain: 2.0, depthwise: false }
    }

    /// The same with another gain.
    pub fn gain(self, gain: f32) -> Self {
        Self { gain, ..self }
    }

    /// Adds it to the graph.
    pub fn add(&self, graph: &mut Graph, x: &Value) -> Value {
        let group = if self.depthwise { self.from } else { 1 };
        let fan_in = self.from / group * self.kernel * self.kernel;
        // A depthwise filter sees one channel: centred, it would see only its edges.
        let init = if self.depthwise { Init::he(self.gain, fan_in) } else { Init::centred_he(self.gain, fan_in) };
        let weight = graph.weight(&[self.to, self.from / group, self.kernel, self.kernel], init);
        let bias = graph.vector(self.to, BIAS_STD);
        let (kernel, pad) = (self.kernel as i64, self.kernel as i64 / 2);
        let attributes = vec![
            ints("dilations", &[1, 1]),
            int("group", group as i64),
            ints("kernel_shape", &[kernel, kernel]),
            ints("pads", &[pad; 4]),
            ints("strides", &[self.stride; 2]),
        ];
        graph.node("Conv", &[x, &weight, &bias], attributes)
    }
}

/// `x` times a weight plus a bias; `x` has two axes.
pub fn linear(graph: &mut Graph, x: &Value, from: usize, to: usize, init: Init) -> Value {
    let weight = graph.weight(&[to, from], init);
    let bias = graph.vector(to, BIAS_STD);
    graph.node("Gemm", &[x, &weight, &bias], vec![int("transB", 1)])
}

/// The larger of it and zero.
pub fn relu(graph: &mut Graph, x: &Value) -> Value {
    graph.node("Relu", &[x], vec![])
}

/// The mean over the picture, then 1,000 classes named `logits`. `gain` sets how far logits of different inputs
/// lie apart: at least a standard deviation of 1 for pixels drawn evenly from 0 to 1.
pub fn classifier(graph: &mut Graph, x: &Value, channels: usize, gain: f32) {
    let pooled = graph.node("GlobalAveragePool", &[x], vec![]);
    let flat = graph.node("Flatten", &[&pooled], vec![int("axis", 1)]);
    let logits = linear(graph, &flat, channels, 1000, Init::centred_he(gain, channels));
    graph.output("logits", &logits, &[1000]);
}
