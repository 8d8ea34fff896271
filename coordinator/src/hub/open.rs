//! The choice of an adapter by the hub's address.

use super::{Hub, HubError, mongo, sqlite};
use modelmeter_common::redact::redact;
use std::{path::PathBuf, sync::Arc};

/// Opens the hub at `mongodb://…`, `mongodb+srv://…`, `sqlite:PATH` or a plain path.
///
/// # Errors
/// [`HubError::BadUrl`] for another scheme, else what [`mongo::connect`] and [`sqlite::open`] give.
pub async fn open(url: &str) -> Result<Arc<dyn Hub>, HubError> {
    match Address::parse(url)? {
        Address::Mongo => Ok(Arc::new(mongo::connect(url).await?)),
        Address::Sqlite(path) => {
            let opened = tokio::task::spawn_blocking(move || sqlite::open(&path)).await;
            Ok(Arc::new(opened.map_err(|died| HubError::Failed(died.to_string()))??))
        }
    }
}

#[derive(PartialEq, Debug)]
enum Address {
    Mongo,
    Sqlite(PathBuf),
}

impl Address {
    fn parse(url: &str) -> Result<Self, HubError> {
        let bad = |reason: &str| HubError::BadUrl { address: redact(url), reason: reason.to_owned() };
        let path = match url.split_once(':') {
            Some(("mongodb" | "mongodb+srv", _)) => return Ok(Self::Mongo),
            Some(("sqlite", path)) => path.strip_prefix("//").unwrap_or(path),
            Some((scheme, rest)) if rest.starts_with("//") => {
                return Err(bad(&format!("no hub speaks '{scheme}'; mongodb, mongodb+srv and sqlite are known")));
            }
            _ => url,
        };
        if path.is_empty() { Err(bad("it names no file")) } else { Ok(Self::Sqlite(path.into())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_chooses_the_adapter() {
        let path = |url| match Address::parse(url).unwrap() {
            Address::Sqlite(path) => path.display().to_string(),
            Address::Mongo => panic!("{url} is not mongo"),
        };
        assert_eq!(Address::parse("mongodb://h:1/db").unwrap(), Address::Mongo);
        assert_eq!(Address::parse("mongodb+srv://h/db").unwrap(), Address::Mongo);
        assert_eq!(path("sqlite:rel/hub.db"), "rel/hub.db");
        assert_eq!(path("sqlite:///abs/hub.db"), "/abs/hub.db");
        assert_eq!(path("./odd:name.db"), "./odd:name.db");
    }

    #[tokio::test]
    async fn an_unknown_scheme_is_refused_without_its_password() {
        let Err(error) = open("postgres://me:se@cr/et@host/db?password=too").await else { panic!("opened") };
        assert!(matches!(&error, HubError::BadUrl { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("postgres://***@host/db") && text.contains("mongodb"), "{text}");
        assert!(!text.contains("cr/et") && !text.contains("too"), "{text}");
        assert!(matches!(open("sqlite:").await, Err(HubError::BadUrl { .. })));
    }
}
