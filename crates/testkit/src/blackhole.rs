//! Addresses that never answer.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// An address on which connections come to nothing, until it is dropped.
#[derive(Debug)]
pub struct Blackhole {
    listener: TcpListener,
    /// What fills the queue of connections.
    _queued: Vec<TcpStream>,
}

impl Blackhole {
    /// Connections are made, and nothing is ever read or answered: what a hung process looks like.
    ///
    /// # Panics
    ///
    /// If the machine has no free port.
    pub fn silent() -> Self {
        // The kernel completes connections that nobody accepts, up to the length of its queue.
        Self { listener: bind(), _queued: Vec::new() }
    }

    /// Connections are refused: what a process that was stopped looks like. Nobody else can listen
    /// there meanwhile.
    ///
    /// # Panics
    ///
    /// If the machine has no free port.
    pub fn refusing() -> Self {
        use rustix::net::{AddressFamily, SocketType, bind, socket};
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None);
        let socket = socket.expect("the machine has sockets");
        // Bound, and never listening.
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        bind(&socket, &any).expect("loopback has a free port");
        Self { listener: socket.into(), _queued: Vec::new() }
    }

    /// Connections are never made: what a host that drops packets looks like.
    ///
    /// # Panics
    ///
    /// If the machine has no free port.
    pub fn unreachable() -> Self {
        let listener = bind();
        // Listening again sets the length of the queue, and a full queue drops what comes.
        rustix::net::listen(&listener, 0).expect("the socket is listening already");
        let address = listener.local_addr().expect("the listener is bound");
        let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(50));
        let queued = std::iter::from_fn(|| connect().ok()).take(MAX_QUEUE).collect();
        Self { listener, _queued: queued }
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Where it doesn't answer.
    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("the listener is bound")
    }
}

/// The kernel holds one or two connections in a queue of length 0.
const MAX_QUEUE: usize = 16;

fn bind() -> TcpListener {
    let bound: io::Result<TcpListener> = TcpListener::bind("127.0.0.1:0");
    bound.expect("loopback has a free port")
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    const MOMENT: Duration = Duration::from_millis(100);

    #[test]
    fn a_silent_address_connects_and_says_nothing() {
        let hole = Blackhole::silent();
        let mut stream = TcpStream::connect_timeout(&hole.address(), MOMENT).unwrap();
        stream.set_read_timeout(Some(MOMENT)).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_refusing_address_refuses() {
        let hole = Blackhole::refusing();
        let error = TcpStream::connect_timeout(&hole.address(), MOMENT).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn an_unreachable_address_does_not_even_connect() {
        let hole = Blackhole::unreachable();
        let error = TcpStream::connect_timeout(&hole.address(), MOMENT).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
