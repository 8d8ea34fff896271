//! Deterministic ids: the same request expands to the same tasks and profiles, however often it is
//! expanded, so that a repeated insert is a duplicate key and never a second task.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use uuid::Uuid;

macro_rules! uuid_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub struct $name(pub Uuid);

        // By hand, so that JSON and the wire both carry the text form that people query by.
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(&self.0.hyphenated())
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }
        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

uuid_newtype!(
    /// A request: the client's idempotency key.
    RequestId
);
uuid_newtype!(
    /// A task: UUIDv5 of the request id and the canonical cell key with its repeat.
    TaskId
);
uuid_newtype!(
    /// A profile (one cell of one request): UUIDv5 of the request id and the canonical cell key.
    ProfileId
);

macro_rules! text_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// The text, as documents have it.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text)
            }
        }
        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

text_newtype!(
    /// A pool of slots: its device class, a dot, and the start of the hash of its engines.
    PoolId
);
text_newtype!(
    /// A start of a worker: each start under the worker's name has another.
    Incarnation
);

impl RequestId {
    /// A fresh idempotency key.
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// The id of repeat `repeat` of the cell with this canonical key.
    pub fn task(self, cell_key: &str, repeat: u32) -> TaskId {
        TaskId(Uuid::new_v5(&self.0, format!("task/{repeat}/{cell_key}").as_bytes()))
    }

    /// The id of the profile of the cell with this canonical key.
    pub fn profile(self, cell_key: &str) -> ProfileId {
        ProfileId(Uuid::new_v5(&self.0, format!("profile/{cell_key}").as_bytes()))
    }
}

/// The id of part `seq` of attempt `attempt` of a task: its key in the hub and its message id.
pub fn part_id(task: TaskId, attempt: u32, seq: u32) -> String {
    format!("{task}/{attempt}/{seq}")
}

/// The id of the final of attempt `attempt` of a task.
pub fn final_id(task: TaskId, attempt: u32) -> String {
    format!("{task}/{attempt}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_depend_on_request_cell_and_repeat_alone() {
        let (a, b) = (RequestId(Uuid::from_u128(1)), RequestId(Uuid::from_u128(2)));
        assert_eq!(a.task("cell", 0), a.task("cell", 0));
        assert_ne!(a.task("cell", 0), a.task("cell", 1));
        assert_ne!(a.task("cell", 0), b.task("cell", 0));
        assert_ne!(a.task("cell", 0).0, a.profile("cell").0);
        // Golden: an id is a contract, and a change of the rule would double every stored task.
        assert_eq!(a.task("cell", 0).to_string(), "5355ae20-daed-582b-a495-367dd03e09e6");
    }
}
