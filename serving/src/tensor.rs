//! Tensors as raw little-endian bytes, and safe views of them.

use bytes::Bytes;
use modelmeter_common::model::Datatype;

#[cfg(target_endian = "big")]
compile_error!("KServe v2 carries little-endian tensors: a big-endian machine needs conversions here");

/// A tensor whose bytes match its type and shape.
#[derive(Clone, PartialEq, Debug)]
pub struct Tensor {
    pub dtype: Datatype,
    pub shape: Vec<u64>,
    pub data: Bytes,
}

impl Tensor {
    /// Its shape as indexes.
    pub fn dims(&self) -> Vec<usize> {
        self.shape.iter().map(|&dim| usize::try_from(dim).expect("its bytes are in memory")).collect()
    }
}

/// Bytes that a tensor of this type and shape has, or none for strings and where the number is absurd.
pub fn byte_len(dtype: Datatype, shape: &[u64]) -> Option<usize> {
    let mut bytes = dtype.size()?;
    for &dim in shape {
        bytes = bytes.checked_mul(usize::try_from(dim).ok()?)?;
    }
    Some(bytes)
}

/// Plain numbers: any bytes are a value, and a value has no padding.
///
/// # Safety
/// Only for types of which that is true, with an alignment of at most 8.
pub unsafe trait Element: Copy + Send + Sync + 'static {}
// SAFETY: primitive numbers.
unsafe impl Element for u8 {}
unsafe impl Element for u16 {}
unsafe impl Element for u32 {}
unsafe impl Element for u64 {}
unsafe impl Element for i8 {}
unsafe impl Element for i16 {}
unsafe impl Element for i32 {}
unsafe impl Element for i64 {}
unsafe impl Element for f32 {}
unsafe impl Element for f64 {}

/// The bytes as elements: in place where they lie aligned, else copied to `scratch`, which is kept from call to
/// call so that a large request does not fault in fresh pages each time.
pub fn elements<'a, T: Element>(bytes: &'a [u8], scratch: &'a mut Vec<u64>) -> &'a [T] {
    let count = bytes.len() / size_of::<T>();
    let aligned = if (bytes.as_ptr() as usize).is_multiple_of(align_of::<T>()) {
        bytes.as_ptr()
    } else {
        scratch.resize(bytes.len().div_ceil(8), 0);
        // SAFETY: `scratch` has at least as many bytes, and is another allocation.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), scratch.as_mut_ptr().cast(), bytes.len()) };
        scratch.as_ptr().cast()
    };
    // SAFETY: `count` elements lie there, aligned, borrowed for 'a; any bytes are an `Element`.
    unsafe { std::slice::from_raw_parts(aligned.cast(), count) }
}

/// The bytes of a vector, which they keep alive.
pub fn into_bytes<T: Element>(values: Vec<T>) -> Bytes {
    struct Owner<T>(Vec<T>);
    impl<T: Element> AsRef<[u8]> for Owner<T> {
        fn as_ref(&self) -> &[u8] {
            // SAFETY: an `Element` has no padding, so each of its bytes is initialised.
            unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), size_of_val(self.0.as_slice())) }
        }
    }
    Bytes::from_owner(Owner(values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_the_same_at_every_offset() {
        let values = [1.5f32, -2.0, f32::MAX];
        let mut scratch = Vec::new();
        for offset in 0..8 {
            let mut bytes = vec![0u8; offset];
            bytes.extend(into_bytes(values.to_vec()));
            assert_eq!(elements::<f32>(&bytes[offset..], &mut scratch), values);
        }
    }

    #[test]
    fn absurd_shapes_have_no_length() {
        assert_eq!(byte_len(Datatype::Fp32, &[2, 3]), Some(24));
        assert_eq!(byte_len(Datatype::Fp32, &[]), Some(4));
        assert_eq!(byte_len(Datatype::Fp64, &[u64::MAX, 2]), None);
        assert_eq!(byte_len(Datatype::Bytes, &[1]), None);
    }
}
