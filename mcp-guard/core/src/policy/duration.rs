//! How durations are written.

use std::time::Duration;

use serde::{Deserializer, Serializer};

/// A duration in the form in which people write it: "30s", "5min".
pub(super) struct DurationText;

impl DurationText {
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        humantime_serde::deserialize(deserializer)
    }

    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        humantime_serde::serialize(duration, serializer)
    }
}
