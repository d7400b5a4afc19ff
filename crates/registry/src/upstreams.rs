//! The upstreams that are known, by the names that clients use.
//!
//! They can be exchanged while requests are under way: whoever has found an upstream keeps it, and
//! one whose configuration stays the same stays itself, with its connections and with what is known
//! of it.

use std::collections::HashMap;
use std::sync::Arc;

use larder_core::Host;
use larder_core::address::{AddressError, Asked, Directory};
use larder_core::name::Named;
use parking_lot::{Mutex, RwLock};

use crate::config;
use crate::metrics::Metrics;
use crate::upstream::{Settings, SetupUpstreamError, Upstream};

/// How many hosts one wildcard may stand for at one time. Each has a pool of connections.
const MAX_WILDCARD_HOSTS: usize = 256;

/// All upstreams.
pub(crate) struct Upstreams {
    metrics: Metrics,
    table: RwLock<Arc<Table>>,
}

/// All upstreams at one time.
#[derive(Debug, Default)]
struct Table {
    directory: Directory,
    entries: Vec<Arc<Entry>>,
}

/// One configured upstream.
#[derive(Debug)]
struct Entry {
    settings: Arc<Settings>,
    /// Those made so far: one, or one for each host that a wildcard has been asked for.
    by_host: Mutex<HashMap<Host, Arc<Upstream>>>,
}

/// Registries with their hosts, by name.
pub(crate) type Hosts = Vec<(Host, Arc<Upstream>)>;

/// A repository, and the entry that its upstream belongs to.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) name: Named,
    entry: Arc<Entry>,
}

impl Upstreams {
    /// # Errors
    ///
    /// [`SetupUpstreamError`]: one of them cannot be made.
    pub(crate) fn new(
        configured: &[config::Upstream],
        metrics: Metrics,
    ) -> Result<Self, SetupUpstreamError> {
        let upstreams = Self { metrics, table: RwLock::default() };
        upstreams.replace(configured)?;
        Ok(upstreams)
    }

    /// From now on, these are the upstreams. Each host pattern and each alias is there once.
    ///
    /// # Errors
    ///
    /// [`SetupUpstreamError`]: one of them cannot be made, and all stay as they were.
    pub(crate) fn replace(
        &self,
        configured: &[config::Upstream],
    ) -> Result<(), SetupUpstreamError> {
        let before = self.table();
        let mut table = Table::default();
        for (n, config) in configured.iter().enumerate() {
            table.directory.add(n, &config.host, &config.alias);
            let same = before.entries.iter().find(|entry| entry.settings.config() == config);
            table.entries.push(match same {
                Some(entry) => Arc::clone(entry),
                None => Arc::new(Entry::new(config, &self.metrics)?),
            });
        }
        *self.table.write() = Arc::new(table);
        Ok(())
    }

    fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.read())
    }

    /// The upstream and repository that a request means.
    pub(crate) fn resolve(&self, asked: Asked<'_>) -> Result<Found, AddressError> {
        let table = self.table();
        let address = table.directory.resolve(asked)?;
        Ok(Found { name: address.name, entry: Arc::clone(&table.entries[address.entry]) })
    }

    /// The upstream that a request means which names no repository.
    pub(crate) fn meant(
        &self,
        ns: Option<&str>,
        default_upstream: Option<&str>,
    ) -> Option<Result<Arc<Upstream>, SetupUpstreamError>> {
        // Any name that is neither a host nor an alias with something behind it.
        let asked = Asked { name: "any", ns, default_upstream };
        Some(self.resolve(asked).ok()?.upstream())
    }

    /// Whether a repository of the store is one that is still served, to everybody alike.
    pub(crate) fn serves_to_all(&self, name: &Named) -> bool {
        self.find(name).is_some_and(|found| found.entry.settings.is_for_all())
    }

    /// Whether a repository of the store is one that is still served.
    pub(crate) fn serves(&self, name: &Named) -> bool {
        self.find(name).is_some()
    }

    /// The registry of a repository of the store, if that is still served.
    pub(crate) fn of(&self, name: &Named) -> Option<Result<Arc<Upstream>, SetupUpstreamError>> {
        Some(self.find(name)?.upstream())
    }

    fn find(&self, name: &Named) -> Option<Found> {
        let text = name.to_string();
        let asked = Asked { name: &text, ns: None, default_upstream: None };
        let found = self.resolve(asked).ok()?;
        let is_served = found.entry.settings.allows(&name.repository);
        (found.name == *name && is_served).then_some(found)
    }

    /// Each configured upstream with those of its hosts that have been asked for.
    pub(crate) fn list(&self) -> Vec<(Arc<Settings>, Hosts)> {
        let listed = |entry: &Arc<Entry>| {
            let by_host = entry.by_host.lock();
            let mut hosts: Hosts =
                by_host.iter().map(|(host, it)| (host.clone(), Arc::clone(it))).collect();
            hosts.sort_by(|(one, _), (other, _)| one.as_str().cmp(other.as_str()));
            (Arc::clone(&entry.settings), hosts)
        };
        self.table().entries.iter().map(listed).collect()
    }
}

impl Entry {
    fn new(config: &config::Upstream, metrics: &Metrics) -> Result<Self, SetupUpstreamError> {
        let metrics = metrics.of_upstream(config.host.as_str());
        let settings = Arc::new(Settings::new(config.clone(), metrics)?);
        let mut by_host = HashMap::new();
        if let Some(host) = config.host.exact() {
            by_host.insert(host.clone(), Arc::new(Upstream::new(&settings, host)?));
        }
        Ok(Self { settings, by_host: Mutex::new(by_host) })
    }
}

impl Found {
    /// The registry.
    ///
    /// # Errors
    ///
    /// A client cannot be made for it: its files have changed since they were checked.
    pub(crate) fn upstream(&self) -> Result<Arc<Upstream>, SetupUpstreamError> {
        let (entry, host) = (&self.entry, &self.name.host);
        let mut by_host = entry.by_host.lock();
        if let Some(upstream) = by_host.get(host) {
            return Ok(Arc::clone(upstream));
        }
        let upstream = Arc::new(Upstream::new(&entry.settings, host)?);
        if by_host.len() >= MAX_WILDCARD_HOSTS
            && let Some(any) = by_host.keys().next().cloned()
        {
            by_host.remove(&any);
        }
        by_host.insert(host.clone(), Arc::clone(&upstream));
        Ok(upstream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_as_it_was_stays_itself() {
        let before = [at("a.example"), at("b.example")];
        let upstreams = Upstreams::new(&before, Metrics::default()).unwrap();
        let (a, b) = (found(&upstreams, "a.example"), found(&upstreams, "b.example"));
        let changed = config::Upstream { serve_deleted: true, ..at("b.example") };
        upstreams.replace(&[changed, at("c.example"), at("a.example")]).unwrap();
        assert!(Arc::ptr_eq(&a.unwrap(), &found(&upstreams, "a.example").unwrap()));
        assert!(!Arc::ptr_eq(&b.unwrap(), &found(&upstreams, "b.example").unwrap()));
        assert!(found(&upstreams, "c.example").is_some());
        upstreams.replace(&[]).unwrap();
        assert!(found(&upstreams, "a.example").is_none());
    }

    fn at(host: &str) -> config::Upstream {
        config::parse_upstream(host, &toml::Table::new(), &config::Disk).unwrap()
    }

    fn found(upstreams: &Upstreams, host: &str) -> Option<Arc<Upstream>> {
        let asked = Asked { name: "team/app", ns: Some(host), default_upstream: None };
        Some(upstreams.resolve(asked).ok()?.upstream().unwrap())
    }
}
