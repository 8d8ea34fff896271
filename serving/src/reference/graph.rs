//! A small builder of ONNX graphs: values, nodes, weights.

use super::random::{SplitMix64, weights};
use modelmeter_common::model::Datatype;
use modelmeter_proto::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, attribute_proto::AttributeType, tensor_proto::DataType, tensor_shape_proto::Dimension,
    tensor_shape_proto::dimension, type_proto,
};
use prost::Message;

/// The operator set of the reference models: the first with LayerNormalization.
const OPSET: i64 = 17;
/// The file format's version that came with it.
const IR_VERSION: i64 = 8;
/// The name of the open batch axis.
pub const BATCH: &str = "batch";

/// A tensor in the graph, by name.
#[derive(Clone)]
pub struct Value(String);

/// How a weight is drawn.
#[derive(Clone, Copy)]
pub struct Init {
    /// Standard deviation.
    pub std: f32,
    /// Whether each filter sums to zero.
    pub centred: bool,
}

impl Init {
    /// The variance is `gain` over the number of inputs: 2 keeps the second moment through a ReLU. Source: K. He
    /// et al., "Delving Deep into Rectifiers" (ICCV 2015).
    pub fn he(gain: f32, fan_in: usize) -> Self {
        Self { std: (gain / fan_in as f32).sqrt(), centred: false }
    }

    /// The same, with filters that sum to zero: ReLU outputs are all positive, and a deep network whose filters
    /// answer to that common mean gives every input the same output.
    pub fn centred_he(gain: f32, fan_in: usize) -> Self {
        Self { centred: true, ..Self::he(gain, fan_in) }
    }
}

/// A graph under construction. Names are numbered in the order of calls, so that its bytes are always the same.
pub struct Graph {
    graph: GraphProto,
    random: SplitMix64,
}

impl Graph {
    /// An empty graph, whose name seeds its weights.
    pub fn new(name: &str) -> Self {
        Self { graph: GraphProto { name: name.into(), ..Default::default() }, random: SplitMix64::named(name) }
    }

    /// An input with an open batch axis before `dims`.
    pub fn input(&mut self, name: &str, dtype: Datatype, dims: &[i64]) -> Value {
        self.graph.input.push(value_info(name, dtype, dims));
        Value(name.into())
    }

    /// Makes `value` an output named `name`, with an open batch axis before `dims`.
    pub fn output(&mut self, name: &str, value: &Value, dims: &[i64]) {
        let Value(internal) = value;
        let rename =
            |names: &mut Vec<String>| names.iter_mut().filter(|n| *n == internal).for_each(|n| *n = name.into());
        self.graph.node.iter_mut().for_each(|node| {
            rename(&mut node.input);
            rename(&mut node.output);
        });
        self.graph.output.push(value_info(name, Datatype::Fp32, dims));
    }

    /// Random weights; the first dimension counts the filters.
    pub fn weight(&mut self, dims: &[usize], init: Init) -> Value {
        let row = dims[1..].iter().product();
        let bytes = weights(&mut self.random, dims[0], row, init.std, init.centred);
        self.initializer(DataType::Float, dims, bytes)
    }

    /// Random values without rows, such as a bias.
    pub fn vector(&mut self, length: usize, std: f32) -> Value {
        let bytes = weights(&mut self.random, 1, length, std, false);
        self.initializer(DataType::Float, &[length], bytes)
    }

    /// Constant floats.
    pub fn floats(&mut self, dims: &[usize], values: &[f32]) -> Value {
        self.initializer(DataType::Float, dims, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// Constant integers, such as a shape.
    pub fn ints(&mut self, dims: &[usize], values: &[i64]) -> Value {
        self.initializer(DataType::Int64, dims, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    fn initializer(&mut self, dtype: DataType, dims: &[usize], bytes: Vec<u8>) -> Value {
        let name = format!("w{}", self.graph.initializer.len());
        self.graph.initializer.push(TensorProto {
            name: name.clone(),
            dims: dims.iter().map(|&dim| dim as i64).collect(),
            data_type: dtype as i32,
            raw_data: bytes.into(),
            ..Default::default()
        });
        Value(name)
    }

    /// A node with one output.
    pub fn node(&mut self, op: &str, inputs: &[&Value], attribute: Vec<AttributeProto>) -> Value {
        let number = self.graph.node.len();
        let output = format!("v{number}");
        self.graph.node.push(NodeProto {
            input: inputs.iter().map(|value| value.0.clone()).collect(),
            output: vec![output.clone()],
            name: format!("{op}_{number}"),
            op_type: op.into(),
            attribute,
            ..Default::default()
        });
        Value(output)
    }

    /// The file.
    pub fn into_bytes(self) -> Vec<u8> {
        ModelProto {
            ir_version: IR_VERSION,
            producer_name: "modelmeter".into(),
            graph: Some(self.graph),
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
            ..Default::default()
        }
        .encode_to_vec()
    }
}

fn value_info(name: &str, dtype: Datatype, dims: &[i64]) -> ValueInfoProto {
    let elem_type = if dtype == Datatype::Int64 { DataType::Int64 } else { DataType::Float } as i32;
    let batch = Dimension { value: Some(dimension::Value::DimParam(BATCH.into())) };
    let fixed = dims.iter().map(|&dim| Dimension { value: Some(dimension::Value::DimValue(dim)) });
    let shape = TensorShapeProto { dim: std::iter::once(batch).chain(fixed).collect() };
    let tensor = type_proto::Tensor { elem_type, shape: Some(shape) };
    ValueInfoProto { name: name.into(), r#type: Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)) }) }
}

/// An integer attribute.
pub fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.into(), i, r#type: AttributeType::Int as i32, ..Default::default() }
}

/// A list of integers.
pub fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto { name: name.into(), ints: ints.to_vec(), r#type: AttributeType::Ints as i32, ..Default::default() }
}

/// A float attribute.
pub fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto { name: name.into(), f, r#type: AttributeType::Float as i32, ..Default::default() }
}
