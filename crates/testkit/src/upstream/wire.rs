//! HTTP/1.1, and how it goes wrong.
//!
//! Source: RFC 9112.

use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use super::Shared;
use super::answer::{Answer, answer};
use super::fault::Fault;
use super::record::{Entry, Listener, Request};
use crate::{Gate, random};

/// The longest head of a request that is read; browsers and servers stop at 8 to 16 KiB.
const MAX_HEAD: u64 = 64 << 10;

/// How much is written, and counted, at once.
const STEP: usize = 64 << 10;

/// Whether the connection can be used for another request.
#[derive(PartialEq, Eq)]
enum After {
    KeepOpen,
    Close,
}

/// Answers requests until the client or a fault ends the connection.
/// The first byte of a TLS connection (RFC 8446, 5.1).
const TLS_HANDSHAKE: u8 = 22;

pub(super) async fn serve_connection(shared: Arc<Shared>, listener: Listener, stream: TcpStream) {
    // Small answers would otherwise wait for acknowledgements.
    let _ = stream.set_nodelay(true);
    let mut stream = BufReader::new(stream);
    // Some clients try to encrypt first, and go on without if they are answered in the clear.
    if stream.fill_buf().await.is_ok_and(|bytes| bytes.first() == Some(&TLS_HANDSHAKE)) {
        let _ = stream.get_mut().write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n").await;
        return;
    }
    // A broken connection is the client's affair, or what the test wanted.
    while let Ok(Some(request)) = read_request(&mut stream, listener).await {
        match serve_request(&shared, request, stream.get_mut()).await {
            Ok(After::KeepOpen) => {}
            Ok(After::Close) | Err(_) => break,
        }
    }
}

/// Reads one request; `None` if the client has closed the connection.
async fn read_request(
    stream: &mut BufReader<TcpStream>,
    listener: Listener,
) -> io::Result<Option<Request>> {
    let mut head = stream.take(MAX_HEAD);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if head.read_line(&mut line).await? == 0 {
            return Ok(None);
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    let (first, rest) = lines.split_first().ok_or_else(malformed)?;
    let mut words = first.split(' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Err(malformed());
    };
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query.to_owned())),
        None => (target, None),
    };
    let headers: Option<Vec<_>> = rest.iter().map(|line| parse_header(line)).collect();
    let request = Request {
        listener,
        method: method.to_owned(),
        path: path.to_owned(),
        query,
        headers: headers.ok_or_else(malformed)?,
        status: 0,
        n_sent: 0,
        is_whole: false,
    };
    skip_body(&request, stream).await?;
    Ok(Some(request))
}

fn parse_header(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once(':')?;
    Some((name.to_ascii_lowercase(), value.trim().to_owned()))
}

async fn skip_body(request: &Request, stream: &mut BufReader<TcpStream>) -> io::Result<()> {
    let length = request.header("content-length").and_then(|value| value.parse().ok());
    tokio::io::copy(&mut stream.take(length.unwrap_or(0)), &mut tokio::io::sink()).await?;
    Ok(())
}

async fn serve_request(
    shared: &Shared,
    request: Request,
    stream: &mut TcpStream,
) -> io::Result<After> {
    let faults = shared.rules.lock().take(&request);
    let entry = shared.log.begin(request.clone());
    for fault in &faults {
        if let Fault::Think(time) = fault {
            tokio::time::sleep(*time).await;
        }
        if let Fault::Wait(gate) = fault {
            pass_or_leave(gate, stream).await?;
        }
    }
    let mut answer = answer(shared, &request, &faults);
    for fault in &faults {
        if let Fault::Without(unwanted) = fault {
            answer.headers.retain(|(name, _)| !name.eq_ignore_ascii_case(unwanted));
        }
    }
    entry.answering(answer.status);
    let delivery = Delivery::plan(answer, &faults, request.method == "HEAD");
    let after = delivery.send(stream, &entry).await?;
    let is_last = request.header("connection").is_some_and(|it| it.eq_ignore_ascii_case("close"));
    Ok(if is_last { After::Close } else { after })
}

/// How an answer goes onto the wire.
struct Delivery {
    head: String,
    body: Bytes,
    is_chunked: bool,
    is_endless: bool,
    /// How many bytes are sent at a time, and how long is waited after them.
    pace: (usize, Duration),
    /// What happens after how many bytes of the body; in order.
    marks: Vec<(usize, Mark)>,
    after: After,
}

enum Mark {
    Wait(Gate),
    Close,
    Reset,
}

impl Delivery {
    fn plan(answer: Answer, faults: &[Fault], is_head: bool) -> Self {
        let mut delivery = Self {
            head: String::new(),
            body: Bytes::new(),
            is_chunked: false,
            is_endless: false,
            pace: (STEP, Duration::ZERO),
            marks: Vec::new(),
            after: After::KeepOpen,
        };
        let mut announced = answer.body.len() as i64;
        for fault in faults {
            let mark = match fault {
                Fault::WaitAfter(n, gate) => (*n, Mark::Wait(gate.clone())),
                Fault::CutAfter(n) => (*n, Mark::Close),
                Fault::ResetAfter(n) => (*n, Mark::Reset),
                Fault::Misannounce(delta) => {
                    announced += delta;
                    delivery.after = After::Close;
                    continue;
                }
                Fault::Dribble(step, pause) => {
                    delivery.pace = (*step, *pause);
                    continue;
                }
                Fault::Chunked => {
                    delivery.is_chunked = true;
                    continue;
                }
                Fault::Endless => {
                    delivery.is_chunked = true;
                    delivery.is_endless = true;
                    continue;
                }
                _ => continue,
            };
            delivery.marks.push((mark.0 as usize, mark.1));
        }
        delivery.marks.sort_by_key(|(offset, _)| *offset);
        delivery.head = write_head(&answer, (!delivery.is_chunked).then_some(announced));
        if is_head || answer.status == 304 {
            delivery.is_chunked = false;
            delivery.is_endless = false;
            delivery.marks.clear();
        } else {
            delivery.body = answer.body;
        }
        delivery
    }

    async fn send(self, stream: &mut TcpStream, entry: &Entry) -> io::Result<After> {
        stream.write_all(self.head.as_bytes()).await?;
        let mut position = 0;
        for (offset, mark) in &self.marks {
            if *offset > self.body.len() {
                break;
            }
            self.send_bytes(position..*offset, stream, entry).await?;
            position = *offset;
            match mark {
                Mark::Wait(gate) => pass_or_leave(gate, stream).await?,
                Mark::Close => return Ok(After::Close),
                Mark::Reset => {
                    stream.set_zero_linger()?;
                    return Ok(After::Close);
                }
            }
        }
        self.send_bytes(position..self.body.len(), stream, entry).await?;
        if self.is_endless {
            let noise = random::bytes(1, STEP);
            loop {
                self.send_chunk(&noise, stream, entry).await?;
            }
        }
        if self.is_chunked {
            stream.write_all(b"0\r\n\r\n").await?;
        }
        entry.finished();
        Ok(self.after)
    }

    async fn send_bytes(
        &self,
        range: std::ops::Range<usize>,
        stream: &mut TcpStream,
        entry: &Entry,
    ) -> io::Result<()> {
        let (step, pause) = self.pace;
        for bytes in self.body[range].chunks(step) {
            self.send_chunk(bytes, stream, entry).await?;
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
        Ok(())
    }

    async fn send_chunk(
        &self,
        bytes: &[u8],
        stream: &mut TcpStream,
        entry: &Entry,
    ) -> io::Result<()> {
        if self.is_chunked {
            stream.write_all(format!("{:x}\r\n", bytes.len()).as_bytes()).await?;
        }
        stream.write_all(bytes).await?;
        if self.is_chunked {
            stream.write_all(b"\r\n").await?;
        }
        entry.sent(bytes.len());
        Ok(())
    }
}

fn write_head(answer: &Answer, announced: Option<i64>) -> String {
    let mut head = format!("HTTP/1.1 {} testkit\r\n", answer.status);
    for (name, value) in &answer.headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    let _ = match announced {
        Some(length) => write!(head, "content-length: {length}\r\n\r\n"),
        None => write!(head, "transfer-encoding: chunked\r\n\r\n"),
    };
    head
}

/// Waits at the gate, but not for a client that has left: its error ends the connection.
async fn pass_or_leave(gate: &Gate, stream: &TcpStream) -> io::Result<()> {
    let mut byte = [0];
    tokio::select! {
        () = gate.pass() => Ok(()),
        peeked = stream.peek(&mut byte) => match peeked {
            Ok(0) => Err(io::ErrorKind::ConnectionAborted.into()),
            // The next request is waiting already; whether this client leaves is not seen then.
            Ok(_) => { gate.pass().await; Ok(()) }
            Err(error) => Err(error),
        },
    }
}
