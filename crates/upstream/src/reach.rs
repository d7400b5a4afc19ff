//! Which addresses may be connected to.
//!
//! Where clients may name any registry, whoever can reach this cache could make it ask services that
//! only it can reach. So unless an address is listed, only those of the public internet are
//! connected to: also where a name's DNS record, a redirect or a token service leads to others.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// Which addresses an upstream may be at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// Any: whoever configured the upstream knows where it is.
    #[default]
    Anywhere,
    /// Those of the public internet, and those in the listed networks.
    Public {
        /// Networks that may be reached though they are not public.
        besides: Vec<IpNet>,
    },
}

/// An address that may not be connected to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{host} is at {address}, which is not an address of the public internet")]
pub(crate) struct Unreachable {
    host: String,
    address: IpAddr,
}

impl Reach {
    /// Whether `address` may be connected to.
    pub fn allows(&self, address: IpAddr) -> bool {
        match self {
            Self::Anywhere => true,
            Self::Public { besides } => {
                let address = address.to_canonical();
                is_public(address) || besides.iter().any(|network| network.contains(&address))
            }
        }
    }

    /// Makes sure that a URL whose host is an address may be asked. Names are looked at when they
    /// are resolved.
    pub(crate) fn check(&self, url: &Url) -> Result<(), Unreachable> {
        let address = match url.host() {
            Some(Host::Ipv4(address)) => IpAddr::V4(address),
            Some(Host::Ipv6(address)) => IpAddr::V6(address),
            _ => return Ok(()),
        };
        match self.allows(address) {
            true => Ok(()),
            false => Err(Unreachable { host: address.to_string(), address }),
        }
    }
}

/// Resolves names as the system does, and leaves out what may not be connected to. The connection
/// is made to what was looked at here, so a name that is resolved anew changes nothing.
pub(crate) struct Resolver(pub(crate) Reach);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = self.0.clone();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let (allowed, refused): (Vec<SocketAddr>, Vec<SocketAddr>) =
                found.partition(|found| reach.allows(found.ip()));
            match (allowed.is_empty(), refused.first()) {
                (true, Some(refused)) => {
                    let (host, address) = (name.as_str().to_owned(), refused.ip());
                    Err(Unreachable { host, address }.into())
                }
                _ => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Resolver").field(&self.0).finish()
    }
}

/// Whether an address belongs to somebody on the public internet.
///
/// Source: IANA's special-purpose address registries (RFC 6890), for IPv4 and IPv6.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let is_special = match (a, b, c) {
        // This network, and carrier-grade NAT.
        (0, ..) | (100, 64..=127, _) => true,
        // Protocol assignments, benchmarks, 6to4 relays.
        (192, 0, 0) | (198, 18..=19, _) | (192, 88, 99) => true,
        // Reserved; 224.0.0.0/4 below it is multicast.
        (224..=255, ..) => true,
        _ => false,
    };
    !(is_special
        || address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation())
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        // NAT64 and 6to4 lead to the IPv4 address that they hold.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => embedded(high, low),
        // Documentation, Teredo and other protocol assignments.
        [0x2001, 0xdb8, ..] | [0x2001, 0..=0x1ff, ..] | [0x3fff, 0..=0xfff, ..] => false,
        // Global unicast is what has been given out so far.
        [0x2000..=0x3fff, ..] => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_reached_unasked() {
        for address in [
            "127.0.0.1",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "192.0.2.1",
            "198.18.0.1",
            "240.0.0.1",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "::ffff:10.0.0.1",
            "::ffff:127.0.0.1",
            "64:ff9b::a00:1",
            "2002:7f00:1::",
            "2001:db8::1",
            "2001::1",
            "fec0::1",
            "::127.0.0.1",
        ] {
            assert!(!public(&[]).allows(address.parse().unwrap()), "{address}");
            assert!(Reach::Anywhere.allows(address.parse().unwrap()), "{address}");
        }
        for address in [
            "1.1.1.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.169.0.1",
            "100.128.0.1",
            "2606:4700::1111",
            "64:ff9b::101:101",
            "2002:101:101::",
        ] {
            assert!(public(&[]).allows(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn a_listed_network_is_reached() {
        let reach = public(&["10.1.0.0/16", "::1/128"]);
        assert!(reach.allows("10.1.2.3".parse().unwrap()));
        assert!(reach.allows("::ffff:10.1.2.3".parse().unwrap()));
        assert!(reach.allows("::1".parse().unwrap()));
        assert!(!reach.allows("10.2.0.1".parse().unwrap()));
    }

    #[test]
    fn a_url_with_an_address_is_refused_however_it_is_written() {
        let check = |url: &str| public(&[]).check(&Url::parse(url).unwrap());
        for url in ["http://127.1/", "http://0x7f.1/", "http://2130706433/", "https://[::1]:5000/"]
        {
            assert!(check(url).is_err(), "{url}");
        }
        assert_eq!(check("https://registry.example/"), Ok(()));
    }

    #[tokio::test]
    async fn a_name_is_refused_by_what_it_resolves_to() {
        let resolve = |reach| async { Resolver(reach).resolve("localhost".parse().unwrap()).await };
        let Err(error) = resolve(public(&[])).await else { panic!("localhost is not public") };
        assert!(error.is::<Unreachable>(), "{error}");
        assert!(resolve(public(&["127.0.0.0/8", "::1/128"])).await.is_ok());
    }

    fn public(besides: &[&str]) -> Reach {
        let besides = besides.iter().map(|network| network.parse().unwrap()).collect();
        Reach::Public { besides }
    }
}
