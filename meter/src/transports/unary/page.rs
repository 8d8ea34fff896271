//! Descriptions of answers that are not gRPC: a web page, a compressed message, HTTP/1, TLS.

use super::hpack::{ResponseHead, in_a_line};
use crate::{
    endpoint::Trouble,
    record::{Failure, Lost},
};

/// Bytes of a page that are kept.
pub(super) const MAX_PAGE: usize = 4 << 10;
/// Answers of nginx, Go and Apache to a plain request on a TLS port.
const WANTS_TLS: [&str; 3] = ["HTTPS PORT", "HTTPS SERVER", "SSL-ENABLED SERVER PORT"];
/// Characters of a page's text that an error message quotes.
const MAX_TEXT: usize = 120;

/// A page or another answer that is not gRPC's.
pub(super) fn of_page(head: &ResponseHead, page: &[u8]) -> String {
    let status = head.http_status.map_or_else(|| "no HTTP status".to_owned(), |status| format!("HTTP status {status}"));
    let kind = head.foreign_type.as_deref().map(|kind| format!(", content type {kind}")).unwrap_or_default();
    let words = text(page);
    let said = if words.is_empty() { String::new() } else { format!(": '{words}'") };
    format!("what answers is not gRPC: {status}{kind}{said}")
}

/// A message that is compressed.
pub(super) fn of_compressed(head: &ResponseHead) -> String {
    let how = head.encoding.as_deref().map(|how| format!(" with {how}")).unwrap_or_default();
    format!("the answer is compressed{how}, which was not asked for")
}

/// The loss of a connection to a port that answered with these bytes, which are not HTTP/2.
pub(super) fn lost_to(bytes: &[u8]) -> Lost {
    match foreign(bytes) {
        Foreign::Tls => Failure::Tls(Trouble::PlainToTls).into(),
        Foreign::Other(words) => Lost::because(Failure::Protocol, words),
    }
}

/// An answer that is not HTTP/2.
enum Foreign {
    /// A TLS record, or a page that says that the port wants TLS.
    Tls,
    /// Another answer, in words.
    Other(String),
}

/// The first bytes that came from a port, which are no HTTP/2.
fn foreign(bytes: &[u8]) -> Foreign {
    // A record of TLS begins with its content type (20 to 23) and version 3.x (RFC 8446, 5.1).
    if let [20..=23, 3, ..] = bytes {
        return Foreign::Tls;
    }
    let Some(rest) = bytes.strip_prefix(b"HTTP/1.") else {
        let page = if bytes.trim_ascii_start().starts_with(b"<") { text(bytes) } else { String::new() };
        let said = if page.is_empty() { page } else { format!(": '{page}'") };
        return Foreign::Other(format!("what it says is not HTTP/2{said}"));
    };
    let response = String::from_utf8_lossy(rest.get(1..).unwrap_or_default());
    let shouted = response.to_ascii_uppercase();
    if WANTS_TLS.iter().any(|words| shouted.contains(words)) {
        return Foreign::Tls;
    }
    let status = in_a_line(response.lines().next().unwrap_or_default().trim());
    let body = response.split_once("\r\n\r\n").map(|(_, body)| text(body.as_bytes())).filter(|body| !body.is_empty());
    let said = body.map(|body| format!(", '{body}'")).unwrap_or_default();
    Foreign::Other(format!("it answers in HTTP/1, not HTTP/2, as a REST port does: {status}{said}"))
}

/// The first words of a page, without its markup; its title only where there are no others.
fn text(page: &[u8]) -> String {
    let body = text_without(page, &["script", "style", "title"]);
    if body.is_empty() { text_without(page, &["script", "style"]) } else { body }
}

fn text_without(page: &[u8], elements: &[&str]) -> String {
    let page = String::from_utf8_lossy(page);
    let mut words = String::new();
    let mut rest = &*page;
    while let Some((before, tag)) = rest.split_once('<') {
        words.push_str(before);
        words.push(' ');
        let name = tag.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default().to_ascii_lowercase();
        let end = match elements.contains(&name.as_str()) {
            true => tag.find(&format!("</{name}")).map(|at| at + 2 + name.len()),
            false => Some(0),
        };
        rest = end.and_then(|end| tag[end..].split_once('>')).map_or("", |(_, after)| after);
    }
    words.push_str(rest);
    let words: Vec<&str> = words.split_whitespace().collect();
    let line = in_a_line(&words.join(" "));
    match line.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_told_by_its_first_words() {
        let page = b"<!DOCTYPE html><html><head><title>502 Bad Gateway</title><style>h1 { x: y }</style></head>\n\
            <body><h1>502 Bad\nGateway</h1><hr>nginx</body>";
        let head =
            ResponseHead { http_status: Some(502), foreign_type: Some("text/html".into()), ..ResponseHead::default() };
        let said = of_page(&head, page);
        assert_eq!(said, "what answers is not gRPC: HTTP status 502, content type text/html: '502 Bad Gateway nginx'");
        assert_eq!(text(b"a < b"), "a");
        assert_eq!(text("w\u{1b}[1m ".repeat(200).as_bytes()).chars().count(), MAX_TEXT + 1);
        assert_eq!((text(b""), text(b"<script>while(1)")), (String::new(), String::new()));
    }

    #[test]
    fn what_is_no_http2_is_recognized_by_its_first_bytes() {
        let said = |bytes: &[u8]| match foreign(bytes) {
            Foreign::Tls => "TLS".to_owned(),
            Foreign::Other(words) => words,
        };
        assert_eq!(said(&[0x15, 3, 1, 0, 2, 2, 0x46]), "TLS");
        let nginx =
            b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\n\r\n<html>The plain HTTP request was sent to HTTPS port";
        assert_eq!(said(nginx), "TLS");
        let plain = b"HTTP/1.1 404 Not Found\r\ncontent-type: text/html\r\n\r\n<h1>Nothing here</h1>";
        assert_eq!(said(plain), "it answers in HTTP/1, not HTTP/2, as a REST port does: 404 Not Found, 'Nothing here'");
        assert_eq!(said(b"<html><title>Error response</title>"), "what it says is not HTTP/2: 'Error response'");
        assert_eq!(said(b"220 hi"), "what it says is not HTTP/2");
    }
}
