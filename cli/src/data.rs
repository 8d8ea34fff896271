//! A user's own test data, from the command line to the hub.

use crate::client::Client;
use modelmeter_common::{
    Code, Problem,
    model::{ArtifactRef, Model},
    request::Request,
    testdata::{DataSet, Files, Source},
};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// What `--data` says; none: nothing. What is no file of an input is a literal or range, as the request keeps it too.
///
/// # Errors
/// `invalid_argument` for words that are no `INPUT=FILE`, or an archive beside them.
pub fn source(words: &[String]) -> Result<Option<Source>, Problem> {
    let wrong = |word: &str| {
        Problem::invalid("data", format!("'{word}' does not say which input it is for"))
            .with_hint("--data INPUT=FILE, --data INPUT=16000 or --data INPUT=0..10 for each input, or one --data FILE.npz for all")
    };
    match words {
        [] => Ok(None),
        [archive] if archive.ends_with(".npz") && !archive.contains('=') => Ok(Some(Source::Archive(archive.into()))),
        words => {
            let pair = |word: &String| {
                let (input, file) = word.split_once('=').ok_or_else(|| wrong(word))?;
                Ok((input.to_owned(), PathBuf::from(file)))
            };
            let files: BTreeMap<_, _> = words.iter().map(pair).collect::<Result<_, Problem>>()?;
            if files.len() < words.len() {
                return Err(Problem::invalid("data", "two files were given for the same input")
                    .with_hint("put all items of an input into one file"));
            }
            Ok(Some(Source::Files(files)))
        }
    }
}

/// Reads the request's data and fits it to the model; axes that are open get the data's lengths. None: there is none
/// to read.
///
/// # Errors
/// What does not fit, before anything starts.
pub fn check(request: &mut Request, model: &Model) -> Result<Option<DataSet>, Problem> {
    let files = request.data.as_ref().map_or(Ok(None), Files::read)?;
    files.map(|files| files.fit(&model.inputs, &mut request.shapes, &request.batch_axes)).transpose()
}

/// Puts the data into the hub; gives the words by which a request names it there.
///
/// # Errors
/// `storage` at home, and of the hub.
pub async fn store(data: &DataSet, home: &Path, client: &mut Client) -> Result<Source, Problem> {
    let (artifact, path) = write(data, home)?;
    client.add_artifacts(&[(artifact.clone(), path.as_path())]).await?;
    Ok(Source::Stored(artifact))
}

/// Writes the data where a worker of this home looks for it.
fn write(data: &DataSet, home: &Path) -> Result<(ArtifactRef, PathBuf), Problem> {
    let (artifact, bytes) = data.encode();
    let path = home.join("cache").join(format!("{}.{}", artifact.sha256, artifact.format));
    let fresh = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = fs::create_dir_all(home.join("cache"))
        .and_then(|()| fs::write(&fresh, bytes))
        .and_then(|()| fs::rename(&fresh, &path));
    written
        .map_err(|e| Problem::new(Code::Storage, format!("cannot write {}: {e}", path.display())).with_field("home"))?;
    Ok((artifact, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_for_inputs_and_an_archive_for_all() {
        let of = |words: &[&str]| source(&words.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(of(&[]).unwrap(), None);
        assert_eq!(of(&["all.npz"]).unwrap(), Some(Source::Archive("all.npz".into())));
        let files = [("x".to_owned(), "a.npy".into()), ("y".to_owned(), "b=c.bin".into())];
        assert_eq!(of(&["x=a.npy", "y=b=c.bin"]).unwrap(), Some(Source::Files(files.into())));
        for words in [&["a.npy"][..], &["all.npz", "x=a.npy"], &["x=a", "x=b"]] {
            let problem = of(words).unwrap_err();
            assert!(problem.field.as_deref() == Some("data") && problem.hint.is_some(), "{words:?}");
        }
    }
}
