//! What is counted, and the process's own figures.

mod process;

use prometheus_client::encoding::text;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use self::process::Process;

/// The media type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics of the process.
///
/// Services register theirs under the product's prefix while they start. The process's own have
/// the names that every Prometheus client uses, without prefix: `process_resident_memory_bytes`,
/// `process_open_fds`, `process_start_time_seconds`, `process_cpu_seconds_total`.
#[derive(Debug)]
pub struct Metrics {
    process: Registry,
    product: Registry,
}

impl Metrics {
    /// The metrics of a product: `prefix` is the first word of each name, and `version` is shown as
    /// `PREFIX_build_info{version="…"}`.
    pub fn new(prefix: &str, version: &'static str) -> Self {
        let mut process = Registry::default();
        process.register_collector(Box::new(Process));
        let mut product = Registry::with_prefix(prefix);
        let build = Info::new(vec![("version", version)]);
        product.register("build", "Which version is running", build);
        Self { process, product }
    }

    /// Where a service registers its metrics; the prefix comes from here. Beware that a counter's
    /// name gets `_total` of its own.
    pub fn registry(&mut self) -> &mut Registry {
        &mut self.product
    }

    /// All metrics as OpenMetrics text; see [`CONTENT_TYPE`].
    ///
    /// Reads a few small files under `/proc`. Figures that cannot be read are left out.
    pub fn render(&self) -> String {
        let mut page = String::new();
        text::encode_registry(&mut page, &self.process)
            .and_then(|()| text::encode(&mut page, &self.product))
            .expect("writing to a string cannot fail, and no metric of ours does");
        page
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    #[test]
    fn a_services_metrics_have_the_products_prefix() {
        let mut metrics = Metrics::new("thing", "1.2.3");
        let requests: Counter = Counter::default();
        metrics.registry().register("requests", "Requests", requests.clone());
        requests.inc();
        let page = metrics.render();
        assert!(page.contains("\nthing_requests_total 1\n"), "{page}");
        assert!(page.contains("\nthing_build_info{version=\"1.2.3\"} 1\n"), "{page}");
        assert!(page.ends_with("# EOF\n") && page.matches("# EOF").count() == 1, "{page}");
    }

    #[test]
    fn the_processs_own_figures_are_there() {
        let page = Metrics::new("thing", "1.2.3").render();
        let value = |name: &str| -> f64 {
            let line = page.lines().find(|line| line.split(' ').next() == Some(name));
            line.unwrap_or_else(|| panic!("{name} in {page}"))
                .rsplit(' ')
                .next()
                .unwrap()
                .parse()
                .unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 100_000.0);
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_cpu_seconds_total") >= 0.0);
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
        let age = now - value("process_start_time_seconds");
        assert!((-2.0..3600.0).contains(&age), "{age}");
    }
}
