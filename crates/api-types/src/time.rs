//! Times as text: `2026-01-31T12:00:00Z`.

use std::time::SystemTime;

use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

pub(crate) fn serialize<S: Serializer>(
    time: &SystemTime,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    humantime::format_rfc3339_seconds(*time).to_string().serialize(serializer)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<SystemTime, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_rfc3339(&text).map_err(serde::de::Error::custom)
}

/// The same where there may be none: `null` then.
pub(crate) mod maybe {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(
        time: &Option<SystemTime>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        time.map(|time| humantime::format_rfc3339_seconds(time).to_string()).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<SystemTime>, D::Error> {
        let text: Option<String> = Option::deserialize(deserializer)?;
        let time = text.map(|text| humantime::parse_rfc3339(&text)).transpose();
        time.map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Times {
        #[serde(with = "super")]
        one: SystemTime,
        #[serde(with = "super::maybe")]
        other: Option<SystemTime>,
    }

    #[test]
    fn a_time_is_text_of_seconds_and_reads_back() {
        let one = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        for other in [None, Some(one)] {
            let times = Times { one, other };
            let text = serde_json::to_string(&times).unwrap();
            assert!(text.contains(r#""one":"2023-11-14T22:13:20Z""#), "{text}");
            assert_eq!(serde_json::from_str::<Times>(&text).unwrap(), times);
        }
    }
}
