//! The program as the controller of a cluster's caches.

use rustix::process::Signal;

use crate::http;
use crate::kubernetes::Cluster;
use crate::larder::bare_command;
use crate::metrics;
use crate::process::{Ended, Process, Stream};
use crate::scratch::Scratch;

/// A running `larder controller`, outside of the cluster.
#[derive(Debug)]
pub struct Controller {
    process: Process,
    admin: String,
    // What it calls its home.
    _scratch: Scratch,
}

impl Controller {
    /// Starts one that looks after `namespace`, and waits until it can be asked.
    ///
    /// # Panics
    ///
    /// If it ends instead.
    pub async fn start(cluster: &Cluster, namespace: &str, arguments: &[&str]) -> Self {
        let scratch = Scratch::new();
        let mut command = bare_command(&scratch);
        command.args(["controller", "--namespace", namespace, "--admin", "127.0.0.1:0"]);
        if !arguments.contains(&"--image") {
            command.args(["--image", "larder.test/larder:1"]);
        }
        command.args(arguments).env("KUBECONFIG", cluster.kubeconfig());
        let process = Process::start("larder controller", &mut command);
        let admin = process.announcement(Stream::Stdout, "admin on http://").await;
        Self { process, admin, _scratch: scratch }
    }

    /// Where it answers the API server (`127.0.0.1:PORT`), if it was told to.
    pub async fn webhook(&self) -> String {
        self.process.announcement(Stream::Stdout, "webhook on https://").await
    }

    /// The sum of the samples called `name` that have all of `labels`, now.
    ///
    /// # Panics
    ///
    /// If the metrics cannot be read.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let text = http::get(&format!("http://{}/metrics", self.admin)).send().await.bytes().await;
        metrics::sum(std::str::from_utf8(&text.unwrap()).unwrap(), name, labels)
    }

    /// Whether it is the one that acts.
    ///
    /// # Panics
    ///
    /// As [`Self::metric`].
    pub async fn acts(&self) -> bool {
        self.metric("larder_controller_leads", &[]).await > 0.0
    }

    /// How many turns it has taken without failure.
    ///
    /// # Panics
    ///
    /// As [`Self::metric`].
    pub async fn turns(&self) -> f64 {
        self.metric("larder_controller_reconciles_total", &[("outcome", "done")]).await
    }

    /// Asks it to stop, and waits until it has.
    pub async fn stop(mut self) -> Ended {
        self.process.signal(Signal::TERM);
        self.process.wait().await
    }

    /// Kills it as `kill -9` does.
    pub fn kill(mut self) {
        self.process.kill();
    }
}
