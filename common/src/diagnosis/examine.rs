//! Looks at the network between this machine and a coordinator, one thing after the other,
//! until something is found that keeps the next from being looked at.

use std::net::SocketAddr;
use std::time::Duration;

use quinn::{Connection, VarInt};

use super::ledger::CONNECTIONS;
use super::messages::Terms;
use super::reach::{self, Reached};
use super::verdicts;
use super::visitor::{self, Direction, Look};
use crate::net::Token;
use crate::net::addresses::any_like;
use crate::net::visit::Visitor;
use crate::ui::Finding;

/// How long the system may take to find a name.
const FOUND_WITHIN: Duration = Duration::from_secs(10);

/// Addresses of a name that are tried.
const ADDRESSES: usize = 4;

/// How often the coordinator's clock is looked at.
const LOOKS: usize = 20;

/// What to examine.
#[derive(Debug, Clone)]
pub struct Examination {
    /// The coordinator's host:port.
    pub coordinator: String,
    /// Without a token, only the way to the coordinator can be looked at.
    pub token: Option<Token>,
    /// Where other workers are to reach this machine (UDP); port 0 for any.
    pub listen: SocketAddr,
}

/// Looks at the network. Takes some seconds; the run goes on meanwhile, and no worker is
/// enrolled.
pub async fn examine(examination: &Examination) -> Vec<Finding> {
    let host = &examination.coordinator;
    let found = tokio::time::timeout(FOUND_WITHIN, tokio::net::lookup_host(host)).await;
    let found = match found {
        Ok(found) => found.map(|addresses| addresses.take(ADDRESSES).collect::<Vec<_>>()).map_err(|e| e.to_string()),
        Err(_) => Err(format!("the system has not found it in {} s", FOUND_WITHIN.as_secs())),
    };
    let mut findings = vec![verdicts::name(host, &found)];
    let mut tried = Vec::new();
    for address in found.unwrap_or_default() {
        tried.push((address, reach::reach(address).await));
        if matches!(tried.last(), Some((_, Reached::Answered { .. }))) {
            break;
        }
    }
    let (way, answers) = verdicts::reached(&tried);
    findings.extend(way);
    let Some((address, Reached::Answered { from, .. })) = answers.and_then(|at| tried.get(at)) else { return findings };
    let Some(token) = &examination.token else {
        let value = "not measured: only with a token does the coordinator answer more";
        findings.push(Finding::warn("coordinator", value, "add --token or --token-file, as in its join line"));
        return findings;
    };
    match visit(*address, token).await {
        Ok((visitor, connection, terms)) => {
            let run = if terms.trains { "a ring trains, so little is measured" } else { "no ring trains" };
            let version = crate::ui::visible_within(&terms.version, 40);
            findings.push(Finding::ok("coordinator", format!("takes the token; version {version}; {run}")));
            findings.push(verdicts::seen(from.to_canonical(), terms.seen.ip().to_canonical()));
            findings.push(verdicts::inbound(&visitor::knock(&connection, listen(examination.listen, *address)).await));
            if let Err(problem) = measure(&visitor, connection.clone(), &terms, &mut findings).await {
                findings.push(Finding::fail(
                    "measurement",
                    problem,
                    "try again; if it breaks off again, something on the way drops UDP under load",
                ));
            }
            connection.close(VarInt::from_u32(0), b"");
        }
        Err(problem) => findings.push(Finding::fail("coordinator", problem, "see that address, token and version are those of the run")),
    }
    findings
}

/// Where to listen, in the family of the coordinator's address.
fn listen(wanted: SocketAddr, coordinator: SocketAddr) -> SocketAddr {
    if !wanted.ip().is_unspecified() {
        return wanted;
    }
    SocketAddr::new(any_like(coordinator.ip()), wanted.port())
}

async fn visit(address: SocketAddr, token: &Token) -> Result<(Visitor, Connection, Terms), String> {
    let visitor = Visitor::new(address, token).map_err(|e| e.to_string())?;
    let connection = visitor.connect().await.map_err(|e| e.to_string())?;
    let terms = visitor::terms(&connection).await?;
    Ok((visitor, connection, terms))
}

/// Measures the round trip first, while nothing else is on the way.
async fn measure(visitor: &Visitor, first: Connection, terms: &Terms, findings: &mut Vec<Finding>) -> Result<(), String> {
    let looks = visitor::clock(&first, LOOKS).await?;
    findings.extend(verdicts::looks(&looks));
    let round_trip = looks.iter().map(|Look { round_trip, .. }| *round_trip).min().unwrap_or_default();
    let mut connections = vec![first];
    let mut rates = Vec::new();
    for count in [1, CONNECTIONS] {
        while connections.len() < count {
            connections.push(visitor.connect().await.map_err(|e| e.to_string())?);
        }
        for direction in [Direction::Up, Direction::Down] {
            let transfer = visitor::transfer(&connections, direction, terms.bytes).await?;
            rates.push(verdicts::rate(transfer, round_trip));
        }
    }
    if let [up, down, several_up, several_down] = rates[..] {
        findings.push(verdicts::bandwidth(Direction::Up, up, several_up, CONNECTIONS));
        findings.push(verdicts::bandwidth(Direction::Down, down, several_down, CONNECTIONS));
    }
    let paths: Vec<_> = connections.iter().map(|connection| connection.stats().path).collect();
    findings.push(verdicts::packets(paths.iter().map(|path| path.current_mtu).max().unwrap_or_default()));
    findings.push(verdicts::losses(paths.iter().map(|path| path.lost_packets).sum(), paths.iter().map(|path| path.sent_packets).sum()));
    Ok(())
}
