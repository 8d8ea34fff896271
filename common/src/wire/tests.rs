use super::*;
use crate::{
    RequestId, TaskId,
    load::LoadPoint,
    part::{Final, Metric, Part, Point},
    stats::{Figure, Histogram, percentile::Basis},
};

/// A part, a final and a hint, in hex, as the last build of wire version 2 wrote them.
const VERSION_2: &str = include_str!("golden/v2.txt");
/// The same messages as this build writes them.
const VERSION_3: &str = include_str!("golden/v3.txt");

fn hint() -> Hint {
    Hint { task_id: TaskId(uuid::Uuid::from_u128(7)) }
}

fn golden(file: &str) -> Vec<Vec<u8>> {
    let byte = |line: &str, at: usize| u8::from_str_radix(&line[at..at + 2], 16).unwrap();
    file.lines().map(|line| (0..line.len()).step_by(2).map(|at| byte(line, at)).collect()).collect()
}

#[test]
fn golden_bytes() {
    let hex: String = encode(&hint()).unwrap().iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(
        hex,
        "4d4d5452000300010000002c831892e82a6278fb000000000000002430303030303030302d303030302d303030302d303030302d303030303030303030303037"
    );
}

#[test]
fn both_versions_read_as_the_same_messages() {
    let (old, new) = (golden(VERSION_2), golden(VERSION_3));
    let part: Part = decode(&old[0]).unwrap();
    let last: Final = decode(&old[1]).unwrap();
    assert_eq!(decode::<Hint>(&old[2]).unwrap(), hint());
    assert_eq!((encode(&part).unwrap(), encode(&last).unwrap()), (new[0].clone(), new[1].clone()));
    assert_eq!(decode::<Part>(&new[0]).unwrap(), part);
    assert_eq!(decode::<Final>(&new[1]).unwrap(), last);
    assert_eq!((encode(&hint()).unwrap(), decode::<Hint>(&new[2]).unwrap()), (new[2].clone(), hint()));
    assert_eq!(encode_for_both(&hint()).unwrap(), old[2], "what both versions read is of the earlier one");
}

#[test]
fn what_version_2_does_not_say_is_null_with_a_reason() {
    let Part { attempt, seq, point, .. } = decode(&golden(VERSION_2)[0]).unwrap();
    assert_eq!((attempt, seq, point.requests, point.errors, point.resent), (2, 3, 4, 3, 0));
    let figure = |value: f64| Some(Figure { value, ci95: Some([value * 0.9, value * 1.1]), lower95: None });
    assert_eq!(point.requests_per_s, figure(199.999_999_999_999_97));
    let [median, tail] = &point.percentiles[..] else { panic!("{:?}", point.percentiles) };
    assert_eq!((median.ms, median.basis, median.sure, median.sure_unjoined), (figure(1.0 / 3.0), Basis::Ranks, 25, 25));
    assert!(median.is_bounded() && !tail.is_bounded());
    assert_eq!((tail.q, tail.ms, tail.basis), (99.9, None, Basis::None));
    assert_eq!(
        (point.latency.len(), point.service.as_ref(), point.send_lateness.as_ref()),
        (4, Some(&point.latency), None)
    );
    let host = point.host.unwrap();
    assert_eq!((host.cpu_busy_ratio, host.throttled_ratio, host.speed_range), (0.25, None, None));
    let reasons: Vec<(&str, &str)> = point.unavailable.iter().map(|(path, why)| (&**path, &*why.code)).collect();
    let not_reported = ["host.speed_range", "host.throttled_ratio", "resent"].map(|path| (path, "not_reported"));
    assert_eq!(reasons, [&[("gpu.power_w", "no_gpu")][..], &not_reported].concat());
}

#[test]
fn every_cut_every_flip_and_every_excess_is_refused() {
    let both = [golden(VERSION_2), golden(VERSION_3)].concat();
    for good in both.iter().filter(|bytes| kind(bytes).unwrap() == Kind::Hint) {
        assert_eq!(decode::<Hint>(good).unwrap(), hint());
        for cut in 0..good.len() {
            assert!(decode::<Hint>(&good[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            assert!(decode::<Hint>(&bad).is_err(), "flipped byte {at}");
        }
        let mut long = good.clone();
        long.push(0);
        assert!(decode::<Hint>(&long).is_err());
    }
}

#[test]
fn a_version_is_read_as_what_it_is() {
    // A part of one version under the other's number does not decode, and a version further away is refused by its number.
    for (bytes, version) in [(&golden(VERSION_2)[0], VERSION), (&golden(VERSION_3)[0], PREVIOUS)] {
        let mut altered = bytes.clone();
        altered[4..6].copy_from_slice(&version.to_be_bytes());
        assert!(matches!(decode::<Part>(&altered), Err(WireError::Body(_) | WireError::Length)));
    }
    for version in [0, PREVIOUS - 1, VERSION + 1] {
        let mut altered = encode(&hint()).unwrap();
        altered[4..6].copy_from_slice(&version.to_be_bytes());
        assert!(matches!(decode::<Hint>(&altered), Err(WireError::Version(got)) if got == version));
    }
}

#[test]
fn a_body_that_claims_a_huge_string_is_refused() {
    for version in [PREVIOUS, VERSION] {
        // A fixed-width length of u64::MAX where the id's text should be.
        let body = [0xff; 8];
        let mut bytes = [&MAGIC[..], &version.to_be_bytes(), &1u16.to_be_bytes(), &8u32.to_be_bytes()].concat();
        bytes.extend_from_slice(&checksum(&body));
        bytes.extend_from_slice(&body);
        assert!(matches!(decode::<Hint>(&bytes), Err(WireError::Body(_))));
    }
}

#[test]
fn a_part_without_metrics_is_the_bytes_that_it_was_before_there_were_any_and_one_with_them_comes_back() {
    let mut part = Part {
        schema_version: 2,
        request_id: RequestId(uuid::Uuid::from_u128(1)),
        task_id: TaskId(uuid::Uuid::from_u128(2)),
        attempt: 1,
        seq: 0,
        point: Point::blank(LoadPoint::Closed { concurrency: 1 }, 1),
    };
    let without = encode(&part).unwrap();
    assert_eq!(sha256_hex(&without), "6f1cc58ee0dc6638f3232f60af6e4213e9cddac6f3f7d89243ff6f7cd8814c7b");
    assert_eq!(decode::<Part>(&without).unwrap(), part);
    assert!(!serde_json::to_string(&part).unwrap().contains("metrics"));
    let mut values = Histogram::default();
    values.record(5_000_000);
    let metric = Metric { name: "m_ms".into(), unit: "ms".into(), values, failures: 1, percentiles: Vec::new() };
    part.point.metrics = vec![metric];
    let with = encode(&part).unwrap();
    assert!(with.len() > without.len());
    assert_eq!(decode::<Part>(&with).unwrap(), part);
    let json = serde_json::to_string(&part).unwrap();
    assert_eq!(serde_json::from_str::<Part>(&json).unwrap(), part);
    for cut in without.len()..with.len() {
        assert!(decode::<Part>(&with[..cut]).is_err(), "cut at {cut}");
    }
}
