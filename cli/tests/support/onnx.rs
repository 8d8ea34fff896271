//! Small ONNX files, with the parts of the format that modelmeter does not write itself.

use modelmeter_proto::onnx::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
    tensor_shape_proto::{Dimension, dimension},
    type_proto,
};
use prost::Message;

pub const FLOAT: i32 = 1;
pub const INT64: i32 = 7;
pub const BOOL: i32 = 9;
pub const BF16: i32 = 16;

/// An axis: a number is its length, a word its name, "?" has neither.
pub fn value(name: &str, elem_type: i32, axes: Option<&[&str]>) -> ValueInfoProto {
    let axis = |text: &&str| match (text.parse(), *text) {
        (Ok(length), _) => Some(dimension::Value::DimValue(length)),
        (_, "?") => None,
        (_, word) => Some(dimension::Value::DimParam(word.into())),
    };
    let shape =
        axes.map(|axes| TensorShapeProto { dim: axes.iter().map(|text| Dimension { value: axis(text) }).collect() });
    let tensor = type_proto::Tensor { elem_type, shape };
    ValueInfoProto { name: name.into(), r#type: Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)) }) }
}

pub fn node(op: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        op_type: op.into(),
        name: output.into(),
        input: inputs.iter().map(ToString::to_string).collect(),
        output: vec![output.into()],
        ..NodeProto::default()
    }
}

pub fn floats(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    let raw_data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: FLOAT,
        raw_data: raw_data.into(),
        ..Default::default()
    }
}

pub fn integers(name: &str, values: &[i64]) -> TensorProto {
    let raw_data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let dims = vec![values.len() as i64];
    TensorProto { name: name.into(), dims, data_type: INT64, raw_data: raw_data.into(), ..Default::default() }
}

/// The file's bytes.
pub fn model(
    nodes: Vec<NodeProto>,
    input: Vec<ValueInfoProto>,
    output: Vec<ValueInfoProto>,
    initializer: Vec<TensorProto>,
) -> Vec<u8> {
    model_with(nodes, input, output, initializer, Vec::new())
}

/// The same with more of the graph, as [`weight_elsewhere`] gives it.
pub fn model_with(
    node: Vec<NodeProto>,
    input: Vec<ValueInfoProto>,
    output: Vec<ValueInfoProto>,
    initializer: Vec<TensorProto>,
    more: Vec<u8>,
) -> Vec<u8> {
    let graph = GraphProto { name: "g".into(), node, input, output, initializer, ..GraphProto::default() };
    let graph = [graph.encode_to_vec(), more].concat();
    let opset_import = vec![OperatorSetIdProto { domain: String::new(), version: 17 }];
    let mut bytes = ModelProto { ir_version: 8, opset_import, ..ModelProto::default() }.encode_to_vec();
    bytes.push(7 << 3 | 2);
    prost::encode_length_delimiter(graph.len(), &mut bytes).unwrap();
    [bytes, graph].concat()
}

/// More of a graph whose FP32 weight `name` lies in another file, whole.
pub fn weight_elsewhere(name: &str, dims: &[u8], location: &str) -> Vec<u8> {
    let field = |number: u8, content: &[u8]| [&[number << 3 | 2, content.len() as u8], content].concat();
    let entry = |key: &str, value: &str| field(13, &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat());
    let length: u32 = dims.iter().map(|&dim| u32::from(dim)).product::<u32>() * 4;
    let tensor = [
        dims.iter().flat_map(|&dim| [1 << 3, dim]).collect(),
        vec![2 << 3, FLOAT as u8],
        field(8, name.as_bytes()),
        entry("location", location),
        entry("offset", "0"),
        entry("length", &length.to_string()),
        vec![14 << 3, 1],
    ];
    field(5, &tensor.concat())
}
