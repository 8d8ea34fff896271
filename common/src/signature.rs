//! Signatures of one model from several places: files of its formats, a server, and what its user states.

use crate::{
    Problem,
    artifact::Opened,
    model::{Dim, TensorSpec},
};

/// Each format must take the same tensors, or what is compared is not the same work. The names of open axes may differ,
/// and an axis that is open in one may be fixed in the other.
///
/// # Errors
/// `invalid_argument`, with both signatures.
pub fn same_inputs(one: &Opened, other: &Opened) -> Result<(), Problem> {
    if alike(&one.inputs, &other.inputs) {
        return Ok(());
    }
    let text = |opened: &Opened| format!("{} takes {}", opened.artifact.format, signature(&opened.inputs));
    Err(Problem::invalid("model", format!("the files have different inputs: {}, {}", text(one), text(other)))
        .with_hint("export them with the same names, types and shapes"))
}

/// What is told of the inputs, with what the user states of them: tensors where none are told, the shapes that `is_untold`
/// finds missing, the lengths of open axes.
///
/// # Errors
/// `invalid_argument` where the two contradict each other.
pub fn filled(
    told: &[TensorSpec],
    stated: &[TensorSpec],
    is_untold: impl Fn(&TensorSpec) -> bool,
) -> Result<Vec<TensorSpec>, Problem> {
    if told.is_empty() {
        return Ok(stated.to_vec());
    }
    let contradicts = || {
        let message = format!("{} is stated, but the model takes {}", signature(stated), signature(told));
        Problem::invalid("input", message).with_hint(
            "--input adds inputs that the server or file leaves out: drop it for the others; --shape gives open axes their lengths",
        )
    };
    let is_told = |input: &TensorSpec| told.iter().any(|known| known.name == input.name);
    if !stated.iter().all(is_told) {
        return Err(contradicts());
    }
    let fill = |known: &TensorSpec| {
        let Some(input) = stated.iter().find(|input| input.name == known.name) else { return Ok(known.clone()) };
        if is_untold(known) && input.dtype == known.dtype {
            return Ok(input.clone());
        }
        if !fit(input, known) {
            return Err(contradicts());
        }
        let axis = |(known, stated): (&Dim, &Dim)| match (known, stated) {
            (Dim::Dynamic(_), Dim::Fixed(_)) => stated.clone(),
            _ => known.clone(),
        };
        Ok(TensorSpec { shape: known.shape.iter().zip(&input.shape).map(axis).collect(), ..known.clone() })
    };
    told.iter().map(fill).collect()
}

/// The same tensors; an axis that is open in one may be fixed in the other.
fn alike(these: &[TensorSpec], others: &[TensorSpec]) -> bool {
    these.len() == others.len() && these.iter().all(|a| others.iter().any(|b| fit(a, b)))
}

fn fit(a: &TensorSpec, b: &TensorSpec) -> bool {
    let differ = |a: &Dim, b: &Dim| matches!((a, b), (Dim::Fixed(a), Dim::Fixed(b)) if a != b);
    let axes = || a.shape.len() == b.shape.len() && !a.shape.iter().zip(&b.shape).any(|(a, b)| differ(a, b));
    a.name == b.name && a.dtype == b.dtype && (!a.is_shaped() || !b.is_shaped() || axes())
}

fn signature(inputs: &[TensorSpec]) -> String {
    let one = |tensor: &TensorSpec| {
        let dims = tensor.shape.iter().map(|dim| match dim {
            Dim::Fixed(length) => length.to_string(),
            Dim::Dynamic(_) => "?".into(),
        });
        format!("{}:{}:[{}]", tensor.name, tensor.dtype, dims.collect::<Vec<_>>().join(","))
    };
    inputs.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Datatype;

    fn tensor(name: &str, dtype: Datatype, shape: &[Option<u64>]) -> TensorSpec {
        let axis = |length: &Option<u64>| length.map_or_else(|| Dim::Dynamic(String::new()), Dim::Fixed);
        TensorSpec { name: name.into(), dtype, shape: shape.iter().map(axis).collect() }
    }

    #[test]
    fn what_is_stated_fills_open_axes_and_untold_shapes_alone() {
        let told = [tensor("x", Datatype::Fp32, &[None, None]), tensor("z", Datatype::Fp32, &[])];
        let fill = |stated: &[TensorSpec]| filled(&told, stated, |spec| spec.shape.is_empty());
        let stated = [tensor("x", Datatype::Fp32, &[None, Some(7)]), tensor("z", Datatype::Fp32, &[None, Some(3)])];
        assert_eq!(fill(&stated).unwrap(), stated);
        assert_eq!(fill(&[]).unwrap(), told);
        for wrong in [
            tensor("x", Datatype::Int64, &[None, Some(7)]),
            tensor("x", Datatype::Fp32, &[None]),
            tensor("w", Datatype::Fp32, &[None, Some(7)]),
        ] {
            let problem = fill(&[wrong]).unwrap_err();
            assert!(problem.field.as_deref() == Some("input") && problem.hint.is_some(), "{problem}");
        }
    }

    #[test]
    fn an_axis_that_is_open_in_one_format_may_be_fixed_in_another() {
        let (open, fixed) = (tensor("x", Datatype::Fp32, &[None, None]), tensor("x", Datatype::Fp32, &[None, Some(4)]));
        assert!(alike(std::slice::from_ref(&open), std::slice::from_ref(&fixed)));
        assert!(!alike(&[fixed], &[tensor("x", Datatype::Fp32, &[None, Some(5)])]));
        assert!(!alike(&[open], &[]));
    }
}
