//! A live page of a run, its status as JSON, and its metrics for Prometheus.
//!
//! | file | is |
//! |---|---|
//! | `curve`, `predicted`, `history` | what is known of a run, in bounded space |
//! | `document`, `prometheus` | `/status.json` and `/metrics`, made of it |
//! | `gate` | who may read and who may act, by a request's headers |
//! | `source` | follows the run's record and status, and publishes what it found |
//! | `assets`, `routes`, `server` | the files, the answers, and the server |
//!
//! The first three lines are pure. Nothing of a run waits for a page: it reads the record's
//! files and copies the status, on a thread of the lowest priority, and readers get what was
//! published last. What they send is bounded, and becomes an event of the main loop as a
//! signal does.

mod assets;
mod curve;
mod document;
mod gate;
mod history;
mod predicted;
mod prometheus;
mod routes;
mod server;
mod source;

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, Result};
use common::files::replace_private;
use common::net::{Authority, random_word};

use gate::Gate;
use server::Plan;

pub use routes::Actions;
pub use server::Running;
pub use source::Source;

/// Where a page is served, by default on [`Http::DEFAULT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Http {
    Off,
    At(SocketAddr),
}

impl Http {
    pub const DEFAULT: &str = "127.0.0.1:7475";
}

impl FromStr for Http {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            address => address.parse().map(Self::At).map_err(|_| "it must be IP:PORT, such as 127.0.0.1:7475, or `off`".to_owned()),
        }
    }
}

/// A page whose address is taken and which is not served yet.
pub struct Page {
    listener: TcpListener,
    gate: Gate,
    tls: Option<Arc<rustls::ServerConfig>>,
    actions: Option<Actions>,
    /// What a person opens: it holds the token.
    pub url: String,
}

impl Page {
    /// Takes the address. `host`: by which other machines reach this one; `authority`
    /// certifies the server where it is not on the loopback address.
    pub fn bind(address: SocketAddr, host: &str, authority: Option<&Authority>) -> Result<Self> {
        let (listener, bound) = server::bind(address).with_context(|| format!("the page cannot be served on {address}"))?;
        if bound.port() != address.port() && address.port() != 0 {
            tracing::info!("port {} is taken, by another run perhaps: the page is on port {}", address.port(), bound.port());
        }
        let loopback = bound.ip().is_loopback();
        let host = if loopback { ip_host(bound) } else { host.to_owned() };
        let names = if loopback { vec!["localhost".to_owned()] } else { names(&host) };
        let tls = match (loopback, authority) {
            (true, _) => None,
            (false, Some(authority)) => {
                let mut certified = names.clone();
                certified.extend([bound.ip()].iter().filter(|ip| !ip.is_unspecified()).map(ToString::to_string));
                certified.push(host.trim_matches(['[', ']']).to_owned());
                Some(authority.server_config(&certified)?)
            }
            (false, None) => anyhow::bail!(
                "beyond the loopback address a page needs the authority of a cluster's run, and this run has none: use --http 127.0.0.1:PORT"
            ),
        };
        let token = random_word().context("there are no random numbers for a token")?;
        let gate = Gate { loopback, names, token, cookie: format!("ringleader-{}", bound.port()) };
        let url = format!("{}://{host}:{}/?token={}", gate.scheme(), bound.port(), gate.token);
        Ok(Self { listener, gate, tls, actions: None, url })
    }

    /// Binds a run's page, which can act on the run, and leaves its address in the run
    /// directory's `keys/page` for scripts. No page ends a run: what keeps it from being
    /// served is said.
    pub fn of_run(http: Http, host: &str, run: &Path, actions: Actions) -> Option<Self> {
        let Http::At(address) = http else { return None };
        let bound = Self::bind(address, host, Some(&actions.authority)).and_then(|page| {
            let path = run.join("keys/page");
            replace_private(&path, format!("{}\n", page.url).as_bytes())
                .with_context(|| format!("could not write `{}`", path.display()))?;
            Ok(page)
        });
        match bound {
            Ok(page) => Some(Self { actions: Some(actions), ..page }),
            Err(e) => {
                tracing::warn!("the run goes on without a page: {e:#}");
                None
            }
        }
    }

    /// Serves these runs on a thread of its own.
    pub fn start(self, sources: Vec<Source>) -> std::io::Result<Running> {
        let Self { listener, gate, tls, actions, .. } = self;
        Running::start(Plan { listener, gate, tls, actions }, sources)
    }
}

/// An address as a URL's host.
fn ip_host(address: SocketAddr) -> String {
    match address {
        SocketAddr::V4(v4) => v4.ip().to_string(),
        SocketAddr::V6(v6) => format!("[{}]", v6.ip()),
    }
}

/// The names by which this machine may be asked: the one that is told to others, and its own.
fn names(host: &str) -> Vec<String> {
    let own = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut names = vec!["localhost".to_owned(), own];
    if host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_err() {
        names.push(host.to_owned());
    }
    names.retain(|name| !name.is_empty());
    names.sort();
    names.dedup();
    names
}

#[cfg(test)]
mod tests;
