//! What a broken cache, or a broken agent, costs a pull by a real containerd.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use larder_testkit::blackhole::Blackhole;
use larder_testkit::{Image, Upstream, patiently};
use larder_tests::agent::Settings;
use larder_tests::containerd::Generation;
use larder_tests::line::{Fault, Line};
use larder_tests::memory::proportional_bytes;
use larder_tests::{Agent, Containerd, Larder, http};
use rustix::process::{Signal, kill_process};

const REPOSITORY: &str = "team/app";

/// The longest that a pull may take here, whatever is broken: far less than any time limit of a
/// runtime, and enough for a busy machine. The figures are those that `larder bench` prints.
const NO_HANG: Duration = Duration::from_secs(10);

/// How many pulls there are of each kind, if `LARDER_AGENT_PAIRS` does not say so.
const N_PAIRS: usize = 3;

/// A node: an upstream, a runtime, and what the tests put between them.
struct Node {
    upstream: Upstream,
    containerd: Containerd,
    generation: Generation,
    n_pulled: u64,
}

impl Node {
    async fn new(generation: Generation) -> Self {
        let upstream = Upstream::start().await;
        let containerd = Containerd::start_as(generation).await;
        let node = Self { upstream, containerd, generation, n_pulled: 0 };
        // The same upstream by another name, which no agent is asked about.
        let direct = node.containerd.certs_dir().join(format!("localhost_{}_", node.port()));
        std::fs::create_dir_all(&direct).unwrap();
        let server = format!("server = \"{}\"\n", node.upstream.url());
        std::fs::write(direct.join("hosts.toml"), server).unwrap();
        node
    }

    fn port(&self) -> String {
        self.upstream.host().rsplit_once(':').unwrap().1.to_owned()
    }

    async fn cache(&self) -> Larder {
        Larder::with_upstream(&self.upstream.host(), &self.upstream.url()).await
    }

    /// How an agent is started that asks `caches`.
    fn agent(&self, caches: &[String]) -> Settings {
        let settings = caches.iter().fold(Agent::settings(), |settings, url| settings.cache(url));
        let (host, url) = (self.upstream.host(), self.upstream.url());
        // An old containerd knows that loopback is not encrypted; a newer one has to be told.
        let hosts = if self.generation == Generation::V1_6 { "*" } else { &host };
        let config =
            format!("[mirrors]\nhosts = [\"{hosts}\"]\n[upstreams]\n\"{host}\" = \"{url}\"\n");
        settings.config(&config).certs_dir(&self.containerd.certs_dir())
    }

    fn entry(&self) -> PathBuf {
        let name = match self.generation {
            Generation::V1_6 => "_default".to_owned(),
            _ => format!("127.0.0.1_{}_", self.port()),
        };
        self.containerd.certs_dir().join(name).join("hosts.toml")
    }

    /// Returns once there is an entry that leads to `agent`, or none at all.
    async fn has_entry(&self, agent: Option<&Agent>) {
        let is_so = || {
            let text = std::fs::read_to_string(self.entry());
            match agent {
                Some(agent) => text.is_ok_and(|text| text.contains(&agent.host)),
                None => text.is_err(),
            }
        };
        let entry = async {
            while !is_so() {
                tokio::task::yield_now().await;
            }
        };
        patiently("the entry is as it should be", entry).await;
    }

    /// Pulls an image that nobody has pulled yet, and says how long that took.
    async fn pull(&mut self) -> Duration {
        self.pull_from(&self.upstream.host()).await
    }

    /// The same, past any agent.
    async fn pull_directly(&mut self) -> Duration {
        self.pull_from(&format!("localhost:{}", self.port())).await
    }

    async fn pull_from(&mut self, host: &str) -> Duration {
        self.n_pulled += 1;
        let image = Image::from_seed(self.n_pulled).unpackable().layers(&[1000, 1000]).build();
        let tag = format!("{}", self.n_pulled);
        self.upstream.push(REPOSITORY, &tag, &image);
        let reference = format!("{host}/{REPOSITORY}:{tag}");
        let since = Instant::now();
        self.containerd.pull(&reference).await.unwrap();
        let took = since.elapsed();
        assert!(took < NO_HANG, "{took:?}");
        took
    }
}

/// How long pulls took, each beside one that went past the agent.
#[derive(Default)]
struct Figures {
    first: Vec<Duration>,
    second: Vec<Duration>,
    direct: Vec<Duration>,
}

impl Figures {
    /// Pulls twice, and once directly; before and after the first turn in turns.
    async fn pair(&mut self, node: &mut Node) {
        if self.direct.len().is_multiple_of(2) {
            self.first.push(node.pull().await);
            self.second.push(node.pull().await);
            self.direct.push(node.pull_directly().await);
        } else {
            self.direct.push(node.pull_directly().await);
            self.first.push(node.pull().await);
            self.second.push(node.pull().await);
        }
    }

    fn say(mut self, generation: Generation, what: &str) {
        let [first, second, direct] =
            [&mut self.first, &mut self.second, &mut self.direct].map(|it| median(it).as_millis());
        let name = match generation {
            Generation::V1_6 => "1.6",
            Generation::V1_7 => "1.7",
            Generation::V2_1 { .. } => "2.1",
        };
        let more = |it: u128| i128::try_from(it).unwrap() - i128::try_from(direct).unwrap();
        let (n, first_more, second_more) = (self.direct.len(), more(first), more(second));
        print(&format!(
            "| {name} | {what} | {direct} ms | {first} ms ({first_more:+}) | {second} ms ({second_more:+}) | {n} |"
        ));
    }
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn n_pairs() -> usize {
    std::env::var("LARDER_AGENT_PAIRS").map_or(N_PAIRS, |it| it.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_containerd_goes_on_whatever_breaks() {
    goes_on_whatever_breaks(Generation::V1_6).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_containerd_goes_on_whatever_breaks() {
    goes_on_whatever_breaks(Generation::V1_7).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_containerd_goes_on_whatever_breaks() {
    let generation = Generation::V2_1 { fetch_buffer: 0 };
    if generation.suite().has("containerd") {
        goes_on_whatever_breaks(generation).await;
    }
}

/// Each fault anew: all is well, it breaks, and then come two pulls.
async fn goes_on_whatever_breaks(generation: Generation) {
    let mut node = Node::new(generation).await;
    let cache = node.cache().await;
    let mut line = Line::to(&cache.host).await;
    let mut agent = node.agent(&[line.url()]).start().await;
    node.has_entry(Some(&agent)).await;
    print("| containerd | what is broken | directly | first pull | second pull | n |");
    let mut well = Figures::default();
    for _ in 0..n_pairs() {
        well.pair(&mut node).await;
    }
    well.say(generation, "nothing");
    let blobs = cache.metric("larder_requests_total", &[("kind", "blob")]).await;
    assert!(blobs >= (6 * n_pairs()) as f64, "{blobs} blobs came from the cache");

    for fault in Fault::ALL {
        let mut figures = Figures::default();
        for _ in 0..n_pairs() {
            line.set(fault).await;
            figures.pair(&mut node).await;
            line.set(Fault::None).await;
            agent.knows(1).await;
            node.has_entry(Some(&agent)).await;
        }
        figures.say(generation, &format!("cache: {fault:?}"));
    }
    let mut figures = Figures::default();
    for _ in 0..n_pairs() {
        let worker = agent.worker().unwrap();
        kill_process(worker, Signal::STOP).unwrap();
        figures.pair(&mut node).await;
        let is_another = || agent.worker().is_some_and(|it| it != worker);
        let replaced = async {
            while !is_another() {
                tokio::task::yield_now().await
            }
        };
        patiently("the worker is replaced", replaced).await;
        agent.knows(1).await;
    }
    figures.say(generation, "agent: stopped (SIGSTOP)");
    let mut figures = Figures::default();
    for _ in 0..n_pairs() {
        let settings = agent.kill();
        figures.pair(&mut node).await;
        agent = settings.start().await;
        node.has_entry(Some(&agent)).await;
    }
    figures.say(generation, "agent: killed");
    let before = agent.metric("larder_agent_requests_total", &[]).await;
    node.pull().await;
    agent.counts("larder_agent_requests_total", &[], |it| it > before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_that_was_never_there_costs_nothing_and_gets_no_entry() {
    let mut node = Node::new(Generation::V1_6).await;
    let holes = [Blackhole::unreachable(), Blackhole::silent(), Blackhole::refusing()];
    let agent = node.agent(&holes.each_ref().map(Blackhole::url)).start().await;
    agent.logged(&["passing over"]).await;
    assert!(!node.entry().exists());
    node.pull().await;
    // Also whoever asks all the same is answered at once.
    let since = Instant::now();
    let path = format!("/v2/{REPOSITORY}/manifests/1?ns=docker.io");
    assert_eq!(agent.get(&path).await.status, 503);
    assert!(since.elapsed() < NO_HANG);
    assert_eq!(agent.admin("/readyz").await.status, 503);
    assert_eq!(agent.admin("/healthz").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_are_there_while_they_work_and_gone_byte_for_byte_after() {
    let mut node = Node::new(Generation::V1_6).await;
    let certs_dir = node.containerd.certs_dir();
    let theirs = certs_dir.join("other.test/hosts.toml");
    std::fs::create_dir_all(theirs.parent().unwrap()).unwrap();
    let text = "server = \"https://other.test\"\n\n# the proxy\n[host.\"https://proxy.test\"]\n";
    std::fs::write(&theirs, text).unwrap();
    let default = "[host.\"http://127.0.0.1:1\"]\n  capabilities = [\"pull\"]\n";
    std::fs::create_dir_all(node.entry().parent().unwrap()).unwrap();
    std::fs::write(node.entry(), default).unwrap();

    let cache = node.cache().await;
    let agent = node.agent(&[cache.url("")]).start().await;
    node.has_entry(Some(&agent)).await;
    agent.logged(&["other.test counts for that registry alone"]).await;
    node.pull().await;
    agent.counts("larder_agent_bytes_total", &[], |it| it > 0.0).await;
    agent.counts("larder_mirror_active", &[("runtime", "containerd")], |it| it == 1.0).await;
    let (ended, settings) = agent.stop().await;
    assert_eq!(ended.code, Some(0));
    assert_eq!(std::fs::read_to_string(node.entry()).unwrap(), default);
    assert_eq!(std::fs::read_to_string(&theirs).unwrap(), text);

    // One that is killed leaves its entries to `cleanup`.
    let agent = settings.start().await;
    node.has_entry(Some(&agent)).await;
    let busy = agent.its_settings().run(&["cleanup"]).await;
    assert_eq!(busy.code, Some(1), "an agent that runs would write them again");
    let settings = agent.kill();
    let ended = settings.run(&["cleanup"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(std::fs::read_to_string(node.entry()).unwrap(), default);
    assert_eq!(settings.run(&["cleanup"]).await.expect("again"), "there was nothing to put back\n");
    node.pull().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_are_withdrawn_when_the_cache_is_gone_and_there_again_when_it_is_back() {
    let mut node = Node::new(Generation::V1_7).await;
    let cache = node.cache().await;
    let agent = node.agent(&[cache.url("")]).start().await;
    node.has_entry(Some(&agent)).await;
    kill_process(cache.pid(), Signal::STOP).unwrap();
    node.has_entry(None).await;
    kill_process(cache.pid(), Signal::CONT).unwrap();
    let since = Instant::now();
    node.has_entry(Some(&agent)).await;
    print(&format!("in use again after {:.1?}", since.elapsed()));
    node.pull().await;
    agent.counts("larder_agent_bytes_total", &[], |it| it > 0.0).await;
}

#[tokio::test]
async fn while_a_worker_begins_anew_runtimes_are_answered_all_the_same() {
    let cache = Larder::with_upstream("registry.test", "http://127.0.0.1:1").await;
    let agent = Agent::settings().cache(&cache.url("")).start().await;
    agent.knows(1).await;
    let worker = agent.worker().unwrap();
    kill_process(worker, Signal::STOP).unwrap();
    // Its requests wait in the socket until it is found out, and are then answered or cut.
    let since = Instant::now();
    let base = agent.url("/v2/");
    let answered = async {
        loop {
            if let Ok(response) = http::get(&base).try_send().await {
                return response.status;
            }
        }
    };
    let status = patiently("somebody answers", answered).await;
    assert!(status == 200 || status == 503, "{status}");
    print(&format!("a stopped worker is replaced after {:.1?}", since.elapsed()));
    agent.knows(1).await;
    assert_ne!(agent.worker().unwrap(), worker);
    assert_eq!(agent.metric("larder_agent_worker_restarts_total", &[]).await, 1.0);
    let worker = agent.worker().unwrap();
    kill_process(agent.supervisor(), Signal::KILL).unwrap();
    let gone = async {
        let stat = format!("/proc/{}/stat", worker.as_raw_nonzero());
        while std::fs::read_to_string(&stat).is_ok_and(|it| !it.contains(") Z ")) {
            tokio::task::yield_now().await;
        }
    };
    patiently("a worker ends with its supervisor", gone).await;
}

/// An agent that nobody asks, before a cache.
#[tokio::test]
async fn an_idle_agent_is_small() {
    let cache = Larder::with_upstream("registry.test", "http://127.0.0.1:1").await;
    let agent = Agent::settings().cache(&cache.url("")).start().await;
    agent.knows(1).await;
    let bytes =
        [agent.supervisor(), agent.worker().unwrap()].map(|pid| proportional_bytes(pid).unwrap());
    let total = bytes.iter().sum::<u64>();
    print(&format!("both processes take {:?} KiB", bytes.map(|it| it >> 10)));
    assert!(total <= 40 << 20, "{} KiB", total >> 10);
}

/// A figure of this run, for whoever reads the log.
#[expect(clippy::print_stderr, reason = "the test runner shows it")]
fn print(line: &str) {
    eprintln!("{line}");
}
