//! Tells systemd how it goes: `Type=notify`, `WatchdogSec=`.
//!
//! Source: sd_notify(3).

use std::env;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use tracing::debug;

/// Where systemd listens, if it started this process.
#[derive(Debug)]
pub(crate) struct Systemd(Option<(UnixDatagram, SocketAddr)>);

impl Systemd {
    /// As the environment says.
    pub(crate) fn of_environment() -> Self {
        let name = env::var("NOTIFY_SOCKET").ok().filter(|name| !name.is_empty());
        let open = |name: String| -> io::Result<(UnixDatagram, SocketAddr)> {
            let address = match name.strip_prefix('@') {
                Some(name) => SocketAddr::from_abstract_name(name)?,
                None => SocketAddr::from_pathname(name)?,
            };
            let socket = UnixDatagram::unbound()?;
            // Nothing here may wait for anybody.
            socket.set_nonblocking(true)?;
            Ok((socket, address))
        };
        Self(name.and_then(|name| open(name).ok()))
    }

    /// Whoever waits for the service may go on.
    pub(crate) fn ready(&self) {
        self.say("READY=1");
    }

    /// The service is ending.
    pub(crate) fn stopping(&self) {
        self.say("STOPPING=1");
    }

    /// This process is not hung.
    pub(crate) fn alive(&self) {
        self.say("WATCHDOG=1");
    }

    fn say(&self, what: &str) {
        if let Some((socket, address)) = &self.0
            && let Err(error) = socket.send_to_addr(what.as_bytes(), address)
        {
            debug!("telling systemd {what}: {error}");
        }
    }
}
