//! Bytes on their way from an upstream.

use std::fmt;
use std::future::Future as _;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};
use http_body::Body as _;
use tokio::time::Sleep;

use crate::Observer;
use crate::error::Error;
use crate::limits::Slot;

/// The body of an answer: a stream of pieces, in order, of any size.
///
/// The stream ends after the last byte or after its first error:
/// - [`Error::TimedOut`]: no byte came for the read timeout while one was waited for;
/// - [`Error::Unavailable`]: the connection broke, or the body ended before the length it announced;
/// - [`Error::Protocol`]: it went on after that length.
///
/// Bytes that were handed out before stay good: a reader can go on with a range from there.
/// Dropping a body ends its request.
#[must_use = "a body that is not read is a download thrown away"]
pub struct Body {
    inner: reqwest::Body,
    observer: Arc<dyn Observer>,
    /// The bytes that are still to come, if that is known.
    left: Option<u64>,
    idle_timeout: Duration,
    /// Runs only while a byte is waited for, so that a slow reader is not taken for a slow upstream.
    idle: Option<Pin<Box<Sleep>>>,
    ended: bool,
    /// Its place among the requests that may be under way.
    slot: Option<Slot>,
}

impl Body {
    pub(crate) fn new(
        inner: reqwest::Body,
        observer: Arc<dyn Observer>,
        length: Option<u64>,
        idle_timeout: Duration,
    ) -> Self {
        Self { inner, observer, left: length, idle_timeout, idle: None, ended: false, slot: None }
    }

    /// Has `slot` taken until the body has ended.
    pub(crate) fn in_slot(self, slot: Option<Slot>) -> Self {
        Self { slot, ..self }
    }

    /// Reads all of it, at most `limit` bytes and for at most `limit_time`.
    pub(crate) async fn read(self, limit: usize, limit_time: Duration) -> Result<Bytes, Error> {
        let too_large = Error::TooLarge { limit: limit as u64 };
        if self.left.is_some_and(|left| left > limit as u64) {
            return Err(too_large);
        }
        let all = async {
            let mut body = pin!(self);
            let mut all = BytesMut::new();
            while let Some(piece) = body.next().await {
                let piece = piece?;
                if all.len() + piece.len() > limit {
                    return Err(too_large);
                }
                all.extend_from_slice(&piece);
            }
            Ok(all.freeze())
        };
        tokio::time::timeout(limit_time, all).await.unwrap_or(Err(Error::TimedOut))
    }

    /// Whether `n` more bytes, or with 0 the end, are as announced.
    fn count(&mut self, n: usize) -> Result<(), Error> {
        let Some(left) = self.left else {
            return Ok(());
        };
        if n == 0 && left > 0 {
            let doing = format!("upstream ended a body {left} bytes early");
            return Err(Error::Unavailable { doing, status: None, source: None });
        }
        let left = left.checked_sub(n as u64);
        self.left =
            Some(left.ok_or_else(|| {
                Error::Protocol("a body is longer than was announced".to_owned())
            })?);
        Ok(())
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        loop {
            let frame = match Pin::new(&mut self.inner).poll_frame(cx) {
                Poll::Pending => {
                    let timeout = self.idle_timeout;
                    let idle =
                        self.idle.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
                    ready!(idle.as_mut().poll(cx));
                    return Poll::Ready(Some(Err(Error::TimedOut)));
                }
                Poll::Ready(frame) => frame,
            };
            self.idle = None;
            return Poll::Ready(match frame {
                None => self.count(0).err().map(Err),
                Some(Err(error)) => Some(Err(cut(error))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => {
                        self.observer.bytes(data.len() as u64);
                        Some(self.count(data.len()).map(|()| data))
                    }
                    _ => continue,
                },
            });
        }
    }
}

fn cut(error: reqwest::Error) -> Error {
    Error::Unavailable {
        doing: "upstream broke off a body".to_owned(),
        status: None,
        source: Some(Arc::new(error.without_url())),
    }
}

impl Stream for Body {
    type Item = Result<Bytes, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let piece = ready!(self.poll_piece(cx));
        if !matches!(piece, Some(Ok(_))) {
            self.ended = true;
            self.slot = None;
        }
        Poll::Ready(piece)
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("left", &self.left).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_util::{FutureExt as _, stream};
    use tokio::sync::mpsc;

    use super::*;

    const IDLE: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn a_reader_who_takes_long_is_not_a_slow_upstream() {
        let (upstream, mut body) = piped(None);
        assert!(body.next().now_or_never().is_none());
        upstream.send("hell").unwrap();
        tokio::time::sleep(IDLE * 3).await;
        assert_eq!(body.next().await.unwrap().unwrap(), "hell");
        tokio::time::sleep(IDLE * 3).await;
        upstream.send("o\n").unwrap();
        assert_eq!(body.next().await.unwrap().unwrap(), "o\n");
    }

    #[tokio::test(start_paused = true)]
    async fn each_piece_has_the_whole_time() {
        let (upstream, mut body) = piped(None);
        let sender = async {
            for _ in 0..5 {
                tokio::time::sleep(IDLE - Duration::from_secs(1)).await;
                upstream.send("x").unwrap();
            }
            tokio::time::sleep(IDLE + Duration::from_secs(1)).await;
        };
        let reader = async {
            for _ in 0..5 {
                body.next().await.unwrap().unwrap();
            }
            body.next().await
        };
        let ((), end) = tokio::join!(sender, reader);
        assert!(matches!(end, Some(Err(Error::TimedOut))), "{end:?}");
        assert!(body.next().await.is_none());
    }

    #[tokio::test]
    async fn a_body_has_the_length_it_announced() {
        for (length, is_good) in [(5, false), (6, true), (7, false)] {
            let (upstream, body) = piped(Some(length));
            upstream.send("hello\n").unwrap();
            drop(upstream);
            let read = body.read(100, IDLE).await;
            assert_eq!(read.is_ok(), is_good, "{length}: {read:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_is_read_whole_has_an_end_even_if_bytes_trickle() {
        let trickle = stream::repeat("x").then(|text| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok::<_, std::io::Error>(text)
        });
        let inner = reqwest::Body::wrap_stream(trickle);
        let body = Body::new(inner, Arc::new(Counter::default()), None, IDLE);
        let read = body.read(1000, Duration::from_secs(120)).await;
        assert!(matches!(read, Err(Error::TimedOut)), "{read:?}");
    }

    #[tokio::test]
    async fn every_byte_is_counted() {
        let counter = Arc::new(Counter::default());
        let pieces = stream::iter(["hel", "", "lo\n"].map(Ok::<_, std::io::Error>));
        let inner = reqwest::Body::wrap_stream(pieces);
        Body::new(inner, counter.clone(), None, IDLE).read(6, IDLE).await.unwrap();
        assert_eq!(*counter.0.lock().unwrap(), 6);
    }

    /// A body, and where its pieces come from.
    fn piped(length: Option<u64>) -> (mpsc::UnboundedSender<&'static str>, Body) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let pieces = stream::unfold(receiver, |mut receiver| async move {
            let piece: &'static str = receiver.recv().await?;
            Some((Ok::<_, std::io::Error>(piece), receiver))
        });
        let inner = reqwest::Body::wrap_stream(pieces);
        (sender, Body::new(inner, Arc::new(Counter::default()), length, IDLE))
    }

    #[derive(Default)]
    struct Counter(Mutex<u64>);

    impl Observer for Counter {
        fn request(&self, _: &'static str, _: Option<u16>) {}

        fn bytes(&self, n: u64) {
            *self.0.lock().unwrap() += n;
        }

        fn quota(&self, _: u64) {}
    }
}
