//! Single headers of an answer, read.

use std::time::{Duration, SystemTime};

use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName};
use larder_core::Digest;

/// The longest time to be left alone that is believed.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);

/// The first value of a header, if it is text.
pub(crate) fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The values of all lines of a header that are text.
pub(crate) fn lines<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> impl Iterator<Item = &'a str> {
    headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok())
}

/// `Content-Length`, in bytes.
pub(crate) fn length(headers: &HeaderMap) -> Option<u64> {
    text(headers, &CONTENT_LENGTH)?.trim().parse().ok()
}

/// The media type of `Content-Type`, without parameters, in lower case.
pub(crate) fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = text(headers, &CONTENT_TYPE)?;
    let media_type = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    Some(media_type).filter(|text| !text.is_empty())
}

/// `Docker-Content-Digest`. `None` also for one that cannot be verified.
pub(crate) fn digest(headers: &HeaderMap) -> Option<Digest> {
    text(headers, &HeaderName::from_static("docker-content-digest"))?.trim().parse().ok()
}

/// The name of the encoding that was applied to the body, if any.
pub(crate) fn encoding(headers: &HeaderMap) -> Option<&str> {
    let is_encoding = |value: &&str| {
        !matches!(value.trim(), "") && !value.trim().eq_ignore_ascii_case("identity")
    };
    lines(headers, &CONTENT_ENCODING).find(is_encoding)
}

/// Docker Hub's `ratelimit-remaining: 76;w=21600`.
pub(crate) fn quota(headers: &HeaderMap) -> Option<u64> {
    let value = text(headers, &HeaderName::from_static("ratelimit-remaining"))?;
    value.split(';').next()?.trim().parse().ok()
}

/// `Retry-After`, in seconds or as a date; a day at most.
///
/// Source: RFC 9110, section 10.2.3.
pub(crate) fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let wait = match value.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = httpdate::parse_http_date(value).ok()?;
            date.duration_since(now).unwrap_or_default()
        }
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let wait = |value: &str| retry_after(value, now).map(|wait| wait.as_secs());
        assert_eq!(wait(" 120 "), Some(120));
        assert_eq!(wait("Sun, 06 Nov 1994 08:50:07 GMT"), Some(30));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:00 GMT"), Some(0));
        assert_eq!(wait("99999999999"), Some(86_400));
        assert_eq!(wait("soon"), None);
    }

    #[test]
    fn headers_are_read_as_registries_write_them() {
        let headers = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            headers
        };
        assert_eq!(quota(&headers("ratelimit-remaining", "76;w=21600")), Some(76));
        assert_eq!(quota(&headers("ratelimit-remaining", "none")), None);
        let json = headers("content-type", "Application/JSON; charset=utf-8");
        assert_eq!(media_type(&json).as_deref(), Some("application/json"));
        assert_eq!(encoding(&headers("content-encoding", "gzip")), Some("gzip"));
        assert_eq!(encoding(&headers("content-encoding", "Identity")), None);
        assert_eq!(digest(&headers("docker-content-digest", "md5:00")), None);
    }

    proptest! {
        #[test]
        fn no_value_makes_the_reader_panic(value in "\\PC{0,40}|[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT") {
            let _ = retry_after(&value, SystemTime::UNIX_EPOCH);
        }
    }
}
