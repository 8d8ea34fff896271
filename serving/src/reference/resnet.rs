//! ResNet-18 and ResNet-50. Source: K. He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016);
//! version 1.5 has a bottleneck's stride in its 3×3 convolution.

use super::{
    graph::{Graph, Value, ints},
    layers::{Conv, classifier, relu},
};
use modelmeter_common::model::Datatype;

/// The gain of a branch's last convolution: it adds a quarter to the variance of its shortcut, so that sixteen
/// blocks neither fade nor explode.
const BRANCH_GAIN: f32 = 0.25;

/// Two 3×3 convolutions a block.
pub fn resnet18(name: &str) -> Graph {
    build(name, [2, 2, 2, 2], 1, 50_000.0, |graph, x, from, width, stride| {
        let y = Conv::new(from, width, 3, stride).add(graph, x);
        let y = relu(graph, &y);
        Conv::new(width, width, 3, 1).gain(BRANCH_GAIN).add(graph, &y)
    })
}

/// A 1×1, a 3×3 with the stride, and a 1×1 convolution a block.
pub fn resnet50(name: &str) -> Graph {
    build(name, [3, 4, 6, 3], 4, 200_000.0, |graph, x, from, width, stride| {
        let y = Conv::new(from, width, 1, 1).add(graph, x);
        let y = relu(graph, &y);
        let y = Conv::new(width, width, 3, stride).add(graph, &y);
        let y = relu(graph, &y);
        Conv::new(width, 4 * width, 1, 1).gain(BRANCH_GAIN).add(graph, &y)
    })
}

/// The frame of both: `branch` adds a block's branch, from (input, its channels, width, stride).
fn build(
    name: &str,
    blocks: [usize; 4],
    expansion: usize,
    logit_gain: f32,
    branch: impl Fn(&mut Graph, &Value, usize, usize, i64) -> Value,
) -> Graph {
    let mut graph = Graph::new(name);
    let picture = graph.input("x", Datatype::Fp32, &[3, 224, 224]);
    let stem = Conv::new(3, 64, 7, 2).add(&mut graph, &picture);
    let stem = relu(&mut graph, &stem);
    let pool = vec![ints("kernel_shape", &[3, 3]), ints("pads", &[1; 4]), ints("strides", &[2, 2])];
    let mut x = graph.node("MaxPool", &[&stem], pool);
    let mut channels = 64;
    for (stage, &count) in blocks.iter().enumerate() {
        let width = 64 << stage;
        for block in 0..count {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let y = branch(&mut graph, &x, channels, width, stride);
            let shortcut = if stride == 1 && channels == expansion * width {
                x
            } else {
                // Half the gain of a layer before a ReLU: the sum that follows has both parts.
                Conv::new(channels, expansion * width, 1, stride).gain(1.0).add(&mut graph, &x)
            };
            let sum = graph.node("Add", &[&y, &shortcut], vec![]);
            x = relu(&mut graph, &sum);
            channels = expansion * width;
        }
    }
    classifier(&mut graph, &x, channels, logit_gain);
    graph
}
