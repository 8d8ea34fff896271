use super::*;
use crate::model::Datatype;

fn dim(text: &str) -> Dim {
    text.parse().map_or_else(|_| Dim::Dynamic(if text == "?" { String::new() } else { text.into() }), Dim::Fixed)
}

fn input(name: &str, shape: &[&str]) -> TensorSpec {
    TensorSpec { name: name.into(), dtype: Datatype::Fp32, shape: shape.iter().map(|text| dim(text)).collect() }
}

fn stated(said: &[(&str, Option<u32>)]) -> BTreeMap<String, Stated> {
    said.iter().map(|(name, axis)| ((*name).to_owned(), Stated(*axis))).collect()
}

fn shapes(said: &[(&str, &[u64])]) -> BTreeMap<String, Vec<u64>> {
    said.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect()
}

fn lists(said: &[(&str, &[u64])]) -> BTreeMap<String, Vec<Vec<u64>>> {
    said.iter().map(|(name, shape)| ((*name).to_owned(), vec![shape.to_vec()])).collect()
}

#[test]
fn the_axis_named_so_is_the_batch_else_an_open_first_one() {
    let axis = |shape: &[&str]| {
        let inputs = [input("x", shape)];
        let batch = Batch::of(&inputs, &BTreeMap::new()).unwrap();
        (batch.axis(0), batch.sizes(&[]))
    };
    let open = DEFAULT_SIZES.to_vec();
    assert_eq!(axis(&["frames", "batch_size", "80"]), (Some(1), open.clone()));
    assert_eq!(axis(&["2", "N", "64"]), (Some(1), open.clone()));
    assert_eq!(axis(&["?", "80"]), (Some(0), open.clone()));
    assert_eq!(axis(&["frames", "80"]), (Some(0), open.clone()));
    assert_eq!(axis(&["batch", "batch_of_words"]), (Some(0), open));
    assert_eq!(axis(&["1", "80"]), (None, vec![1]), "what there is, is measured");
    assert_eq!(axis(&["16", "80"]), (None, vec![16]));
    assert_eq!(axis(&[]), (None, vec![1]));
}

#[test]
fn an_axis_called_as_anothers_batch_is_the_batch_too() {
    let inputs = [input("audio", &["clips", "512"]), input("state", &["2", "clips", "64"]), input("rate", &[])];
    let batch = Batch::of(&inputs, &BTreeMap::new()).unwrap();
    let sent = batch.inputs(&BTreeMap::new(), 3).unwrap();
    assert_eq!(sent.iter().map(|t| t.shape.clone()).collect::<Vec<_>>(), [vec![3, 512], vec![2, 3, 64], vec![]]);
    assert_eq!(sent.iter().map(|t| t.batch_axis).collect::<Vec<_>>(), [Some(0), Some(1), None]);
    let [note] = batch.notes(&BTreeMap::new(), &[1]).try_into().unwrap();
    assert!(note.contains("'state' is axis 1"), "{note}");
}

#[test]
fn first_axes_of_several_fixed_lengths_do_not_refuse_each_other() {
    let inputs = [input("picture", &["1", "256"]), input("where", &["1", "points", "2"]), input("size", &["2"])];
    let batch = Batch::of(&inputs, &BTreeMap::new()).unwrap();
    assert_eq!(batch.sizes(&[]), [1]);
    let sent = batch.inputs(&shapes(&[("points", &[5])]), 1).unwrap();
    assert_eq!(sent[1].shape, [1, 5, 2]);
    assert_eq!(sent[2].shape, [2]);
    let more = batch.inputs(&BTreeMap::new(), 2).unwrap_err();
    assert!(more.message.contains("fixed at 1") && more.hint.unwrap().contains("--batch-axis"));
}

#[test]
fn a_user_says_which_axis_it_is() {
    let inputs = [input("x", &["?", "?", "16"])];
    let batch = Batch::of(&inputs, &stated(&[("x", Some(1))])).unwrap();
    assert_eq!(batch.inputs(&shapes(&[("x", &[7, 1, 16])]), 4).unwrap()[0].shape, [7, 4, 16]);
    let none = Batch::of(&inputs, &stated(&[("x", None)])).unwrap();
    assert_eq!(none.sizes(&[]), [1]);
    assert!(none.inputs(&shapes(&[("x", &[7, 9, 16])]), 2).unwrap_err().message.contains("no batch axis"));
    for (said, why) in [(("y", Some(0)), "no input 'y'"), (("x", Some(3)), "no axis 3")] {
        let problem = Batch::of(&inputs, &stated(&[said])).unwrap_err();
        assert!(problem.message.contains(why) && problem.hint.is_some(), "{problem}");
    }
    let json = serde_json::to_string(&stated(&[("a", Some(2)), ("b", None)])).unwrap();
    assert_eq!(json, r#"{"a":2,"b":"none"}"#);
    assert_eq!(
        serde_json::from_str::<BTreeMap<String, Stated>>(&json).unwrap(),
        stated(&[("a", Some(2)), ("b", None)])
    );
    assert!(serde_json::from_str::<Stated>(r#""first""#).is_err());
}

#[test]
fn a_stated_length_is_never_replaced_without_a_word() {
    let inputs = [input("x", &["frames", "80"])];
    let batch = Batch::of(&inputs, &BTreeMap::new()).unwrap();
    let check = |length: u64, sizes: &[u32]| batch.check_shapes(&lists(&[("x", &[length, 80])]), sizes);
    let refused = check(30, &[1, 2]).unwrap_err();
    assert!(refused.message.contains("has 30 on axis 0") && refused.message.contains("1, 2"), "{refused}");
    assert!(refused.hint.unwrap().contains("--batch-axis x=none"));
    assert!(check(1, &[1, 2]).is_ok() && check(2, &[1, 2]).is_ok() && check(30, &[30]).is_ok());
    assert_eq!(batch.notes(&lists(&[("x", &[2, 80])]), &[1, 2]).len(), 1);
    assert!(batch.notes(&lists(&[("x", &[1, 80])]), &[1, 2]).is_empty());
    let fixed = [input("x", &["8", "80"])];
    let fixed = Batch::of(&fixed, &BTreeMap::new()).unwrap();
    assert!(fixed.check_shapes(&lists(&[("x", &[1, 80])]), &[8]).is_ok());
    assert!(fixed.check_shapes(&lists(&[("x", &[4, 80])]), &[8]).unwrap_err().message.contains("does not fit"));
}

#[test]
fn a_named_axis_is_filled_wherever_it_occurs() {
    let inputs = [
        input("ids", &["batch", "words"]),
        input("mask", &["batch", "past + words"]),
        input("cache", &["batch", "4", "past", "8"]),
    ];
    let batch = Batch::of(&inputs, &BTreeMap::new()).unwrap();
    let given = [("words", &[6][..]), ("past", &[0])];
    assert!(batch.check_shapes(&lists(&given), &[2]).is_ok());
    let sent = batch.inputs(&shapes(&given), 2).unwrap();
    assert_eq!(sent.iter().map(|t| t.shape.clone()).collect::<Vec<_>>(), [vec![2, 6], vec![2, 6], vec![2, 4, 0, 8]]);
    let open = batch.check_shapes(&lists(&given[..1]), &[2]).unwrap_err();
    assert!(open.message.contains("'mask'") && open.hint.as_ref().unwrap().contains("--shape"), "{open}");
    for (name, shape, why) in [
        ("word", &[6][..], "no input 'word'"),
        ("words", &[1, 6], "one length"),
        ("batch", &[6], "is the batch"),
        ("cache", &[1, 5, 0, 8], "does not fit"),
        ("cache", &[0, 4, 0, 8], "has 0 on axis 0"),
    ] {
        let problem = batch.check_shapes(&lists(&[given[0], given[1], (name, shape)]), &[2]).unwrap_err();
        assert!(problem.message.contains(why), "{name}: {problem}");
    }
}

#[test]
fn an_input_without_a_shape_is_asked_for() {
    let inputs = [TensorSpec { shape: TensorSpec::unshaped(), ..input("x", &[]) }];
    let batch = Batch::of(&inputs, &BTreeMap::new()).unwrap();
    let problem = batch.check_shapes(&BTreeMap::new(), &[1]).unwrap_err();
    assert!(problem.hint.unwrap().contains("--input x:fp32:"), "{}", problem.message);
}

#[test]
fn outputs_have_the_batch_where_their_axes_are_named_so() {
    let inputs = [input("x", &["items", "8"])];
    let batch = Batch::of(&inputs, &BTreeMap::new()).unwrap();
    let outputs = [
        input("scores", &["items", "3"]),
        input("boxes", &["found", "4"]),
        input("states", &["2", "items", "8"]),
        input("silent", &["?", "4"]),
        input("fixed", &["1", "4"]),
    ];
    let expected = [("scores", Some(0)), ("boxes", None), ("states", Some(1))];
    assert_eq!(batch.of_outputs(&outputs), expected.map(|(name, axis)| (name.to_owned(), axis)).into());
}
