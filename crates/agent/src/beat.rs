//! What a worker and its supervisor have between them.
//!
//! The worker is the same program, started by the supervisor. Its standard input is the socket that
//! runtimes connect to; its standard output is one end of a connection to the supervisor. On that the
//! worker writes a line of JSON every [`PERIOD`]; the supervisor writes nothing, and when it is gone
//! the worker reads the end.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use url::Url;

use crate::counts::Sum;

/// How often a worker says that it is there.
pub(crate) const PERIOD: Duration = Duration::from_millis(100);

/// What a worker says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Beat {
    /// How many replicas are known.
    pub(crate) known: usize,
    /// How many of them are there.
    pub(crate) live: usize,
    /// The registries that runtimes are to be pointed here for; `None`: as the settings say, or as
    /// before, as long as nobody has said where a cache is.
    #[serde(default)]
    pub(crate) hosts: Option<BTreeSet<String>>,
    /// Where those of [`Self::hosts`] are that are elsewhere than their name says.
    #[serde(default)]
    pub(crate) urls: BTreeMap<String, Url>,
    /// All that it has counted.
    pub(crate) counted: Sum,
}

/// What a worker is born with.
#[derive(Debug)]
pub struct Inherited {
    pub(crate) listener: TcpListener,
    pub(crate) supervisor: UnixStream,
}

impl Inherited {
    /// Takes what the supervisor has given to this process.
    ///
    /// # Errors
    ///
    /// What the operating system says: this process was not started by a supervisor.
    pub fn take() -> io::Result<Self> {
        let owned = |fd: &dyn AsFd| -> io::Result<OwnedFd> { fd.as_fd().try_clone_to_owned() };
        let listener = TcpListener::from(owned(&io::stdin())?);
        let supervisor = UnixStream::from(owned(&io::stdout())?);
        listener.local_addr()?;
        supervisor.local_addr()?;
        listener.set_nonblocking(true)?;
        supervisor.set_nonblocking(true)?;
        Ok(Self { listener, supervisor })
    }
}
