//! What `serve` can be told by flags and variables, and reading all of it.

use std::env;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args};
use larder_registry::config::{
    self, Config, Disk, Environment, Files as _, Given, Overrides, default_data,
};

use crate::failure::Failure;

/// Where a configuration comes from, as far as it is about upstreams.
#[derive(Args, Clone, Debug)]
pub(crate) struct Sources {
    /// The configuration, TOML
    #[arg(long, value_name = "FILE", env = "LARDER_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,

    /// Where an upstream is asked; can be given several times
    #[arg(long, value_name = "HOST=URL", env = "LARDER_UPSTREAM", hide_env_values = true)]
    #[arg(value_delimiter = ',')]
    upstream: Vec<String>,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct Settings {
    #[command(flatten)]
    sources: Sources,

    /// Where to serve images, and which upstream is meant by a request that names none; can be
    /// given several times [default: 127.0.0.1:5000]
    #[arg(long, value_name = "ADDRESS[=HOST]", env = "LARDER_LISTEN", hide_env_values = true)]
    #[arg(value_delimiter = ',')]
    listen: Vec<String>,

    /// Where to serve metrics and health [default: 127.0.0.1:5001]
    #[arg(long, value_name = "ADDRESS", env = "LARDER_ADMIN", hide_env_values = true)]
    admin: Option<String>,

    /// The directory of the store [default: ~/.local/share/larder]
    #[arg(long, value_name = "DIRECTORY", env = "LARDER_DATA", hide_env_values = true)]
    data: Option<String>,

    /// The upstream that is meant by a request that names none [default: docker.io]
    #[arg(long, value_name = "HOST", env = "LARDER_DEFAULT_UPSTREAM", hide_env_values = true)]
    default_upstream: Option<String>,

    /// Where other replicas reach this one, if they share a store [default: the first of --listen]
    #[arg(long, value_name = "URL", env = "LARDER_ADVERTISE", hide_env_values = true)]
    advertise: Option<String>,

    /// The most that the store may hold: 100GB, or 80% of its disk [default: no limit]
    #[arg(long, value_name = "SIZE", env = "LARDER_BUDGET", hide_env_values = true)]
    budget: Option<String>,

    /// Ask no upstream: serve what is stored
    #[arg(long, value_name = "BOOL", env = "LARDER_OFFLINE", hide_env_values = true)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    offline: Option<String>,

    /// The certificate chain to serve images with, PEM [default: plain HTTP]
    #[arg(long, value_name = "FILE", env = "LARDER_TLS_CERT", hide_env_values = true)]
    tls_cert: Option<String>,

    /// The certificate's private key, PEM
    #[arg(long, value_name = "FILE", env = "LARDER_TLS_KEY", hide_env_values = true)]
    tls_key: Option<String>,
}

impl Sources {
    /// Reads the file, and what overrides its upstreams. `matches` knows what came by which way.
    pub(crate) fn read(&self, matches: &ArgMatches) -> Result<Config, Failure> {
        self.read_with(Overrides { upstreams: self.upstreams(matches), ..Overrides::default() })
    }

    fn upstreams(&self, matches: &ArgMatches) -> Vec<Given> {
        let origin = origin(matches, "upstream");
        let given = |text: &String| Given { origin: origin.clone(), text: text.clone() };
        self.upstream.iter().map(given).collect()
    }

    fn read_with(&self, overrides: Overrides) -> Result<Config, Failure> {
        let (name, text) = self.file()?;
        let variable = |name: &str| env::var(name).ok();
        let environment =
            Environment { overrides, default_data: default_data(variable), files: &Disk };
        config::parse(&text, &name, &environment).map_err(Failure::Configuration)
    }

    /// The file's name and text; both empty without one.
    fn file(&self) -> Result<(String, String), Failure> {
        let Some(path) = &self.config else { return Ok((String::new(), String::new())) };
        let name = path.display().to_string();
        let text = Disk
            .read(path)
            .map_err(anyhow::Error::new)
            .and_then(|bytes| String::from_utf8(bytes).context("the file is not UTF-8 text"));
        let text = text.with_context(|| format!("reading the configuration {name}"));
        Ok((name, text.map_err(Failure::Usage)?))
    }
}

impl Settings {
    /// Reads the file, and what overrides it. `matches` knows what came by which way.
    pub(crate) fn read(&self, matches: &ArgMatches) -> Result<Config, Failure> {
        self.sources.read_with(self.overrides(matches))
    }

    fn overrides(&self, matches: &ArgMatches) -> Overrides {
        let given =
            |id: &str, text: &String| Given { origin: origin(matches, id), text: text.clone() };
        let one = |id, text: &Option<String>| text.as_ref().map(|text| given(id, text));
        let all = |id, texts: &[String]| texts.iter().map(|text| given(id, text)).collect();
        // Whole, so that a flag that nobody uses does not compile.
        let Self {
            sources,
            listen,
            admin,
            data,
            default_upstream,
            advertise,
            budget,
            offline,
            tls_cert,
            tls_key,
        } = self;
        Overrides {
            listen: all("listen", listen),
            data: one("data", data),
            upstreams: sources.upstreams(matches),
            admin: one("admin", admin),
            tls_cert: one("tls_cert", tls_cert),
            tls_key: one("tls_key", tls_key),
            budget: one("budget", budget),
            offline: one("offline", offline),
            default_upstream: one("default_upstream", default_upstream),
            advertise: one("advertise", advertise),
        }
    }
}

/// The flag or variable that the value of `id` came by.
fn origin(matches: &ArgMatches, id: &str) -> String {
    match matches.value_source(id) {
        Some(ValueSource::EnvVariable) => format!("LARDER_{}", id.to_ascii_uppercase()),
        _ => format!("--{}", id.replace('_', "-")),
    }
}
