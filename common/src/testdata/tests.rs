use super::*;
use std::io::Write;
use tempfile::TempDir;

fn spec(name: &str, dtype: Datatype, shape: &[Option<u64>]) -> TensorSpec {
    let dim = |n: &Option<u64>| n.map_or(Dim::Dynamic("n".into()), Dim::Fixed);
    TensorSpec { name: name.into(), dtype, shape: shape.iter().map(dim).collect() }
}

fn tensor(name: &str, dtype: Datatype, shape: &[u64]) -> TensorShape {
    TensorShape::new(name, dtype, shape.to_vec())
}

/// A `.npy` file of version 1, as `numpy.save` writes it.
fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((header.len() as u16).to_le_bytes());
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::File::create(&path).unwrap().write_all(content).unwrap();
        path
    }

    fn fit(&self, name: &str, content: &[u8], inputs: &[TensorSpec]) -> Result<DataSet, Problem> {
        let source = Source::Files([(inputs[0].name.clone(), self.file(name, content))].into());
        Files::read(&source)?.unwrap().fit(inputs, &mut BTreeMap::new(), &BTreeMap::new())
    }
}

fn floats(raw: &[u8]) -> Vec<f32> {
    raw.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

#[test]
fn what_numpy_wrote_is_read_stored_and_deflated() {
    let fixtures: [(&[u8], [&str; 3]); 2] = [
        (include_bytes!("fixtures/stored.npz"), ["one", "two two", ""]),
        (include_bytes!("fixtures/deflated.npz"), ["eins", "zwei", "größe"]),
    ];
    let inputs = [spec("x", Datatype::Fp32, &[None, Some(4)]), spec("words", Datatype::Bytes, &[None])];
    for (file, words) in fixtures {
        let path = Folder::new();
        let source = Source::Archive(path.file("a.npz", file));
        let data = Files::read(&source).unwrap().unwrap().fit(&inputs, &mut BTreeMap::new(), &BTreeMap::new()).unwrap();
        let x = data.contents(&tensor("x", Datatype::Fp32, &[2, 4]), 1).unwrap().unwrap();
        assert_eq!(floats(&x), [8.0, 9.0, 10.0, 11.0, 0.0, 1.0, 2.0, 3.0], "items 2 and, again, 0");
        let got = data.contents(&tensor("words", Datatype::Bytes, &[3]), 0).unwrap().unwrap();
        let expected: Vec<u8> =
            words.iter().flat_map(|w| (w.len() as u32).to_le_bytes().into_iter().chain(w.bytes())).collect();
        assert_eq!(got, expected);
        let one = data.contents(&tensor("words", Datatype::Bytes, &[1]), 1).unwrap().unwrap();
        assert_eq!(&one[4..], words[1].as_bytes());
    }
}

#[test]
fn every_numeric_type_comes_as_npy_and_as_raw_elements() {
    let numpy = ["|b1", "|u1", "<u2", "<u4", "<u8", "|i1", "<i2", "<i4", "<i8", "<f2", "<V2", "<f4", "<f8"];
    let (folder, types) = (Folder::new(), Datatype::ALL.iter().filter(|dtype| dtype.size().is_some()));
    for (&dtype, descr) in types.zip(numpy) {
        let raw: Vec<u8> = (0..6 * dtype.size().unwrap()).map(|i| i as u8 & 1).collect();
        let inputs = [spec("x", dtype, &[None, Some(2)])];
        let from_npy = folder.fit("a.npy", &npy(descr, "(3, 2)", &raw), &inputs).unwrap();
        let from_raw = folder.fit("a.bin", &raw, &inputs).unwrap();
        assert_eq!(from_npy, from_raw, "{dtype}");
        assert_eq!(from_npy.contents(&tensor("x", dtype, &[3, 2]), 5).unwrap().unwrap(), raw);
    }
}

#[test]
fn an_input_without_a_batch_axis_is_sent_whole_and_open_axes_come_from_the_data() {
    let folder = Folder::new();
    let inputs = [spec("scale", Datatype::Fp64, &[]), spec("ids", Datatype::Int64, &[None, None])];
    let files = Source::Files(BTreeMap::from([
        ("scale".to_owned(), folder.file("scale.bin", &1.5f64.to_le_bytes())),
        ("ids".to_owned(), folder.file("ids.npy", &npy("<i8", "(1, 5)", &[0; 40]))),
    ]));
    let mut shapes = BTreeMap::new();
    let data = Files::read(&files).unwrap().unwrap().fit(&inputs, &mut shapes, &BTreeMap::new()).unwrap();
    assert_eq!(shapes, BTreeMap::from([("ids".to_owned(), vec![vec![1, 5]])]));
    let whole = data.contents(&tensor("scale", Datatype::Fp64, &[]), 7).unwrap().unwrap();
    assert_eq!(whole, 1.5f64.to_le_bytes().as_slice());
    assert_eq!(data.contents(&tensor("mask", Datatype::Int64, &[1, 5]), 0).unwrap(), None, "random data is another's");
}

#[test]
fn it_travels_whole() {
    let inputs = [spec("x", Datatype::Int32, &[None, Some(2)])];
    let data = Folder::new().fit("x.bin", &[1; 16], &inputs).unwrap();
    let (artifact, bytes) = data.encode();
    assert_eq!((artifact.format, artifact.bytes), (Format::Data, bytes.len() as u64));
    assert_eq!(DataSet::decode(bytes.clone().into()).unwrap(), data);
    assert!(DataSet::decode(Bytes::from(bytes).slice(..20)).is_err());
}

#[test]
fn what_does_not_fit_says_what_was_given_what_is_taken_and_what_to_do() {
    let folder = Folder::new();
    let images = [spec("x", Datatype::Fp32, &[None, Some(2)])];
    let big_endian = npy(">f4", "(1, 2)", &[0; 8]);
    let fortran = String::from_utf8_lossy(&npy("<f4", "(1, 2)", b"")).replace("False", "True ");
    let fortran = [&b"\x93"[..], &fortran.as_bytes()[3..], &[0; 8]].concat();
    let cases: [(&str, &[u8], &str, &str); 12] = [
        ("a.npy", &npy("<f8", "(1, 2)", &[0; 16]), "takes FP32 [n, 2]", "astype(\"float32\")"),
        ("a.npy", &npy("<f4", "(2, 3)", &[0; 24]), "the data has shape [2, 3]", "np.stack"),
        ("a.npy", &npy("<f4", "(2,)", &[0; 8]), "the data has shape [2]", "np.stack"),
        ("a.npy", &npy("<f4", "(0, 2)", b""), "empty", ""),
        ("a.npy", &npy("<f4", "(1, 2)", &[0; 7]), "do not fill shape", ""),
        ("a.npy", &npy("<c8", "(1, 2)", &[0; 16]), "'<c8' are not supported", ""),
        ("a.npy", &big_endian, "big-endian", ""),
        ("a.npy", &fortran, "Fortran order", ""),
        ("a.npy", b"PNG", "not a .npy file", ""),
        ("a.npy", b"\x93NUMPY\x01\x00\xff\xff{", "cut off", ""),
        ("a.bin", &[0; 12], "2 elements an item; the raw data has 3", "whole items"),
        ("a.bin", &[0; 10], "no multiple of 4", "little-endian"),
    ];
    for (name, content, why, hint) in cases {
        let problem = folder.fit(name, content, &images).unwrap_err();
        assert_eq!(problem.field.as_deref(), Some("data"));
        assert!(problem.message.contains(why), "{problem} should say {why}");
        assert!(problem.hint.as_deref().unwrap_or_default().contains(hint), "{problem:?} should hint at {hint}");
    }
    let text = [spec("t", Datatype::Bytes, &[None])];
    assert!(folder.fit("t.bin", &[9, 0, 0, 0, 1], &text).unwrap_err().message.contains("four-byte length"));
    let open = [spec("x", Datatype::Fp32, &[None, None])];
    assert!(folder.fit("x.bin", &[0; 8], &open).unwrap_err().hint.unwrap().contains("--shape x=1"));
}

#[test]
fn files_that_are_no_test_data_are_named() {
    let folder = Folder::new();
    let path = folder.file("b.npz", b"not a zip");
    let read = |source: &Source| Files::read(source).unwrap_err();
    assert!(read(&Source::Archive(path.clone())).message.contains("b.npz: not an .npz file"));
    assert!(read(&Source::Files([("x".into(), path)].into())).hint.unwrap().contains("--data"));
    assert!(read(&Source::Archive(folder.0.path().join("none.npz"))).message.contains("none.npz"));
    let mut damaged = include_bytes!("fixtures/deflated.npz").to_vec();
    damaged[80] ^= 0xff;
    let damaged = Source::Archive(folder.file("c.npz", &damaged));
    assert!(read(&damaged).message.contains("damaged"), "{}", read(&damaged));
    let whole = Source::Archive(folder.file("d.npz", include_bytes!("fixtures/stored.npz")));
    let other = [spec("y", Datatype::Fp32, &[None, Some(4)])];
    let unknown =
        Files::read(&whole).unwrap().unwrap().fit(&other, &mut BTreeMap::new(), &BTreeMap::new()).unwrap_err();
    assert!(unknown.message.contains("no input") && unknown.hint.unwrap().contains("inputs are y"));
}

#[test]
fn a_request_names_it_in_three_ways() {
    let read = |json: &str| serde_json::from_str::<Source>(json).unwrap();
    assert_eq!(read(r#""a.npz""#), Source::Archive("a.npz".into()));
    assert_eq!(read(r#"{"x":"a.npy"}"#), Source::Files([("x".into(), "a.npy".into())].into()));
    let stored = read(r#"{"format":"data","sha256":"ab","bytes":3}"#);
    assert!(matches!(stored, Source::Stored(ArtifactRef { format: Format::Data, bytes: 3, .. })), "{stored:?}");
}

#[test]
fn literals_and_ranges_fill_whatever_shape_and_travel_with_arrays() {
    let inputs = [
        spec("x", Datatype::Fp32, &[None, Some(2)]),
        TensorSpec { name: "rate".into(), dtype: Datatype::Int64, shape: vec![] },
        spec("ids", Datatype::Int32, &[None, Some(3)]),
    ];
    let folder = Folder::new();
    let files = [("x", folder.file("x.bin", &[0; 16])), ("rate", "8000".into()), ("ids", "5..9".into())];
    let source = Source::Files(files.map(|(name, path)| (name.to_owned(), path)).into());
    let mut shapes = BTreeMap::new();
    let data = Files::read(&source).unwrap().unwrap().fit(&inputs, &mut shapes, &BTreeMap::new()).unwrap();
    let data = DataSet::decode(data.encode().1.into()).unwrap();
    assert!(data.has("x") && data.fill("x").is_none() && data.has("rate") && data.has("ids"));
    let rate = tensor("rate", Datatype::Int64, &[]);
    assert_eq!(data.fill("rate").unwrap().contents(&rate, || 0.0), 8000i64.to_le_bytes().to_vec());
    assert_eq!(data.fill("ids"), Some(&Fill::Range(5.0, 9.0)));
    let wrong = Source::Files([("ids".to_owned(), "0.5".into())].into());
    let problem = Files::read(&wrong).unwrap().unwrap().fit(&inputs, &mut shapes, &BTreeMap::new()).unwrap_err();
    assert!(problem.field.as_deref() == Some("data") && problem.message.contains("takes INT32, not 0.5"), "{problem}");
}

#[test]
fn items_are_counted_on_the_axis_that_is_the_batch() {
    let state = TensorSpec {
        name: "state".into(),
        dtype: Datatype::Uint8,
        shape: vec![Dim::Fixed(2), Dim::Dynamic("batch".into()), Dim::Fixed(2)],
    };
    let folder = Folder::new();
    let raw: Vec<u8> = (0..12).collect();
    let data = folder.fit("a.npy", &npy("|u1", "(2, 3, 2)", &raw), std::slice::from_ref(&state)).unwrap();
    let sent = data.contents(&tensor("state", Datatype::Uint8, &[2, 2, 2]), 1).unwrap().unwrap();
    assert_eq!(sent, vec![4, 5, 0, 1, 10, 11, 6, 7], "items 2 and, again, 0, of both layers");
    let refused = folder.fit("a.npy", &npy("|u1", "(3, 3, 2)", &[0; 18]), &[state]).unwrap_err();
    assert!(refused.message.contains("its axis 1 counting items"), "{refused}");
}

#[test]
fn lengths_that_the_data_sets_are_not_its_number_of_items() {
    let inputs = [spec("x", Datatype::Fp32, &[None, None])];
    let folder = Folder::new();
    let source = Source::Files([("x".into(), folder.file("a.npy", &npy("<f4", "(3, 2)", &[0; 24])))].into());
    let mut shapes = BTreeMap::new();
    Files::read(&source).unwrap().unwrap().fit(&inputs, &mut shapes, &BTreeMap::new()).unwrap();
    assert_eq!(shapes["x"], [vec![1, 2]]);
}

#[test]
fn files_that_are_no_arrays_are_refused_as_such() {
    let folder = Folder::new();
    let bytes = [spec("x", Datatype::Uint8, &[None, Some(1)])];
    let halves = [spec("x", Datatype::Fp16, &[None, Some(1)])];
    for (name, content, inputs, what) in [
        ("a.bin", &b"\x89PNG\r\n\x1a\n"[..], &bytes, "a PNG picture"),
        ("cat.jpg", b"whatever", &bytes, "a picture"),
        ("rows.csv", b"1,2\n", &bytes, "a table of text"),
        ("a.bin", b"RIFF....WAVE", &bytes, "a RIFF file"),
        ("notes", b"one two three four\n.", &halves, "text, not an array"),
    ] {
        let problem = folder.fit(name, content, inputs).unwrap_err();
        assert!(problem.message.contains(what) && problem.hint.is_some(), "{name}: {problem}");
    }
    assert!(folder.fit("text.bin", b"one two three four\n.", &bytes).is_ok(), "bytes may be those of a text");
}
