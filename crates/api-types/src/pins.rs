//! `GET`, `POST` and `DELETE /pins`: which images stay whatever budget and times say.

use serde::{Deserialize, Serialize};

/// All pins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pins {
    /// Those of the configuration first, then the others in the order of their text.
    pub pins: Vec<Pin>,
}

/// One pin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// `HOST/NAME`, `HOST/NAME:TAG` or `HOST/NAME@DIGEST`, with `*` for any part of a name or tag.
    pub pattern: String,
    /// Whether it stands in the configuration, and can only be taken back there.
    pub is_configured: bool,
}

/// The body of `POST` and `DELETE`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// As [`Pin::pattern`].
    pub pattern: String,
}
