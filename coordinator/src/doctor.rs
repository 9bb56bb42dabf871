//! `coordinator doctor`: what keeps a coordinator on this machine from being reached by
//! workers, or from working. It changes nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::Args;
use common::config::Config;
use common::diagnosis::{clock, descriptors, disk, quic_answers, socket_buffers};
use common::net::{BoundSocket, addresses as own_addresses};
use common::ui::Finding;

/// What checkpoints of some models of AlexNet's size take.
const ROOM: u64 = 10_000_000_000;

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// The run's config, a TOML file: look at it too.
    pub config: Option<PathBuf>,
    /// Change one key of the config, for example train.epochs=3.
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "config")]
    pub overrides: Vec<String>,
    /// Where the run's files are to go.
    #[arg(long, value_name = "DIR", default_value = "runs")]
    pub run_dir: PathBuf,
    /// Where the coordinator is to listen (UDP).
    #[arg(long, value_name = "ADDR", default_value = "[::]:7474")]
    pub listen: SocketAddr,
    /// Print the findings as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Looks at this machine. `host` is what the join line would name.
pub async fn findings(args: &DoctorArgs, host: &str) -> Vec<Finding> {
    let mut findings = vec![Finding::ok("version", env!("CARGO_PKG_VERSION"))];
    if let Some(path) = &args.config {
        findings.extend(config(path, &args.overrides));
    }
    findings.push(addresses(args.listen, host, &own_addresses::of_this_machine()));
    findings.push(port(args.listen).await);
    findings.push(socket_buffers());
    findings.push(disk("run directory", &args.run_dir, ROOM, "checkpoints"));
    findings.push(clock());
    findings.push(descriptors());
    findings
}

fn config(path: &Path, overrides: &[String]) -> Vec<Finding> {
    let config = match Config::load(path, overrides) {
        Ok(config) => config,
        Err(e) => return vec![Finding::fail("config", e.to_string(), "mend the config; `coordinator schema` has all keys")],
    };
    let mut findings = vec![Finding::ok("config", format!("`{}` is the run {}", path.display(), config.name))];
    if let Some(data) = config.data.path() {
        findings.push(match std::fs::metadata(data) {
            Ok(_) => Finding::ok("data", format!("`{}` is there; `coordinator check` reads it", data.display())),
            Err(e) => Finding::fail("data", format!("`{}`: {e}", data.display()), "see data.path; `worker data get` fetches public sets"),
        });
    }
    findings
}

/// The addresses by which workers on other machines can reach this one.
fn addresses(listen: SocketAddr, host: &str, all: &[IpAddr]) -> Finding {
    let name = "addresses";
    let wanted = listen.ip().to_canonical();
    let mut usable: Vec<String> = all
        .iter()
        .filter(|address| is_reachable(address))
        .filter(|address| wanted.is_unspecified() && (wanted.is_ipv6() || address.is_ipv4()) || wanted == **address)
        .map(ToString::to_string)
        .collect();
    usable.sort();
    usable.dedup();
    if !usable.is_empty() {
        return Finding::ok(name, format!("{}; the join line names {host}", usable.join(", ")));
    }
    let value = format!("none by which another machine could reach UDP {listen}");
    if wanted.is_loopback() {
        return Finding::warn(name, value, "workers on this machine alone can join: for others, --listen [::]:7474");
    }
    if wanted.is_unspecified() {
        return Finding::fail(name, value, "bring a network interface up; in a container, give it a network or the host's");
    }
    let advice = "this machine has no such address: see `ip address`, or --listen [::]:7474, with --advertise for the join line";
    Finding::fail(name, value, advice)
}

/// Whether another machine can reach an address by itself: loopback addresses and those of a
/// single link are not such.
fn is_reachable(address: &IpAddr) -> bool {
    !address.is_loopback() && !address.is_unspecified() && !own_addresses::is_link_local(*address)
}

/// Whether the port is free. One that is taken may be that of a coordinator which runs.
async fn port(listen: SocketAddr) -> Finding {
    let problem = match BoundSocket::bind(listen) {
        Ok(_) => return Finding::ok("port", format!("UDP {listen} is free")),
        Err(e) => e.to_string(),
    };
    let here: IpAddr = match listen.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    taken(listen, &problem, quic_answers(SocketAddr::new(here, listen.port())).await)
}

fn taken(listen: SocketAddr, problem: &str, answers: bool) -> Finding {
    if answers {
        let value = format!("a QUIC server, such as a coordinator, answers at UDP {listen}");
        return Finding::warn("port", value, "for a second run beside it, choose another --listen");
    }
    Finding::fail("port", problem, "choose another --listen; `ss -lunp` says which program has the port")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use common::ui::Verdict;

    use super::*;

    fn of(listen: &str, all: &[&str]) -> Finding {
        let all: Vec<IpAddr> = all.iter().map(|text| text.parse().unwrap()).collect();
        addresses(listen.parse().unwrap(), "10.0.0.1", &all)
    }

    #[test]
    fn addresses_that_others_reach_are_named() {
        let all = ["127.0.0.1", "::1", "169.254.3.4", "fe80::1", "10.0.0.1", "10.0.0.1", "2001:db8::1"];
        assert_eq!(of("[::]:7474", &all), Finding::ok("addresses", "10.0.0.1, 2001:db8::1; the join line names 10.0.0.1"));
        assert_eq!(of("0.0.0.0:7474", &all), Finding::ok("addresses", "10.0.0.1; the join line names 10.0.0.1"));
        assert_eq!(of("10.0.0.1:7474", &all).verdict, Verdict::Ok);
        let verdicts = ["127.0.0.1:7474", "10.0.0.9:7474"].map(|listen| of(listen, &all).verdict);
        assert_eq!(verdicts, [Verdict::Warn, Verdict::Fail]);
        assert_eq!(of("[::]:7474", &all[..4]).verdict, Verdict::Fail, "a machine without a network");
    }

    #[tokio::test]
    async fn a_port_is_free_or_taken_by_a_coordinator_or_by_another() {
        let held = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let listen = held.local_addr().unwrap();
        let other = port(listen).await;
        assert!(other.verdict == Verdict::Fail && other.advice.unwrap().contains("--listen"));
        drop(held);
        assert_eq!(port(listen).await.verdict, Verdict::Ok);
        assert_eq!(taken(listen, "in use", true).verdict, Verdict::Warn);
    }

    #[test]
    fn a_config_and_its_data_are_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.toml");
        let text = "name = \"t\"\n[model]\nkind = \"mlp\"\n[data]\nkind = \"csv\"\npath = \"DATA\"\n[train]\n";
        std::fs::write(&path, text.replace("DATA", &dir.path().display().to_string())).unwrap();
        let verdicts = |overrides: &[String]| config(&path, overrides).iter().map(|finding| finding.verdict).collect::<Vec<_>>();
        assert_eq!(verdicts(&[]), [Verdict::Ok, Verdict::Ok]);
        assert_eq!(verdicts(&["data.path=\"/nowhere\"".to_owned()]), [Verdict::Ok, Verdict::Fail]);
        assert_eq!(verdicts(&["train.epochs=0".to_owned()]), [Verdict::Fail]);
    }
}
