//! A real S3 server, Ceph's radosgw, with data of its own.

#![allow(clippy::unwrap_used, reason = "in a harness, what cannot go on is a failed test")]

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use tempfile::TempDir;
use tokio::sync::Mutex;

use crate::process::{Process, Stream, peer, run};

/// The server, and the two daemons that keep its objects in their memory. They end when this is
/// dropped.
#[derive(Debug)]
pub struct Rgw {
    gateway: Process,
    _objects: Process,
    _monitor: Process,
    port: u16,
    /// Where it speaks TLS.
    tls_port: Option<u16>,
    n_buckets: AtomicUsize,
    folder: TempDir,
}

/// Who may do everything: the key's name, and the key.
const ACCESS_KEY: &str = "larder-test";
const SECRET_KEY: &str = "larder-secret";

const SHA256_OF_NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// The one of [`Rgw::shared`], as long as somebody has it.
static SHARED: Mutex<Weak<Rgw>> = Mutex::const_new(Weak::new());

impl Rgw {
    /// Starts an empty one, which takes some 10 s.
    ///
    /// # Panics
    ///
    /// If it is not installed or does not start.
    pub async fn start() -> Self {
        Self::start_as(None).await
    }

    /// Starts an empty one that also speaks TLS, with this certificate and key (PEM).
    ///
    /// # Panics
    ///
    /// As [`Self::start`].
    pub async fn start_with_tls(certificate: &str, key: &str) -> Self {
        Self::start_as(Some((certificate, key))).await
    }

    async fn start_as(tls: Option<(&str, &str)>) -> Self {
        // Short, as the path of a unix socket must be.
        let folder = tempfile::Builder::new().prefix("larder-").tempdir().unwrap();
        let [monitor_port, port, tls_port] = free_ports();
        let tls_port = tls.map(|(certificate, key)| {
            fs::write(folder.path().join("server.crt"), certificate).unwrap();
            fs::write(folder.path().join("server.key"), key).unwrap();
            tls_port
        });
        let (id, osd) = (uuid(), uuid());
        fs::write(
            folder.path().join("ceph.conf"),
            config(folder.path(), &id, monitor_port, port, tls_port),
        )
        .unwrap();
        for name in ["mon", "osd.0", "rgw"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let tool = Tool { folder: folder.path() };
        let (map, keys) = (tool.path("monmap"), tool.path("mon.keyring"));
        let admin = tool.path("admin.keyring");
        let monitor_address = format!("[v2:127.0.0.1:{monitor_port}]");
        tool.run(
            "monmaptool",
            "ceph-common",
            &["--create", "--fsid", &id, "--addv", "a", &monitor_address, &map],
        )
        .await;
        let new_key = ["--create-keyring", &keys, "--gen-key", "-n", "mon.", "--cap", "mon"];
        tool.run("ceph-authtool", "ceph-common", &[&new_key[..], &["allow *"]].concat()).await;
        let new_key = ["--create-keyring", &admin, "--gen-key", "-n", "client.admin"];
        let all = ["--cap", "mon", "allow *", "--cap", "osd", "allow *"];
        tool.run("ceph-authtool", "ceph-common", &[&new_key[..], &all].concat()).await;
        tool.run("ceph-authtool", "ceph-common", &[&keys, "--import-keyring", &admin]).await;
        let made = ["--mkfs", "-i", "a", "--monmap", &map, "--keyring", &keys];
        tool.run("ceph-mon", "ceph-mon", &made).await;
        let mut monitor = tool.command("ceph-mon", "ceph-mon");
        let monitor = Process::start("ceph-mon", monitor.args(["-f", "-i", "a"]));

        tool.run("ceph", "ceph-common", &["osd", "new", &osd]).await;
        let may = ["mon", "allow profile osd", "osd", "allow *", "-o"];
        let keyring = tool.path("osd.0/keyring");
        let get = ["auth", "get-or-create", "osd.0"];
        tool.run("ceph", "ceph-common", &[&get[..], &may, &[&keyring]].concat()).await;
        tool.run("ceph-osd", "ceph-osd", &["--mkfs", "-i", "0", "--osd-uuid", &osd]).await;
        let mut objects = tool.command("ceph-osd", "ceph-osd");
        let objects = Process::start("ceph-osd", objects.args(["-f", "-i", "0"]));
        let may = ["mon", "allow rw", "osd", "allow rwx", "-o"];
        let keyring = tool.path("rgw/keyring");
        let get = ["auth", "get-or-create", "client.rgw.a"];
        tool.run("ceph", "ceph-common", &[&get[..], &may, &[&keyring]].concat()).await;

        let gateway = serve(&tool).await;
        let user = ["user", "create", "--uid=test", "--display-name=test"];
        let keys = ["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY];
        tool.run("radosgw-admin", "radosgw", &[&user[..], &keys].concat()).await;
        let n_buckets = AtomicUsize::new(0);
        Self { gateway, _objects: objects, _monitor: monitor, port, tls_port, n_buckets, folder }
    }

    /// One for all tests of a process that want one at the same time.
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

    /// Where it answers: `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Where it answers by TLS: `https://127.0.0.1:PORT`.
    ///
    /// # Panics
    ///
    /// If it was not started so.
    pub fn tls_endpoint(&self) -> String {
        format!("https://127.0.0.1:{}", self.tls_port.unwrap())
    }

    /// With what a client may do everything here: the key's name, and the key.
    pub fn keys(&self) -> (&'static str, &'static str) {
        (ACCESS_KEY, SECRET_KEY)
    }

    /// Makes an empty bucket, and returns its name.
    ///
    /// # Panics
    ///
    /// If the server does not make it.
    pub async fn bucket(&self) -> String {
        let name = format!("test-{}", self.n_buckets.fetch_add(1, Ordering::Relaxed));
        self.request("PUT", &name).await;
        name
    }

    /// Sends a signed request without a body for `path` (`bucket`, `bucket/key`, `bucket?uploads=`),
    /// and returns the body of the answer.
    ///
    /// # Panics
    ///
    /// If the server refuses.
    pub async fn request(&self, method: &str, path: &str) -> String {
        let mut curl = peer("curl", "curl");
        curl.args(["--silent", "--show-error", "--fail-with-body", "--noproxy", "*"]);
        curl.args(["--aws-sigv4", "aws:amz:us-east-1:s3"]);
        // Without it the server takes the signature to be over another one.
        curl.args(["--header", &format!("x-amz-content-sha256: {SHA256_OF_NOTHING}")]);
        curl.args(["--user", &format!("{ACCESS_KEY}:{SECRET_KEY}"), "--request", method]);
        curl.arg(format!("{}/{path}", self.endpoint()));
        run(&mut curl).await.expect(&format!("{method} {path}"))
    }

    /// Kills the server, as `kill -9` does. What it has answered for is kept.
    pub fn kill(&mut self) {
        self.gateway.kill();
    }

    /// Starts it again after [`Self::kill`], at the same address and with the same objects.
    ///
    /// # Panics
    ///
    /// If it does not start.
    pub async fn restart(&mut self) {
        self.gateway = serve(&Tool { folder: self.folder.path() }).await;
    }

    /// The server's process id.
    pub fn pid(&self) -> rustix::process::Pid {
        self.gateway.pid()
    }
}

/// Starts the server and waits until it answers.
async fn serve(tool: &Tool<'_>) -> Process {
    let mut command = tool.command("radosgw", "radosgw");
    command.args(["-f", "-n", "client.rgw.a", "--log-to-stderr=true"]);
    let gateway = Process::start("radosgw", &mut command);
    let ready = |lines: &[String]| {
        lines.iter().any(|line| line.contains("starting handler: beast")).then_some(())
    };
    // In the foreground, what it calls its standard error is its standard output.
    gateway.find(Stream::Stdout, "it listens", ready).await;
    gateway
}

/// The programs of the package, with the settings in a folder.
struct Tool<'f> {
    folder: &'f Path,
}

impl Tool<'_> {
    fn path(&self, name: &str) -> String {
        self.folder.join(name).to_str().unwrap().to_owned()
    }

    fn command(&self, program: &str, package: &str) -> Command {
        let mut command = peer(program, package);
        command.env("CEPH_CONF", self.path("ceph.conf"));
        command
    }

    async fn run(&self, program: &str, package: &str, arguments: &[&str]) {
        run(self.command(program, package).args(arguments)).await.expect(program);
    }
}

fn uuid() -> String {
    fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap().trim().to_owned()
}

/// Ports that nobody had a moment ago. The server cannot be asked for any free one and say which.
pub(crate) fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind(("127.0.0.1", 0)).unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

/// One monitor, and one keeper of objects, in its memory: they outlive the server, which is what is
/// killed.
fn config(folder: &Path, id: &str, monitor_port: u16, port: u16, tls_port: Option<u16>) -> String {
    let folder = folder.to_str().unwrap();
    let tls = tls_port.map_or_else(String::new, |port| {
        let files =
            format!("ssl_certificate={folder}/server.crt ssl_private_key={folder}/server.key");
        format!(" ssl_endpoint=127.0.0.1:{port} {files}")
    });
    format!(
        "[global]
fsid = {id}
mon host = [v2:127.0.0.1:{monitor_port}]
public network = 127.0.0.0/8
cluster network = 127.0.0.0/8
auth allow insecure global id reclaim = false
keyring = {folder}/admin.keyring
mon data avail warn = 3
mon data avail crit = 1
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
mon warn on pool no redundancy = false
run dir = {folder}
admin socket = {folder}/$name.asok
log file = {folder}/$name.log
osd objectstore = memstore
memstore device bytes = 4294967296
[mon.a]
keyring = {folder}/mon.keyring
mon data = {folder}/mon
[osd.0]
keyring = {folder}/osd.0/keyring
osd data = {folder}/osd.0
[client.rgw.a]
keyring = {folder}/rgw/keyring
rgw frontends = beast endpoint=127.0.0.1:{port}{tls}
rgw data = {folder}/rgw
rgw run sync thread = false
rgw enable usage log = false
"
    )
}
