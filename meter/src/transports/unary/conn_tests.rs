//! A connection against frames made by hand.

use super::super::stream::MAX_RESPONSE;
use super::*;
use std::net::{TcpListener, TcpStream};

const CALL: &[u8] = b"\0\0\0\0\x02hi";

/// A connection whose preface and settings are out of the way.
fn conn(settings: &[(u16, u32)]) -> Conn {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let head = Arc::new(RequestHead::new("/a.B/C", "host:1", false));
    let mut conn = Conn::new(Socket::plain(socket).unwrap(), head);
    assert!(!conn.has_room(), "nothing is sent before the server's settings are known");
    take(&mut conn, &settings_frame(settings)).unwrap();
    conn.out = Outbox::default();
    conn
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Outbox::default();
    put_header(&mut out, payload.len(), kind, flags, stream);
    out.put(payload);
    out.tail().to_vec()
}

fn settings_frame(settings: &[(u16, u32)]) -> Vec<u8> {
    let entry = |&(id, value): &(u16, u32)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
    frame(kind::SETTINGS, 0, 0, &settings.iter().flat_map(entry).collect::<Vec<u8>>())
}

fn take(conn: &mut Conn, bytes: &[u8]) -> Result<Vec<Done>, Failure> {
    let mut done = Vec::new();
    conn.take(bytes, &mut done).map(|()| done)
}

fn send(conn: &mut Conn, token: usize) -> u32 {
    conn.send(token, &Bytes::from_static(CALL), true)
}

/// The frames that wait to be written: kind, flags, stream, payload.
fn sent(conn: &mut Conn) -> Vec<(u8, u8, u32, Vec<u8>)> {
    let (out, mut frames) = (std::mem::take(&mut conn.out), Vec::new());
    let mut rest = out.tail();
    while let Some((header, tail)) = rest.split_at_checked(HEADER) {
        let (payload, after) = tail.split_at((be32(header) >> 8) as usize);
        frames.push((header[3], header[4], be32(&header[5..]), payload.to_vec()));
        rest = after;
    }
    frames
}

/// A whole good answer, its blocks without any table.
fn answer(stream: u32) -> Vec<u8> {
    let head = frame(kind::HEADERS, END_HEADERS, stream, &[0x88]);
    let data = frame(kind::DATA, 0, stream, b"\0\0\0\0\x02ok");
    let tail = frame(kind::HEADERS, END_HEADERS | END_STREAM, stream, b"\0\x0bgrpc-status\x010");
    [head, data, tail].concat()
}

#[test]
fn an_answer_without_a_status_is_none() {
    let mut conn = conn(&[]);
    let stream = send(&mut conn, 1);
    let head = frame(kind::HEADERS, END_HEADERS, stream, &[0x88]);
    let data = frame(kind::DATA, 0, stream, b"\0\0\0\0\x02ok");
    let tail = frame(kind::HEADERS, END_HEADERS | END_STREAM, stream, b"");
    let done = take(&mut conn, &[head, data, tail].concat()).unwrap();
    assert!(done[0].result.is_err(), "{:?}", done[0].result);
}

#[test]
fn an_answer_may_come_in_any_pieces() {
    let whole = [answer(1), answer(3)].concat();
    for piece in [1, 2, 7, 9, whole.len()] {
        let mut conn = conn(&[]);
        send(&mut conn, 10);
        send(&mut conn, 11);
        let mut done = Vec::new();
        whole.chunks(piece).for_each(|bytes| done.extend(take(&mut conn, bytes).unwrap()));
        let seen: Vec<_> = done.iter().map(|d| (d.token, d.result, d.message.as_deref())).collect();
        assert_eq!(seen, [(10, Ok(()), Some(&b"ok"[..])), (11, Ok(()), Some(b"ok"))], "pieces of {piece}");
    }
}

#[test]
fn headers_use_the_servers_table_only_where_it_is_large_enough() {
    let mut usual = conn(&[]);
    let mut small = conn(&[(1, 100)]);
    let blocks = |conn: &mut Conn| {
        send(conn, 0);
        send(conn, 1);
        let frames = sent(conn).into_iter();
        frames.filter(|f| f.0 == kind::HEADERS).map(|f| f.3).collect::<Vec<_>>()
    };
    let head = usual.request.clone();
    assert_eq!(blocks(&mut usual), [head.first.clone(), head.again.clone()]);
    assert_eq!(blocks(&mut small), [[&[0x20], &head.literal[..]].concat(), head.literal.clone()]);
    // A table that is made smaller loses what was put there.
    take(&mut usual, &settings_frame(&[(1, 0)])).unwrap();
    assert!(usual.is_going_away() && !usual.is_spent());
    // One that grows after the first call is not begun with.
    take(&mut small, &settings_frame(&[(1, 4096)])).unwrap();
    assert_eq!(blocks(&mut small)[0], head.literal);
}

#[test]
fn a_server_says_how_many_calls_and_bytes_it_takes() {
    let mut conn = conn(&[(3, 2), (4, 3)]);
    send(&mut conn, 0);
    assert!(conn.has_room());
    send(&mut conn, 1);
    assert!(!conn.has_room());
    let data = |conn: &mut Conn| sent(conn).into_iter().filter(|f| f.0 == kind::DATA).collect::<Vec<_>>();
    let first = data(&mut conn);
    assert_eq!(first, [(kind::DATA, 0, 1, CALL[..3].to_vec()), (kind::DATA, 0, 3, CALL[..3].to_vec())]);
    take(&mut conn, &frame(kind::WINDOW_UPDATE, 0, 3, &100u32.to_be_bytes())).unwrap();
    assert_eq!(data(&mut conn), [(kind::DATA, END_STREAM, 3, CALL[3..].to_vec())]);
    take(&mut conn, &answer(3)).unwrap();
    assert!(conn.has_room());
}

#[test]
fn goaway_fails_what_the_server_did_not_take_and_lets_the_rest_end() {
    let mut conn = conn(&[]);
    for token in 0..3 {
        send(&mut conn, token);
    }
    let done = take(&mut conn, &frame(kind::GOAWAY, 0, 0, &[0, 0, 0, 3, 0, 0, 0, 0])).unwrap();
    assert_eq!(done.iter().map(|d| (d.token, d.result)).collect::<Vec<_>>(), [(2, Err(Failure::Goaway))]);
    assert!(!conn.has_room() && !conn.is_spent());
    let done = take(&mut conn, &[answer(1), answer(3)].concat()).unwrap();
    assert!(done.iter().all(|d| d.result.is_ok()) && done.len() == 2 && conn.is_spent() && !conn.is_unused());
}

#[test]
fn calls_of_a_lost_connection_failed_only_where_the_server_may_have_begun_them() {
    let lost = |conn: &mut Conn| {
        let mut done = Vec::new();
        conn.fail_all(Failure::Reset, &mut done);
        done.sort_by_key(|d| d.token);
        done.into_iter().map(|d| d.result.unwrap_err()).collect::<Vec<_>>()
    };
    let mut conn = conn(&[]);
    send(&mut conn, 0);
    conn.out.write(&mut std::io::sink()).unwrap();
    send(&mut conn, 1);
    assert!(conn.has_begun_any());
    assert_eq!(lost(&mut conn), [Failure::Reset, Failure::NotSent]);
    send(&mut conn, 2);
    assert!(!conn.has_begun_any() && Failure::NotSent.is_unbegun());
}

#[test]
fn a_refused_stream_was_not_begun_and_another_reset_may_have_been() {
    let mut conn = conn(&[]);
    let ended = [7u32, 8].map(|code| {
        let stream = send(&mut conn, 0);
        take(&mut conn, &frame(kind::RST_STREAM, 0, stream, &code.to_be_bytes())).unwrap()[0].result.unwrap_err()
    });
    assert_eq!(ended, [Failure::RefusedStream, Failure::Reset]);
}

#[test]
fn what_breaks_the_protocol_ends_the_connection() {
    let refused = |bytes: &[u8]| {
        let mut conn = conn(&[]);
        send(&mut conn, 0);
        take(&mut conn, bytes).unwrap_err()
    };
    let mut large = frame(kind::HEADERS, END_HEADERS, 1, &[]);
    large[..3].copy_from_slice(&(MAX_FRAME as u32 + 1).to_be_bytes()[1..]);
    assert_eq!(refused(&large), Failure::Protocol);
    // A field out of a table that we said we do not keep.
    assert_eq!(refused(&frame(kind::HEADERS, END_HEADERS, 1, &[0xbe])), Failure::Protocol);
    // A block in pieces, and another frame between them.
    let begun = frame(kind::HEADERS, 0, 1, &[0x88]);
    for between in [frame(kind::PING, 0, 0, &[0; 8]), frame(kind::DATA, 0, 1, b"\0\0\0\0\x02ok")] {
        assert_eq!(refused(&[begun.clone(), between].concat()), Failure::Protocol);
    }
    // More headers than are accepted, in one frame or in several.
    let half = vec![0x88; MAX_BLOCK / 2 + 1];
    assert_eq!(refused(&frame(kind::HEADERS, END_HEADERS, 1, &half.repeat(2))), Failure::Protocol);
    let pieces = [frame(kind::HEADERS, 0, 1, &half), frame(kind::CONTINUATION, END_HEADERS, 1, &half)];
    assert_eq!(refused(&pieces.concat()), Failure::Protocol);
    assert_eq!(refused(&frame(kind::DATA, PADDED, 1, &[9, 0])), Failure::Protocol);
    assert_eq!(refused(&frame(kind::GOAWAY, 0, 0, &[0; 4])), Failure::Protocol);
}

#[test]
fn an_answer_that_is_too_large_is_given_up() {
    let mut conn = conn(&[]);
    conn.send(0, &Bytes::from_static(CALL), false);
    conn.out = Outbox::default();
    conn.streams.get_mut(&1).unwrap().received = MAX_RESPONSE - 1;
    let done = take(&mut conn, &frame(kind::DATA, 0, 1, b"ok")).unwrap();
    assert_eq!(done[0].result, Err(Failure::TooLarge));
    assert_eq!(sent(&mut conn), [(kind::RST_STREAM, 0, 1, CANCEL.to_be_bytes().to_vec())]);
    // What was on its way is read past.
    assert!(take(&mut conn, &frame(kind::DATA, END_STREAM, 1, b"more")).unwrap().is_empty());
}

#[test]
fn a_status_that_grpc_does_not_have_is_unknown() {
    let ended = |status: &str| {
        let mut conn = conn(&[]);
        let stream = send(&mut conn, 0);
        let block = [&[0x88, 0, 11][..], b"grpc-status", &[status.len() as u8], status.as_bytes()].concat();
        let frame = frame(kind::HEADERS, END_HEADERS | END_STREAM, stream, &block);
        take(&mut conn, &frame).unwrap()[0].result.unwrap_err().name()
    };
    assert_eq!(["16", "17", "4294967295"].map(ended), ["grpc_unauthenticated", "grpc_unknown", "grpc_unknown"]);
}
