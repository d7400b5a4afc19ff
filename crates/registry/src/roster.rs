//! Which upstreams there are: those of the configuration, and those made through the REST API, which
//! are kept in `upstreams.toml` beside the store, each as a configuration would have it.
//!
//! The configuration counts where both name one host or one alias. Those that everybody knows give
//! way to both.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use larder_core::address::HostPattern;
use larder_upstream::probe::{Outcome, Step};
use tempfile::NamedTempFile;
use tracing::{error, info};

use crate::config::{
    Config, Disk, MAX_UPSTREAM, Mistake, Origin, Upstream, in_order, parse_upstream,
};
use crate::probe::Subject;
use crate::service::Registry;
use crate::upstream::SetupUpstreamError;

/// The most upstreams that can be made. Each has metrics and a pool of connections.
const MAX_MADE: usize = 1000;

/// How long an upstream is tested before it is made.
const TEST_LIMIT: Duration = Duration::from_secs(10);

/// Which upstreams there are.
#[derive(Debug)]
pub(crate) struct Roster {
    file: PathBuf,
    /// Held while the upstreams are exchanged.
    state: tokio::sync::Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// With its own upstreams only.
    config: Config,
    made: BTreeMap<String, Made>,
}

/// An upstream made through the API.
#[derive(Debug)]
struct Made {
    /// As it was written. It may have a password.
    table: toml::Table,
    /// `None`: it cannot be used as things are, and stays in the file.
    upstream: Option<Upstream>,
}

/// Why what was made through the API before cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum OpenRosterError {
    /// The file cannot be read.
    #[error("reading {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// It is no TOML.
    #[error("{} is damaged; repair it, or remove it and make its upstreams again", .file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// What is wrong. A message alone: the text around it may be a password.
        #[source]
        source: SyntaxError,
    },
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SyntaxError(String);

/// Why an upstream is not made, or not removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChangeError {
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Mistakes(Vec<Mistake>),
    #[error(
        "`{0}` would be read from a file of the server and sent to whatever address the upstream has; write {{ username, password }} here, or put the upstream into the configuration"
    )]
    SecretFile(&'static str),
    #[error("an upstream may be {MAX_UPSTREAM} bytes long")]
    TooLong,
    #[error("there are {MAX_MADE} upstreams already; remove one first")]
    TooMany,
    #[error("{0} stands in the configuration; change it there")]
    Configured(HostPattern),
    #[error("`{alias}` is an alias of {of} already; write another one")]
    AliasTaken { alias: String, of: HostPattern },
    #[error("{0} was not made through the API")]
    Unknown(String),
    #[error("the upstream does not work; to make it all the same, ask with ?test=false")]
    Failed(Vec<Step>),
    #[error("the upstream cannot be set up")]
    Setup(#[from] SetupUpstreamError),
    #[error("writing {}", .0.display())]
    Save(PathBuf, #[source] io::Error),
}

// === impl Roster ===

impl Roster {
    /// Reads what was made before. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// [`OpenRosterError`]
    pub(crate) fn open(config: Config) -> Result<Self, OpenRosterError> {
        let file = config.data.join("upstreams.toml");
        let made = read(&file)?.into_iter().filter_map(|(host, table)| {
            let toml::Value::Table(table) = table else { return None };
            let upstream = parse_upstream(&host, &table, &Disk).map_err(|mistakes| {
                for mistake in mistakes {
                    error!("the upstream {host}, made through the API, is not used: {mistake}");
                }
            });
            let upstream = upstream.ok().map(|it| Upstream { origin: Origin::Api, ..it });
            Some((host, Made { table, upstream }))
        });
        let state = State { made: made.collect(), config };
        Ok(Self { file, state: tokio::sync::Mutex::new(state) })
    }

    /// The configuration with all upstreams. Only before anybody else has the roster.
    pub(crate) fn effective(&mut self) -> Config {
        self.state.get_mut().effective()
    }
}

impl State {
    fn effective(&self) -> Config {
        let made = self.made.values().filter_map(|made| made.upstream.as_ref());
        Config { upstreams: merge(&self.config.upstreams, made), ..self.config.clone() }
    }

    /// Whether `upstream` may be made beside the others.
    fn check(&self, upstream: &Upstream) -> Result<(), ChangeError> {
        let is_new = !self.made.contains_key(upstream.host.as_str());
        if is_new && self.made.len() >= MAX_MADE {
            return Err(ChangeError::TooMany);
        }
        for other in self.effective().upstreams {
            if other.host == upstream.host {
                if other.origin == Origin::Configuration {
                    return Err(ChangeError::Configured(other.host));
                }
                continue;
            }
            if let Some(alias) = upstream.alias.iter().find(|it| other.alias.contains(it)) {
                return Err(ChangeError::AliasTaken { alias: alias.clone(), of: other.host });
            }
        }
        Ok(())
    }
}

/// All upstreams, those of the configuration with the built-in ones among them.
fn merge<'u>(
    configured: &[Upstream],
    made: impl Iterator<Item = &'u Upstream> + Clone,
) -> Vec<Upstream> {
    let is_configured = |it: &&Upstream| it.origin == Origin::Configuration;
    let said: Vec<&Upstream> = configured.iter().filter(is_configured).collect();
    let hosts: HashSet<&HostPattern> = said.iter().map(|it| &it.host).collect();
    let aliases: HashSet<&String> = said.iter().flat_map(|it| &it.alias).collect();
    let made = made.filter(|it| !hosts.contains(&it.host));
    let made_hosts: HashSet<&HostPattern> = made.clone().map(|it| &it.host).collect();
    let known = configured.iter().filter(|it| !is_configured(it) && !made_hosts.contains(&it.host));
    let made = made.map(|it| {
        let mut upstream = it.clone();
        upstream.alias.retain(|alias| !aliases.contains(alias));
        upstream
    });
    in_order(said.iter().map(|it| (*it).clone()).chain(known.cloned()).chain(made))
}

// === the file ===

fn read(file: &Path) -> Result<toml::Table, OpenRosterError> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(toml::Table::new()),
        Err(error) => return Err(OpenRosterError::Read(file.to_owned(), error)),
    };
    text.parse::<toml::Table>().map_err(|error| {
        let source = SyntaxError(error.message().to_owned());
        OpenRosterError::Syntax { file: file.to_owned(), source }
    })
}

/// Writes all upstreams, for nobody else to read. What was there before is whole until the new one
/// is.
async fn save(file: &Path, made: &BTreeMap<String, Made>) -> Result<(), ChangeError> {
    let tables = made.iter().map(|(host, made)| (host.clone(), made.table.clone().into()));
    let text = toml::Table::from_iter(tables).to_string();
    let path = file.to_owned();
    let write = move || {
        let directory = path.parent().unwrap_or(Path::new("."));
        let mut fresh = NamedTempFile::new_in(directory)?;
        fresh.write_all(text.as_bytes())?;
        fresh.as_file().sync_all()?;
        fresh.persist(&path)?;
        std::fs::File::open(directory)?.sync_all()
    };
    let written = tokio::task::spawn_blocking(write).await.map_err(io::Error::other);
    written.flatten().map_err(|error| ChangeError::Save(file.to_owned(), error))
}

// === what changes ===

impl Registry {
    /// Makes an upstream, or exchanges one that was made before, and remembers it. It is tested
    /// first, if `is_tested`, unless it stands for several hosts or no upstream may be asked. Returns
    /// it, whether it is new, and what was tested.
    ///
    /// # Errors
    ///
    /// [`ChangeError`]: nothing has changed.
    pub(crate) async fn make_upstream(
        &self,
        host: &str,
        table: toml::Table,
        is_tested: bool,
    ) -> Result<(Upstream, bool, Vec<Step>), ChangeError> {
        let upstream = read_upstream(host, table.clone()).await?;
        self.roster.state.lock().await.check(&upstream)?;
        let subject = Subject::of(&upstream).filter(|_| is_tested && !self.offline);
        let steps = match subject {
            Some(subject) => subject.probe(None, TEST_LIMIT, &mut |_| ()).await,
            None => Vec::new(),
        };
        if steps.iter().any(|step| step.outcome == Outcome::Failed) {
            return Err(ChangeError::Failed(steps));
        }

        let mut state = self.roster.state.lock().await;
        state.check(&upstream)?;
        let name = upstream.host.as_str().to_owned();
        let made = Made { table, upstream: Some(upstream.clone()) };
        let before = state.made.insert(name.clone(), made);
        let is_new = before.is_none();
        if let Err(error) = self.adopt(&state).await {
            match before {
                Some(before) => state.made.insert(name, before),
                None => state.made.remove(&name),
            };
            return Err(error);
        }
        info!("the upstream {name} was {}", if is_new { "made" } else { "changed" });
        Ok((upstream, is_new, steps))
    }

    /// Forgets an upstream that was made. What is stored of it stays until it is evicted.
    ///
    /// # Errors
    ///
    /// [`ChangeError`]: nothing has changed.
    pub(crate) async fn remove_upstream(&self, host: &str) -> Result<(), ChangeError> {
        let pattern = host.parse::<HostPattern>();
        let name = pattern.map_or_else(|_| host.to_owned(), |pattern| pattern.as_str().to_owned());
        let mut state = self.roster.state.lock().await;
        let Some(removed) = state.made.remove(&name) else {
            let configured = state.config.upstreams.iter();
            let mut configured = configured.filter(|it| it.origin == Origin::Configuration);
            return Err(match configured.find(|it| it.host.as_str() == name) {
                Some(upstream) => ChangeError::Configured(upstream.host.clone()),
                None => ChangeError::Unknown(name),
            });
        };
        if let Err(error) = self.adopt(&state).await {
            state.made.insert(name, removed);
            return Err(error);
        }
        info!("the upstream {name} was removed");
        Ok(())
    }

    /// Takes over what can be from another configuration while requests are under way: upstreams,
    /// and what is kept for how long.
    ///
    /// # Errors
    ///
    /// An upstream cannot be set up, and everything stays as it was.
    pub(crate) async fn reconfigure(&self, config: Config) -> Result<(), SetupUpstreamError> {
        let mut state = self.roster.state.lock().await;
        let before = std::mem::replace(&mut state.config, config);
        if let Err(error) = self.apply(&state) {
            state.config = before;
            return Err(error);
        }
        Ok(())
    }

    /// Has the upstreams of `state` count from now on, and after the next start.
    async fn adopt(&self, state: &State) -> Result<(), ChangeError> {
        save(&self.roster.file, &state.made).await?;
        Ok(self.apply(state)?)
    }

    fn apply(&self, state: &State) -> Result<(), SetupUpstreamError> {
        let config = state.effective();
        self.upstreams.replace(&config.upstreams)?;
        self.store.set_retention(config.retention());
        Ok(())
    }
}

/// Reads an upstream as it came through the API, whose word may not have the server's files read.
async fn read_upstream(host: &str, table: toml::Table) -> Result<Upstream, ChangeError> {
    if table.to_string().len() > MAX_UPSTREAM {
        return Err(ChangeError::TooLong);
    }
    if let Some(toml::Value::Table(credentials)) = table.get("credentials") {
        let mut files = ["password_file", "docker_config"].into_iter();
        if let Some(key) = files.find(|key| credentials.contains_key(*key)) {
            return Err(ChangeError::SecretFile(key));
        }
    }
    let host = host.to_owned();
    let read = move || parse_upstream(&host, &table, &Disk);
    let read = tokio::task::spawn_blocking(read).await.expect("reading does not panic");
    let upstream = read.map_err(ChangeError::Mistakes)?;
    Ok(Upstream { origin: Origin::Api, ..upstream })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Environment, Overrides, parse};

    const CONFIG: &str = "\
        [upstreams.\"a.example\"]\n\
        alias = \"a\"\n";

    #[test]
    fn the_configuration_counts_and_what_everybody_knows_gives_way() {
        let made = [
            upstream("a.example", "serve_deleted = true"),
            upstream("b.example", "alias = [\"a\", \"b\"]"),
            upstream("quay.io", "urls = \"https://mirror.example\""),
        ];
        let merged = merge(&config().upstreams, made.iter());
        let find = |host: &str| {
            let mut found = merged.iter().filter(|it| it.host.as_str() == host);
            let one = found.next().unwrap();
            assert!(found.next().is_none(), "{host} is there twice");
            one
        };
        assert!(!find("a.example").serve_deleted);
        assert_eq!(find("b.example").alias, ["b"]);
        assert_eq!(find("quay.io").urls[0].as_str(), "https://mirror.example/");
        assert_eq!(find("ghcr.io").origin, Origin::BuiltIn);
        assert_eq!(merged, in_order(merged.iter().cloned()));
    }

    #[test]
    fn what_others_have_is_refused() {
        let state = State { config: config(), made: BTreeMap::new() };
        let check = |host, text| state.check(&upstream(host, text));
        assert!(matches!(check("a.example", ""), Err(ChangeError::Configured(_))));
        assert!(matches!(check("b.example", "alias = \"a\""), Err(ChangeError::AliasTaken { .. })));
        check("quay.io", "").unwrap();
        check("b.example", "alias = \"b\"").unwrap();
    }

    #[tokio::test]
    async fn a_file_of_the_server_is_nobodys_password() {
        for key in ["password_file", "docker_config"] {
            let text = format!("credentials = {{ username = \"u\", {key} = \"/etc/shadow\" }}");
            let error = read_upstream("a.example", text.parse().unwrap()).await.unwrap_err();
            assert!(matches!(&error, ChangeError::SecretFile(it) if *it == key), "{error}");
        }
    }

    fn upstream(host: &str, text: &str) -> Upstream {
        let upstream = parse_upstream(host, &text.parse().unwrap(), &Disk).unwrap();
        Upstream { origin: Origin::Api, ..upstream }
    }

    fn config() -> Config {
        let environment = Environment {
            overrides: Overrides::default(),
            default_data: PathBuf::from("data"),
            files: &Disk,
        };
        parse(CONFIG, "larder.toml", &environment).unwrap()
    }
}
