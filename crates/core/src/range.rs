//! Which bytes of a blob a client wants.
//!
//! Source: RFC 9110, section 14, "Range Requests".

/// The most ranges that one header may name.
///
/// Partial pulls of zstd:chunked layers send up to 1,024 ranges and step down when they are told
/// 400; more than that is no client we know.
pub const MAX_RANGES: usize = 1024;

/// One range as it was asked for, before the length of the content is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeSpec {
    /// `a-b`: both ends included.
    Closed(u64, u64),
    /// `a-`: from `a` to the end.
    From(u64),
    /// `-n`: the last `n` bytes.
    Last(u64),
}

/// Bytes that exist: `start <= last < length of the content`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// The first byte, counted from 0.
    pub start: u64,
    /// The last byte, included.
    pub last: u64,
}

impl ByteRange {
    /// How many bytes this is; at least 1.
    #[expect(clippy::len_without_is_empty, reason = "a range of bytes that exist is never empty")]
    pub fn len(&self) -> u64 {
        self.last - self.start + 1
    }
}

impl RangeSpec {
    /// The bytes that this asks for in content of `length` bytes; `None` if there are none.
    pub fn within(self, length: u64) -> Option<ByteRange> {
        let end = length.checked_sub(1)?;
        match self {
            Self::Closed(start, last) => {
                (start <= end).then_some(ByteRange { start, last: last.min(end) })
            }
            Self::From(start) => (start <= end).then_some(ByteRange { start, last: end }),
            Self::Last(0) => None,
            Self::Last(n) => Some(ByteRange { start: length.saturating_sub(n), last: end }),
        }
    }
}

/// What a `Range` header asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RangeHeader {
    /// Nothing that we understand: the header is to be ignored and everything sent (RFC 9110,
    /// 14.2: unknown units and invalid sets).
    Ignored,
    /// These ranges, in the order asked: 1 to [`MAX_RANGES`].
    Ranges(Vec<RangeSpec>),
    /// More ranges than we serve; the client is to ask for fewer.
    TooMany,
}

impl RangeHeader {
    /// Reads the value of a `Range` header.
    pub fn parse(value: &str) -> Self {
        let Some((unit, set)) = value.split_once('=') else {
            return Self::Ignored;
        };
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return Self::Ignored;
        }
        let mut specs = Vec::new();
        for part in set.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let Some(spec) = parse_spec(part) else {
                return Self::Ignored;
            };
            if specs.len() == MAX_RANGES {
                return Self::TooMany;
            }
            specs.push(spec);
        }
        if specs.is_empty() { Self::Ignored } else { Self::Ranges(specs) }
    }
}

fn parse_spec(text: &str) -> Option<RangeSpec> {
    let (first, last) = text.split_once('-')?;
    match (first, last) {
        ("", n) => Some(RangeSpec::Last(parse_number(n)?)),
        (first, "") => Some(RangeSpec::From(parse_number(first)?)),
        (first, last) => {
            let (first, last) = (parse_number(first)?, parse_number(last)?);
            (first <= last).then_some(RangeSpec::Closed(first, last))
        }
    }
}

/// Digits only: `u64::from_str` would also take a `+`. What does not fit is more than any content
/// has.
fn parse_number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

/// `Content-Range: bytes START-LAST/LENGTH` as a server sends it; the length may be `*`.
///
/// `None` if the text has another form or contradicts itself.
pub fn parse_content_range(value: &str) -> Option<(ByteRange, Option<u64>)> {
    let rest = value.trim().strip_prefix("bytes")?.trim_start();
    let (range, length) = rest.split_once('/')?;
    let (start, last) = range.split_once('-')?;
    let (start, last) = (parse_number(start)?, parse_number(last)?);
    let length = match length.trim() {
        "*" => None,
        text => Some(parse_number(text)?),
    };
    let is_sound = start <= last && length.is_none_or(|length| last < length);
    is_sound.then_some((ByteRange { start, last }, length))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_header_is_read_as_rfc_9110_writes_it() {
        use RangeSpec::*;
        let ranges = |specs: &[RangeSpec]| RangeHeader::Ranges(specs.to_vec());
        assert_eq!(RangeHeader::parse("bytes=0-499"), ranges(&[Closed(0, 499)]));
        assert_eq!(RangeHeader::parse("bytes=500-"), ranges(&[From(500)]));
        assert_eq!(RangeHeader::parse("bytes=-500"), ranges(&[Last(500)]));
        assert_eq!(RangeHeader::parse("Bytes= 0-0 , -1"), ranges(&[Closed(0, 0), Last(1)]));
        for ignored in
            ["", "bytes", "bytes=", "items=0-1", "bytes=1-0", "bytes=a-b", "bytes=+1-2", "bytes=-"]
        {
            assert_eq!(RangeHeader::parse(ignored), RangeHeader::Ignored, "{ignored}");
        }
    }

    #[test]
    fn ranges_are_cut_to_the_content() {
        let within =
            |spec: RangeSpec, length| spec.within(length).map(|range| (range.start, range.last));
        assert_eq!(within(RangeSpec::Closed(2, 99), 10), Some((2, 9)));
        assert_eq!(within(RangeSpec::Closed(10, 11), 10), None);
        assert_eq!(within(RangeSpec::From(9), 10), Some((9, 9)));
        assert_eq!(within(RangeSpec::From(10), 10), None);
        assert_eq!(within(RangeSpec::Last(3), 10), Some((7, 9)));
        assert_eq!(within(RangeSpec::Last(30), 10), Some((0, 9)));
        assert_eq!(within(RangeSpec::Last(0), 10), None);
        assert_eq!(within(RangeSpec::From(0), 0), None);
    }

    #[test]
    fn as_many_ranges_as_partial_pulls_send_are_taken() {
        let header = |n| format!("bytes={}", vec!["0-0"; n].join(","));
        assert!(matches!(RangeHeader::parse(&header(1024)), RangeHeader::Ranges(_)));
        assert_eq!(RangeHeader::parse(&header(1025)), RangeHeader::TooMany);
    }

    #[test]
    fn a_content_range_that_contradicts_itself_is_no_content_range() {
        let range = |start, last| ByteRange { start, last };
        assert_eq!(parse_content_range("bytes 0-9/10"), Some((range(0, 9), Some(10))));
        assert_eq!(parse_content_range("bytes 5-9/*"), Some((range(5, 9), None)));
        for text in ["bytes 0-10/10", "bytes 5-4/10", "bytes */10", "0-9/10", "bytes 0-9"] {
            assert_eq!(parse_content_range(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_range_reaches_outside_the_content(header in "bytes=([0-9]{0,21}-[0-9]{0,21},?){1,5}", length: u64) {
            if let RangeHeader::Ranges(specs) = RangeHeader::parse(&header) {
                for range in specs.iter().filter_map(|spec| spec.within(length)) {
                    prop_assert!(range.start <= range.last && range.last < length);
                }
            }
        }

        #[test]
        fn no_header_makes_a_parser_panic(text in "\\PC{0,60}") {
            let _ = (RangeHeader::parse(&text), parse_content_range(&text));
        }
    }
}
