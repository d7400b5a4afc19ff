//! How long a client may say nothing.
//!
//! hyper has one timer for "the next request has not come" and "its head is not whole", and none
//! for the bytes by which it tells HTTP/1.1 from HTTP/2. Counting what was heard tells them apart.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time;

/// The length of HTTP/2's preface. No request of HTTP/1.1 is shorter: it has a method, a path, a
/// version and a `Host`.
const GREETING: u64 = 24;

/// What was heard on one connection.
#[derive(Debug, Default)]
pub(super) struct Heard {
    bytes: AtomicU64,
    had_a_head: AtomicBool,
}

impl Heard {
    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Waits for `limit`; then whether the client has not even said which protocol it speaks.
    pub(super) async fn is_silent_after(&self, limit: Duration) -> bool {
        time::sleep(limit).await;
        self.bytes() < GREETING
    }
}

/// A socket that counts what is heard on it.
#[derive(Debug)]
pub(super) struct Listening<I> {
    socket: I,
    heard: Arc<Heard>,
}

impl<I> Listening<I> {
    pub(super) fn new(socket: I, heard: Arc<Heard>) -> Self {
        Self { socket, heard }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Listening<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.socket).poll_read(cx, buffer);
        let n_bytes = (buffer.filled().len() - before) as u64;
        self.heard.bytes.fetch_add(n_bytes, Ordering::Relaxed);
        read
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Listening<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}

/// hyper's timer for the head of a request: what it asks for is how long a connection may be idle;
/// once the head has begun, or when it is the connection's first, `head` is the limit.
#[derive(Debug)]
pub(super) struct HeadTimer {
    heard: Arc<Heard>,
    head: Duration,
}

impl HeadTimer {
    pub(super) fn new(heard: Arc<Heard>, head: Duration) -> Self {
        Self { heard, head }
    }
}

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, idle_until: Instant) -> Pin<Box<dyn Sleep>> {
        let is_first = !self.heard.had_a_head.swap(true, Ordering::Relaxed);
        Box::pin(HeadSleep {
            sleep: time::sleep_until(idle_until.into()),
            heard: Arc::clone(&self.heard),
            // More than nothing was heard already when hyper begins with the first head.
            heard_before: if is_first { 0 } else { self.heard.bytes() },
            head: self.head,
            has_begun: false,
        })
    }

    fn now(&self) -> Instant {
        time::Instant::now().into_std()
    }
}

pin_project_lite::pin_project! {
    struct HeadSleep {
        #[pin]
        sleep: time::Sleep,
        heard: Arc<Heard>,
        heard_before: u64,
        head: Duration,
        has_begun: bool,
    }
}

impl Future for HeadSleep {
    type Output = ();

    /// hyper polls each time when it has read and the head is not whole yet.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        if !*this.has_begun && this.heard.bytes() > *this.heard_before {
            *this.has_begun = true;
            let deadline = time::Instant::now() + *this.head;
            if deadline < this.sleep.deadline() {
                this.sleep.as_mut().reset(deadline);
            }
        }
        this.sleep.poll(cx)
    }
}

impl Sleep for HeadSleep {}
