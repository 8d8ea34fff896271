//! Addresses as they may be shown: in messages, logs and `--dump-config`.

/// What stands in the place of a secret.
pub const HIDDEN: &str = "***";

/// A URL with `***` in the place of user and password, and without its options. Errs on the side of hiding: a
/// password that was not escaped may hold any sign.
pub fn redact(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").map_or(("", url), |(_, rest)| (&url[..url.len() - rest.len()], rest));
    let shown = rest.rsplit_once('@').map_or_else(|| rest.to_owned(), |(_, host)| format!("{HIDDEN}@{host}"));
    format!("{scheme}{}", shown.split('?').next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::redact;

    #[test]
    fn neither_user_nor_password_nor_options_are_shown() {
        assert_eq!(redact("amqp://bob:s@cr/et?@host:5672/%2f?heartbeat=3"), "amqp://***@host:5672/%2f");
        assert_eq!(redact("mongodb://a,b/modelmeter?password=x"), "mongodb://a,b/modelmeter");
        assert_eq!(redact("bob:secret@host"), "***@host");
        assert_eq!(redact("hub.sqlite"), "hub.sqlite");
    }
}
