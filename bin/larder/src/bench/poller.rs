//! Many connections in one thread.

use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};

/// How many connections one look may report.
const AT_ONCE: usize = 64;

/// Says which of many connections can be read. Each is known by the number it was added with.
pub(crate) struct Poller {
    epoll: OwnedFd,
    ready: Vec<epoll::Event>,
}

impl Poller {
    /// A poller that watches nothing.
    ///
    /// # Errors
    ///
    /// There are too many open files.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("making an epoll")?;
        Ok(Self { epoll, ready: Vec::with_capacity(AT_ONCE) })
    }

    /// Watches `stream`, which is made non-blocking.
    ///
    /// # Errors
    ///
    /// The kernel refused.
    pub(crate) fn add(&self, stream: &TcpStream, number: usize) -> anyhow::Result<()> {
        stream.set_nonblocking(true)?;
        let number = epoll::EventData::new_u64(number as u64);
        epoll::add(&self.epoll, stream, number, epoll::EventFlags::IN).context("watching a socket")
    }

    /// Forgets `stream`.
    ///
    /// # Errors
    ///
    /// It was not watched.
    pub(crate) fn remove(&self, stream: &TcpStream) -> anyhow::Result<()> {
        epoll::delete(&self.epoll, stream).context("forgetting a socket")
    }

    /// Waits until a connection can be read, at most for `patience`, and returns the numbers of
    /// those that can. None: the time is over.
    ///
    /// # Errors
    ///
    /// The kernel refused.
    pub(crate) fn wait(
        &mut self,
        patience: Duration,
    ) -> anyhow::Result<impl Iterator<Item = usize> + use<'_>> {
        let patience = Timespec::try_from(patience).context("waiting for sockets")?;
        // An epoll waits for whole milliseconds only.
        if patience.tv_nsec % 1_000_000 == 0 {
            self.look(&patience)?;
        } else {
            uninterrupted(poll(&mut [PollFd::new(&self.epoll, PollFlags::IN)], Some(&patience)))?;
            self.look(&Timespec::default())?;
        }
        Ok(self.ready.iter().map(|event| event.data.u64() as usize))
    }

    fn look(&mut self, patience: &Timespec) -> anyhow::Result<()> {
        self.ready.clear();
        let free = rustix::buffer::spare_capacity(&mut self.ready);
        uninterrupted(epoll::wait(&self.epoll, free, Some(patience)))
    }
}

/// A signal is as good as nothing to read.
fn uninterrupted(result: rustix::io::Result<usize>) -> anyhow::Result<()> {
    match result {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error).context("waiting for sockets"),
    }
}
