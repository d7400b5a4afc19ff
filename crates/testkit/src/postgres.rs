//! A real PostgreSQL server with data of its own.

#![allow(clippy::unwrap_used, reason = "in a harness, what cannot go on is a failed test")]

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::sync::Mutex;

use crate::process::{Process, Stream, peer, run};
use crate::rgw::free_ports;

/// A server, on a unix socket, and on loopback where a test asks for it. It ends when this is dropped.
#[derive(Debug)]
pub struct Postgres {
    server: Process,
    account: Option<Account>,
    /// On loopback.
    port: Option<u16>,
    n_databases: AtomicUsize,
    folder: TempDir,
}

/// Whom it runs as where the test is root, which it refuses to be.
#[derive(Clone, Copy, Debug)]
struct Account {
    user: u32,
    group: u32,
}

/// What whoever comes by loopback has to know.
const PASSWORD: &str = "larder-secret";

/// The port of a unix socket is part of its name.
const SOCKET_PORT: u16 = 5432;

/// The one of [`Postgres::shared`], as long as somebody has it.
static SHARED: Mutex<Weak<Postgres>> = Mutex::const_new(Weak::new());

impl Postgres {
    /// Starts an empty one, whose own order of texts is not that of their bytes.
    ///
    /// # Panics
    ///
    /// If it is not installed or does not start.
    pub async fn start() -> Self {
        Self::start_at(None, None).await
    }

    /// The same, for those who have no socket of this computer: on a loopback address, too, where it
    /// wants a password.
    ///
    /// # Panics
    ///
    /// As [`Self::start`].
    pub async fn start_on_loopback() -> Self {
        let [port] = free_ports();
        Self::start_at(Some(port), None).await
    }

    /// The same, and there by TLS alone, with this certificate and key (PEM).
    ///
    /// # Panics
    ///
    /// As [`Self::start`].
    pub async fn start_with_tls(certificate: &str, key: &str) -> Self {
        let [port] = free_ports();
        Self::start_at(Some(port), Some((certificate, key))).await
    }

    async fn start_at(port: Option<u16>, tls: Option<(&str, &str)>) -> Self {
        // Short, as the path of a unix socket must be.
        let folder = tempfile::Builder::new().prefix("larder-").tempdir().unwrap();
        let account = rustix::process::getuid().is_root().then(Account::of_package);
        if let Some(Account { user, group }) = account {
            chown(folder.path(), Some(user), Some(group)).unwrap();
        }
        let password = folder.path().join("password");
        fs::write(&password, PASSWORD).unwrap();
        let mut initdb = command("initdb", account);
        initdb.arg("-D").arg(folder.path().join("data"));
        initdb.args(["--username=postgres", "--encoding=UTF8", "--no-sync"]);
        initdb.args(["--auth-local=trust", "--auth-host=scram-sha-256"]);
        initdb.arg("--pwfile").arg(password);
        initdb.args(["--locale=C", "--locale-provider=icu", "--icu-locale=en"]);
        run(&mut initdb).await.expect("initdb");
        if let Some((certificate, key)) = tls {
            encrypt(&folder.path().join("data"), account, certificate, key);
        }
        let server = serve(folder.path(), account, port).await;
        Self { server, account, port, n_databases: AtomicUsize::new(0), folder }
    }

    /// One for all tests of a process that want one at the same time: starting it takes a second.
    ///
    /// # Panics
    ///
    /// As [`Self::start`].
    pub async fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().await;
        if let Some(running) = shared.upgrade() {
            return running;
        }
        let started = Arc::new(Self::start().await);
        *shared = Arc::downgrade(&started);
        started
    }

    /// Makes an empty database, and returns its URL.
    ///
    /// # Panics
    ///
    /// If the server does not make it.
    pub async fn database(&self) -> String {
        let name = self.new_database().await;
        let (folder, port) = (self.folder.path().to_str().unwrap(), self.socket_port());
        format!("postgres://postgres@localhost/{name}?host={folder}&port={port}")
    }

    /// Makes an empty database, and returns the URL, with the password, by which those reach it who
    /// find the server's loopback address at `host` (`HOST:PORT`).
    ///
    /// # Panics
    ///
    /// If the server does not make it.
    pub async fn database_at(&self, host: &str) -> String {
        format!("postgres://postgres:{PASSWORD}@{host}/{}", self.new_database().await)
    }

    /// `127.0.0.1:PORT`
    ///
    /// # Panics
    ///
    /// If it was started by [`Self::start`].
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port.expect("it is on loopback"))
    }

    fn socket_port(&self) -> u16 {
        self.port.unwrap_or(SOCKET_PORT)
    }

    async fn new_database(&self) -> String {
        let name = format!("test_{}", self.n_databases.fetch_add(1, Ordering::Relaxed));
        let mut createdb = command("createdb", None);
        createdb.arg("--host").arg(self.folder.path()).arg("--username=postgres");
        createdb.arg(format!("--port={}", self.socket_port()));
        run(createdb.arg(&name)).await.expect("createdb");
        name
    }

    /// Kills it, as `kill -9` does, and waits until all of its processes are gone.
    ///
    /// # Panics
    ///
    /// After [`crate::PATIENCE`].
    pub async fn kill(&mut self) {
        self.server.kill();
        // Its children notice, end, and close what they had of its output.
        self.server.wait().await;
    }

    /// Starts it again after [`Self::kill`], with the same data and URLs.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub async fn restart(&mut self) {
        self.server = serve(self.folder.path(), self.account, self.port).await;
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // At once, but with its children.
        self.server.stop(Signal::QUIT);
    }
}

impl Account {
    /// The one that the package has made.
    fn of_package() -> Self {
        let accounts = fs::read_to_string("/etc/passwd").unwrap();
        let found = accounts.lines().find_map(|line| {
            let mut fields = line.strip_prefix("postgres:")?.split(':').skip(1);
            Some(Self { user: fields.next()?.parse().ok()?, group: fields.next()?.parse().ok()? })
        });
        found.expect("Debian's postgresql has made the user postgres (make test-deps)")
    }
}

/// Has a server that has not started yet take nobody from elsewhere without TLS.
fn encrypt(data: &Path, account: Option<Account>, certificate: &str, key: &str) {
    let who = "local all all trust\nhostssl all all all scram-sha-256\n";
    fs::write(data.join("pg_hba.conf"), who).unwrap();
    fs::write(data.join("postgresql.auto.conf"), "ssl = on\n").unwrap();
    for (name, pem) in [("server.crt", certificate), ("server.key", key)] {
        let path = data.join(name);
        fs::write(&path, pem).unwrap();
        // It refuses a key that others may read.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        if let Some(Account { user, group }) = account {
            chown(&path, Some(user), Some(group)).unwrap();
        }
    }
}

/// Starts the server and waits until it takes connections.
async fn serve(folder: &Path, account: Option<Account>, port: Option<u16>) -> Process {
    let mut command = command("postgres", account);
    command.arg("-D").arg(folder.join("data")).arg("-k").arg(folder);
    command.args(["-h", if port.is_some() { "127.0.0.1" } else { "" }]);
    command.args(["-p", &port.unwrap_or(SOCKET_PORT).to_string()]);
    // What the kernel has survives a kill. Tests at once need more connections than the usual 100.
    command.args(["-c", "fsync=off", "-c", "max_connections=300"]);
    let server = Process::start("postgres", &mut command);
    let ready = |lines: &[String]| {
        let ready = |line: &String| line.contains("database system is ready to accept connections");
        lines.iter().any(ready).then_some(())
    };
    server.find(Stream::Stderr, "it takes connections", ready).await;
    server
}

/// A command for one of its programs, which Debian keeps in a folder of the version.
fn command(program: &str, account: Option<Account>) -> Command {
    let folders = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let version = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
    let newest = folders.map(|entry| entry.path()).max_by_key(version);
    let installed = newest.map(|it| it.join("bin").join(program)).filter(|path| path.is_file());
    let mut command = match installed {
        Some(path) => Command::new(path),
        None => peer(program, "postgresql"),
    };
    // Not the folder of the test, which its account may not enter.
    command.current_dir("/");
    if let Some(Account { user, group }) = account {
        command.uid(user).gid(group);
    }
    command
}
