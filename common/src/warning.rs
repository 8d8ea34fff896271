//! What the warnings of a load point are called, and how grave each is.

use serde::{Deserialize, Serialize, de::IntoDeserializer, de::value::Error};

/// What a warning means for the figures of its load point, mildest first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// Worth knowing; the figures stand.
    Note,
    /// The figures are less precise than was asked.
    Imprecise,
    /// Something else than the engine is in the figures.
    Disturbed,
    /// The load point is invalid.
    Invalid,
}

/// The codes of warnings. Documents carry them as strings, since a newer version may know more.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum WarningCode {
    Errors,
    ServerGone,
    BadResponse,
    SendsLate,
    InFlightLimit,
    StreamsLimit,
    TooFewInFlight,
    NothingMeasured,
    NotCertified,
    GpuLost,
    Unanswered,
    ForeignProcess,
    Throttled,
    EngineStarved,
    CpuQuota,
    ClientStarved,
    ClientBound,
    SpeedVaried,
    SharedHost,
    NoisyHost,
    Steal,
    TimedInChild,
    Drifting,
    WarmupDrifting,
    ChangedSlowly,
    SlaOpen,
    CutShort,
    NotConverged,
    MemoryPreallocated,
    Resent,
    OutputDiffers,
    OutputNotFinite,
    RandomInputs,
    /// One that this version does not know.
    #[serde(other)]
    Unknown,
}

impl WarningCode {
    /// The code that a document spells so.
    pub fn of(text: &str) -> Self {
        Self::deserialize(IntoDeserializer::<Error>::into_deserializer(text)).unwrap_or(Self::Unknown)
    }

    /// How grave it is. A code that is not known may say anything, so it counts as a disturbance.
    pub fn severity(self) -> Severity {
        match self {
            Self::Errors
            | Self::ServerGone
            | Self::BadResponse
            | Self::SendsLate
            | Self::InFlightLimit
            | Self::StreamsLimit
            | Self::TooFewInFlight
            | Self::NothingMeasured
            | Self::NotCertified => Severity::Invalid,
            Self::GpuLost
            | Self::Unanswered
            | Self::ForeignProcess
            | Self::Throttled
            | Self::EngineStarved
            | Self::CpuQuota
            | Self::ClientStarved
            | Self::ClientBound
            | Self::SharedHost
            | Self::NoisyHost
            | Self::Steal
            | Self::TimedInChild
            | Self::Unknown => Severity::Disturbed,
            Self::Drifting
            | Self::WarmupDrifting
            | Self::ChangedSlowly
            | Self::SpeedVaried
            | Self::SlaOpen
            | Self::CutShort
            | Self::NotConverged => Severity::Imprecise,
            Self::MemoryPreallocated
            | Self::Resent
            | Self::OutputDiffers
            | Self::OutputNotFinite
            | Self::RandomInputs => Severity::Note,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_reads_as_it_is_spelled_and_one_of_a_newer_version_is_no_error() {
        assert_eq!(WarningCode::of("in_flight_limit"), WarningCode::InFlightLimit);
        assert_eq!(WarningCode::of("unheard_of"), WarningCode::Unknown);
        assert!(WarningCode::Steal.severity() > WarningCode::NotConverged.severity());
        assert_eq!(WarningCode::Errors.severity(), Severity::Invalid);
    }
}
