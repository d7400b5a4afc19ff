//! What is said on one connection to an upstream, read by the forwarder in between.

use std::collections::VecDeque;

use super::http::{self, MAX_HEAD, ResponseHead};

/// Follows the requests and responses of one HTTP/1.1 connection.
///
/// Requests have no bodies: a cache only reads. What it cannot follow (a response without a
/// length) it stops following; the bytes are forwarded all the same.
#[derive(Debug, Default)]
pub(crate) struct Dialogue {
    /// Bytes of a request whose head is not whole yet.
    request: Vec<u8>,
    /// Requests that were not answered yet, oldest first.
    waiting: VecDeque<Request>,
    response: Response,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// Such as `GET`.
    pub(crate) method: String,
    /// Path and query.
    pub(crate) path: String,
}

#[derive(Debug)]
enum Response {
    /// Bytes of a head that is not whole yet.
    Head(Vec<u8>),
    /// A body of which so many bytes are still to come.
    Body { left: u64, request: Option<Request>, begun: bool },
    /// Something that is not followed any more.
    Lost,
}

impl Default for Response {
    fn default() -> Self {
        Self::Head(Vec::new())
    }
}

/// What bytes from upstream mean for the requests they answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The first byte of the response to this request is among them.
    Begins(Request),
    /// The first byte of the body of the response to this request is among them.
    Body(Request),
}

impl Dialogue {
    /// Reads bytes on their way to the upstream; the requests that became whole by them.
    pub(crate) fn sent(&mut self, bytes: &[u8]) -> Vec<Request> {
        self.request.extend_from_slice(bytes);
        let mut whole = Vec::new();
        while let Some(length) = http::head_length(&self.request) {
            let head: Vec<u8> = self.request.drain(..length).collect();
            whole.extend(Request::parse(&head));
        }
        if self.request.len() > MAX_HEAD {
            self.request.clear();
        }
        self.waiting.extend(whole.iter().cloned());
        whole
    }

    /// Reads bytes on their way from the upstream.
    pub(crate) fn received(&mut self, mut bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        while !bytes.is_empty() {
            bytes = match &mut self.response {
                Response::Lost => return events,
                Response::Body { left, request, begun } => {
                    if !std::mem::replace(begun, true) {
                        events.extend(request.take().map(Event::Body));
                    }
                    let n = (*left).min(bytes.len() as u64);
                    *left -= n;
                    if *left == 0 {
                        self.response = Response::default();
                    }
                    &bytes[n as usize..]
                }
                Response::Head(head) => {
                    if head.is_empty() {
                        events.extend(self.waiting.front().cloned().map(Event::Begins));
                    }
                    let before = head.len();
                    head.extend_from_slice(bytes);
                    let Some(parsed) = ResponseHead::parse(head) else {
                        if head.len() > MAX_HEAD {
                            self.response = Response::Lost;
                        }
                        return events;
                    };
                    let rest = &bytes[parsed.length - before..];
                    self.response = self.body_of(parsed);
                    rest
                }
            };
        }
        events
    }

    /// What follows a head.
    fn body_of(&mut self, head: ResponseHead) -> Response {
        let request = self.waiting.pop_front();
        let is_head = request.as_ref().is_some_and(|request| request.method == "HEAD");
        let bodyless = is_head || head.status == 204 || head.status == 304;
        match head.content_length {
            _ if bodyless => Response::default(),
            Some(0) => Response::default(),
            Some(left) => Response::Body { left, request, begun: false },
            None => Response::Lost,
        }
    }
}

impl Request {
    fn parse(head: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(head).ok()?;
        let mut words = text.lines().next()?.split(' ');
        Some(Self { method: words.next()?.to_owned(), path: words.next()?.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_begins_with_its_first_byte_and_not_with_its_head() {
        let mut dialogue = Dialogue::default();
        assert_eq!(dialogue.sent(b"GET /a HTTP/1.1\r\nHost"), []);
        assert_eq!(dialogue.sent(b": x\r\n\r\n"), [get("/a")]);
        assert_eq!(dialogue.received(b"HTTP/1.1 200 OK\r\nConte"), [Event::Begins(get("/a"))]);
        assert_eq!(dialogue.received(b"nt-Length: 4\r\n\r\n"), []);
        assert_eq!(dialogue.received(b"bo"), [Event::Body(get("/a"))]);
        assert_eq!(dialogue.received(b"dy"), []);
    }

    #[test]
    fn responses_are_told_apart_also_when_they_come_together() {
        let mut dialogue = Dialogue::default();
        dialogue.sent(b"HEAD /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\nGET /c HTTP/1.1\r\n\r\n");
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n".as_slice();
        let events = dialogue.received(&[head, head, b"body", head, b"b"].concat());
        let begins = Request { method: "HEAD".to_owned(), path: "/a".to_owned() };
        let expected = [
            Event::Begins(begins),
            Event::Begins(get("/b")),
            Event::Body(get("/b")),
            Event::Begins(get("/c")),
            Event::Body(get("/c")),
        ];
        assert_eq!(events, expected);
    }

    #[test]
    fn a_response_without_a_length_is_not_followed() {
        let mut dialogue = Dialogue::default();
        dialogue.sent(b"GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n");
        let events = dialogue.received(b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n");
        assert_eq!(events, [Event::Begins(get("/a"))]);
    }

    fn get(path: &str) -> Request {
        Request { method: "GET".to_owned(), path: path.to_owned() }
    }
}
