//! A SavedModel's serving signature, from its `saved_model.pb`. The graph in it is skipped.

use crate::model::{Datatype, Dim, TensorSpec};
use modelmeter_proto::tensorflow::{DataType, MetaGraphDef, SavedModel, SignatureDef, TensorInfo};
use prost::Message;
use std::{collections::BTreeMap, path::Path};

/// The signature that TensorFlow Serving takes when a request names none.
pub const DEFAULT_SIGNATURE: &str = "serving_default";
/// The tag of the graph that is served.
const SERVE: &str = "serve";
/// The method of a signature that Predict may call.
const PREDICT: &str = "tensorflow/serving/predict";

/// One of a model's signatures.
#[derive(Clone, PartialEq, Debug)]
pub struct Signature {
    /// Its name.
    pub name: String,
    /// What it takes, by name.
    pub inputs: Vec<TensorSpec>,
    /// What it gives, by name.
    pub outputs: Vec<TensorSpec>,
}

/// Reads the signature of the SavedModel in `folder`, or says what is wrong with it.
pub(super) fn read(folder: &Path) -> Result<Signature, String> {
    let bytes = std::fs::read(folder.join("saved_model.pb")).map_err(|e| format!("saved_model.pb: {e}"))?;
    let model = SavedModel::decode(bytes.as_slice())
        .map_err(|e| format!("saved_model.pb is no SavedModel, or is damaged or cut off: {e}"))?;
    let serves = |graph: &&MetaGraphDef| graph.meta_info_def.iter().any(|info| info.tags.iter().any(|t| t == SERVE));
    let graph = model.meta_graphs.iter().find(serves).ok_or("it has no graph with the tag 'serve'")?;
    choose(&graph.signature_def)
}

/// The default signature, else the only one that Predict may call.
///
/// # Errors
/// Says what there is, where that is none or several, or what of it cannot be sent.
pub fn choose(signatures: &BTreeMap<String, SignatureDef>) -> Result<Signature, String> {
    let callable: Vec<_> = signatures.iter().filter(|(_, signature)| signature.method_name == PREDICT).collect();
    let chosen = match (signatures.get_key_value(DEFAULT_SIGNATURE), callable.as_slice()) {
        (Some(default), _) => default,
        (None, [only]) => *only,
        _ => {
            let names: Vec<_> = signatures.keys().map(String::as_str).collect();
            return Err(format!("it has no signature '{DEFAULT_SIGNATURE}', but [{}]", names.join(", ")));
        }
    };
    let (name, signature) = chosen;
    let inputs = specs(&signature.inputs)?;
    if inputs.is_empty() {
        return Err(format!("signature '{name}' has no inputs"));
    }
    Ok(Signature { name: name.clone(), inputs, outputs: specs(&signature.outputs)? })
}

fn specs(tensors: &BTreeMap<String, TensorInfo>) -> Result<Vec<TensorSpec>, String> {
    tensors.iter().map(|(name, info)| spec(name, info)).collect()
}

fn spec(name: &str, info: &TensorInfo) -> Result<TensorSpec, String> {
    let dtype = datatype(info.dtype()).ok_or_else(|| {
        format!("tensor '{name}' has elements of the unsupported type {}", info.dtype().as_str_name())
    })?;
    let shape = info.tensor_shape.as_ref().filter(|shape| !shape.unknown_rank);
    let shape = shape.ok_or_else(|| format!("tensor '{name}' has no rank"))?;
    let dim = |size: i64| u64::try_from(size).map_or(Dim::Dynamic(String::new()), Dim::Fixed);
    Ok(TensorSpec { name: name.to_owned(), dtype, shape: shape.dim.iter().map(|d| dim(d.size)).collect() })
}

/// TensorFlow's types and ours.
const DATATYPES: [(DataType, Datatype); 14] = [
    (DataType::DtFloat, Datatype::Fp32),
    (DataType::DtDouble, Datatype::Fp64),
    (DataType::DtInt32, Datatype::Int32),
    (DataType::DtUint8, Datatype::Uint8),
    (DataType::DtInt16, Datatype::Int16),
    (DataType::DtInt8, Datatype::Int8),
    (DataType::DtString, Datatype::Bytes),
    (DataType::DtInt64, Datatype::Int64),
    (DataType::DtBool, Datatype::Bool),
    (DataType::DtBfloat16, Datatype::Bf16),
    (DataType::DtUint16, Datatype::Uint16),
    (DataType::DtHalf, Datatype::Fp16),
    (DataType::DtUint32, Datatype::Uint32),
    (DataType::DtUint64, Datatype::Uint64),
];

/// The element type of a TensorFlow type, where KServe v2 has one.
pub fn datatype(tensorflow: DataType) -> Option<Datatype> {
    DATATYPES.iter().find(|(theirs, _)| *theirs == tensorflow).map(|(_, ours)| *ours)
}

/// TensorFlow's name of an element type.
pub fn tensorflow_type(dtype: Datatype) -> DataType {
    DATATYPES.iter().find(|(_, ours)| *ours == dtype).map(|(theirs, _)| *theirs).expect("the table has every type")
}

#[cfg(test)]
mod tests {
    use super::*;
    use modelmeter_proto::tensorflow::{TensorShapeProto, meta_graph_def::MetaInfoDef, tensor_shape_proto};

    fn tensor(dtype: DataType, dims: &[i64]) -> TensorInfo {
        let dim = dims.iter().map(|&size| tensor_shape_proto::Dim { size, name: String::new() }).collect();
        let tensor_shape = Some(TensorShapeProto { dim, unknown_rank: false });
        TensorInfo { name: "serve_x:0".into(), dtype: dtype.into(), tensor_shape }
    }

    fn signature(method: &str) -> SignatureDef {
        SignatureDef {
            inputs: [("x".into(), tensor(DataType::DtFloat, &[-1, 3]))].into(),
            outputs: [("y".into(), tensor(DataType::DtInt64, &[-1]))].into(),
            method_name: method.into(),
        }
    }

    fn written(signatures: &[(&str, SignatureDef)], tag: &str) -> tempfile::TempDir {
        let signature_def = signatures.iter().map(|(name, one)| ((*name).to_owned(), one.clone())).collect();
        let graph = MetaGraphDef { meta_info_def: Some(MetaInfoDef { tags: vec![tag.into()] }), signature_def };
        let model = SavedModel { saved_model_schema_version: 1, meta_graphs: vec![MetaGraphDef::default(), graph] };
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("saved_model.pb"), model.encode_to_vec()).unwrap();
        folder
    }

    #[test]
    fn the_default_signature_is_taken_else_the_only_one_that_predicts() {
        let init = SignatureDef::default();
        let both =
            [("serving_default", signature(PREDICT)), ("other", signature(PREDICT)), ("__init_op", init.clone())];
        let found = read(written(&both, "serve").path()).unwrap();
        assert_eq!(found.name, "serving_default");
        let x = TensorSpec {
            name: "x".into(),
            dtype: Datatype::Fp32,
            shape: vec![Dim::Dynamic(String::new()), Dim::Fixed(3)],
        };
        assert_eq!((found.inputs, found.outputs[0].dtype), (vec![x], Datatype::Int64));
        assert_eq!(read(written(&[("other", signature(PREDICT)), ("i", init)], "serve").path()).unwrap().name, "other");
    }

    #[test]
    fn what_cannot_be_called_is_said() {
        let wrong = |signatures: &[(&str, SignatureDef)], tag: &str| read(written(signatures, tag).path()).unwrap_err();
        assert!(wrong(&[("a", signature(PREDICT)), ("b", signature(PREDICT))], "serve").contains("[a, b]"));
        assert!(wrong(&[("serving_default", signature(PREDICT))], "train").contains("'serve'"));
        let mut odd = signature(PREDICT);
        odd.inputs.insert("z".into(), tensor(DataType::DtInvalid, &[]));
        assert!(wrong(&[("serving_default", odd)], "serve").contains("'z'"));
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("saved_model.pb"), "not a protobuf at all").unwrap();
        assert!(read(folder.path()).unwrap_err().contains("damaged"));
    }

    #[test]
    fn every_type_has_its_counterpart() {
        for dtype in Datatype::ALL {
            assert_eq!(datatype(tensorflow_type(dtype)), Some(dtype));
        }
        assert_eq!(datatype(DataType::DtInvalid), None);
    }
}
