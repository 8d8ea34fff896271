//! MobileNetV2. Source: M. Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (CVPR 2018).

use super::{
    graph::{Graph, Value},
    layers::{Conv, classifier},
};
use modelmeter_common::model::Datatype;

/// Table 2 of the paper: expansion, channels, blocks, stride of the first.
const STAGES: [(usize, usize, usize, i64); 7] =
    [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)];
/// Pixels drawn evenly from 0 to 1 have a variance of 1/12: the stem brings them to about 1, in ReLU6's range.
const STEM_GAIN: f32 = 12.0;

/// Width 1.0, 224×224 pixels.
pub fn build(name: &str) -> Graph {
    let mut graph = Graph::new(name);
    let clip = [graph.floats(&[], &[0.0]), graph.floats(&[], &[6.0])];
    let relu6 = |graph: &mut Graph, x: &Value| graph.node("Clip", &[x, &clip[0], &clip[1]], vec![]);
    let picture = graph.input("x", Datatype::Fp32, &[3, 224, 224]);
    let stem = Conv::new(3, 32, 3, 2).gain(STEM_GAIN).add(&mut graph, &picture);
    let mut x = relu6(&mut graph, &stem);
    let mut channels = 32;
    for (expansion, to, blocks, first_stride) in STAGES {
        for block in 0..blocks {
            let stride = if block == 0 { first_stride } else { 1 };
            let hidden = expansion * channels;
            let mut y = x.clone();
            if expansion > 1 {
                // A bottleneck is linear: its mean is zero, and gain 1 keeps the variance.
                let wide = Conv::new(channels, hidden, 1, 1).gain(1.0).add(&mut graph, &y);
                y = relu6(&mut graph, &wide);
            }
            let depthwise = Conv { depthwise: true, ..Conv::new(hidden, hidden, 3, stride) }.add(&mut graph, &y);
            let y = relu6(&mut graph, &depthwise);
            let residual = stride == 1 && channels == to;
            let narrow = Conv::new(hidden, to, 1, 1).gain(if residual { 1.0 } else { 3.0 }).add(&mut graph, &y);
            x = if residual { graph.node("Add", &[&x, &narrow], vec![]) } else { narrow };
            channels = to;
        }
    }
    let head = Conv::new(channels, 1280, 1, 1).gain(1.0).add(&mut graph, &x);
    let head = relu6(&mut graph, &head);
    classifier(&mut graph, &head, 1280, 400.0);
    graph
}
