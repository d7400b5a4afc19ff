//! As much of HTTP/1.1 as the bench needs: heads, and lengths of bodies.
//!
//! Measuring with a full HTTP library would measure the library.

/// The largest head that is read. Registries send a few hundred bytes.
pub(crate) const MAX_HEAD: usize = 16 << 10;

/// What the bench wants to know of a response's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ResponseHead {
    /// Such as 200.
    pub(crate) status: u16,
    /// Bytes of the body, if the head says so.
    pub(crate) content_length: Option<u64>,
    /// Bytes of the head, its empty line included.
    pub(crate) length: usize,
}

impl ResponseHead {
    /// Reads the head that `bytes` begin with; `None` until all of it is there. What is no
    /// response at all has status 0.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let length = head_length(bytes)?;
        let text = std::str::from_utf8(&bytes[..length]).unwrap_or_default();
        let mut lines = text.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
        let content_length = lines.find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
        });
        Some(Self { status: status.unwrap_or(0), content_length, length })
    }
}

/// The bytes up to and including the first empty line; `None` if there is none yet.
pub(crate) fn head_length(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

/// A GET that accepts every kind of manifest, and keeps the connection.
pub(crate) fn get(host: &str, path: &str) -> Vec<u8> {
    let accept = larder_core::media::ALL_MANIFESTS.join(", ");
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: {accept}\r\n\r\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_once_it_is_whole() {
        let response = b"HTTP/1.1 206 Partial Content\r\nDate: x\r\ncontent-LENGTH: 12\r\n\r\nbody";
        let head = ResponseHead { status: 206, content_length: Some(12), length: 61 };
        assert_eq!(ResponseHead::parse(response), Some(head));
        assert_eq!(&response[head.length..], b"body");
        assert_eq!(ResponseHead::parse(&response[..60]), None);
    }

    #[test]
    fn a_head_may_leave_the_length_open() {
        let head = ResponseHead::parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        assert_eq!(head.unwrap().content_length, None);
    }

    #[test]
    fn what_is_no_response_has_no_status() {
        assert_eq!(ResponseHead::parse(b"\xff\xfe\r\n\r\n").unwrap().status, 0);
    }
}
