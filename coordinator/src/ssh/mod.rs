//! `coordinator ssh`: workers on other machines, started by the system's ssh.
//!
//! A worker gets its token by ssh as its stdin, and ends when that ends: with the
//! coordinator, with ssh, and when the connection breaks. What a host needs is copied to
//! it once ([`install`]). The order in which these modules depend on each other is the one
//! in which they stand here.

mod hosts;

mod session;

mod archive;

mod install;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitStatus;

use common::ui::LogOptions;
use tokio::process::Command;

use crate::supervisor::{Ended, Launcher, WAIT, after_colon, log_options};

pub use archive::Archive;
pub use hosts::{Host, read as read_hosts};
pub use install::{Ready, install};
pub use session::Ssh;
use session::{SSH_FAILED, explained};

/// Runs the worker of the archive $1 with the other arguments. It is not in the place of
/// the shell, because ssh tells of a signal that ended the shell as of a broken
/// connection.
const WORK: &str = "d=${XDG_CACHE_HOME:-$HOME/.cache}/ringleader/dist/$1; shift; touch \"$d\"; \"$d/bin/worker\" \"$@\"; exit $?";

/// A worker that cannot be started: another start does not mend a wrong command line, nor
/// a program that is missing.
const HOPELESS: [i32; 3] = [2, 126, 127];

/// Shells report a signal as this and its number.
const BY_SIGNAL: i32 = 128;

/// How to start the workers.
#[derive(Debug, Clone)]
pub struct Launch {
    pub ssh: Ssh,
    /// The hash of the archive that is on the hosts.
    pub archive: String,
    pub hosts: Vec<Ready>,
    /// Where the workers of each host join.
    pub addresses: Vec<Vec<String>>,
    /// What the worker's `--devices` reads; each worker of a host takes its share.
    pub devices: String,
    /// What workers read where it is there.
    pub data: Option<PathBuf>,
    pub log: LogOptions,
}

impl Launch {
    /// The host of a rank, and the worker's number among those of this host.
    fn host(&self, rank: u32) -> Option<(usize, u32)> {
        let mut left = rank;
        for (at, ready) in self.hosts.iter().enumerate() {
            if left < ready.host.workers {
                return Some((at, left));
            }
            left -= ready.host.workers;
        }
        None
    }

    fn host_name(&self, rank: u32) -> &str {
        self.host(rank).map_or("no host", |(at, _)| self.hosts[at].host.name.as_str())
    }

    /// The arguments of the worker.
    fn arguments(&self, rank: u32) -> Vec<String> {
        let Some((at, n)) = self.host(rank) else { return Vec::new() };
        let share = format!("{}/{}", n + 1, self.hosts[at].host.workers);
        let rank = rank.to_string();
        let mut arguments = vec!["join".to_owned()];
        arguments.extend(self.addresses[at].iter().cloned());
        let how = ["--wait", WAIT, "--token-file", "-", "--supervised", "--preferred-rank", &rank];
        arguments.extend(how.map(str::to_owned));
        arguments.extend(["--devices", &self.devices, "--share", &share].map(str::to_owned));
        if let Some(data) = self.data.as_ref().filter(|_| self.hosts[at].has_data) {
            arguments.extend(["--data".to_owned(), data.display().to_string()]);
        }
        arguments.extend(log_options(self.log).into_iter().map(str::to_owned));
        arguments
    }
}

impl Launcher for Launch {
    fn workers(&self) -> u32 {
        self.hosts.iter().map(|ready| ready.host.workers).sum()
    }

    fn command(&self, rank: u32) -> Command {
        let arguments = [vec![self.archive.clone()], self.arguments(rank)].concat();
        let mut command = self.ssh.command(self.host_name(rank), WORK, &arguments);
        // A Ctrl-C in the terminal is for the coordinator, which lets the workers end.
        command.process_group(0);
        command
    }

    fn place(&self, rank: u32) -> String {
        format!(" on {}", self.host_name(rank))
    }

    fn ended(&self, rank: u32, status: ExitStatus, last_line: &str) -> Ended {
        match status.code() {
            Some(SSH_FAILED) => {
                Ended::OutOfReach(format!("has lost its ssh connection{}", after_colon(&explained(self.host_name(rank), last_line))))
            }
            Some(code) if HOPELESS.contains(&code) => Ended::ForGood(format!("ended with {status}{}", after_colon(last_line))),
            Some(code) if code > BY_SIGNAL => Ended::Killed(format!("was killed by signal {}", code - BY_SIGNAL)),
            Some(_) => Ended::Failed(format!("ended with {status}{}", after_colon(last_line))),
            None => Ended::Killed(format!("has lost its ssh, which ended with {status}")),
        }
    }
}

/// Where the workers of each host join: first the address by which the host sees this machine,
/// if this machine has that one (`is_ours`), then all of `join`.
pub fn addresses(hosts: &[Ready], is_ours: impl Fn(IpAddr) -> bool, port: u16, join: &str) -> Vec<Vec<String>> {
    let of = |ready: &Ready| {
        let seen = ready.sees.filter(|ip| is_ours(*ip)).map(|ip| SocketAddr::new(ip, port).to_string());
        let others = join.split(' ').map(str::to_owned).filter(|address| Some(address) != seen.as_ref());
        seen.iter().cloned().chain(others).collect()
    };
    hosts.iter().map(of).collect()
}

/// Compute threads of a worker, if hosts share their cores between several: the same
/// number on all hosts, as the config has one.
pub fn threads(hosts: &[Ready]) -> Option<u32> {
    if hosts.iter().all(|ready| ready.host.workers == 1) {
        return None;
    }
    let each = |ready: &Ready| (ready.cores / ready.host.workers).max(1);
    hosts.iter().filter(|ready| ready.cores > 0).map(each).min()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn ready(host: &str, cores: u32, sees: &str) -> Ready {
        Ready { host: host.parse().unwrap(), cores, has_data: host.starts_with('a'), sees: sees.parse().ok() }
    }

    fn launch() -> Launch {
        Launch {
            ssh: Ssh::default(),
            archive: "h".to_owned(),
            hosts: vec![ready("a:2", 8, "10.0.0.1"), ready("me@b", 8, "10.0.0.1")],
            addresses: vec![vec!["10.0.0.1:5".to_owned()], vec!["10.1.0.1:5".to_owned(), "10.0.0.1:5".to_owned()]],
            devices: "auto".to_owned(),
            data: Some("/data".into()),
            log: LogOptions { quiet: true, ..LogOptions::default() },
        }
    }

    #[test]
    fn ranks_go_over_the_hosts_in_their_order() {
        let launch = launch();
        assert_eq!(launch.workers(), 3);
        let line = |rank| launch.arguments(rank).join(" ");
        let start = "--wait 10m --token-file - --supervised --preferred-rank";
        assert_eq!(line(1), format!("join 10.0.0.1:5 {start} 1 --devices auto --share 2/2 --data /data --quiet"));
        assert_eq!(line(2), format!("join 10.1.0.1:5 10.0.0.1:5 {start} 2 --devices auto --share 1/1 --quiet"));
        assert_eq!([0, 1, 2].map(|rank| launch.place(rank)), [" on a", " on a", " on me@b"]);
        assert!(!WORK.contains(['\'', '\\', '!', '\n']));
    }

    #[test]
    fn the_end_of_ssh_tells_how_the_worker_ended() {
        let ended = |status, line| launch().ended(2, status, line);
        let code = |code| ExitStatus::from_raw(code << 8);
        assert!(matches!(ended(code(255), "x"), Ended::OutOfReach(why) if why.contains("ssh connection: x")));
        assert!(
            matches!(ended(code(255), "me@b: Permission denied (publickey)."), Ended::OutOfReach(why) if why.contains("ssh-copy-id me@b"))
        );
        assert_eq!(ended(code(137), ""), Ended::Killed("was killed by signal 9".to_owned()));
        assert!(matches!(ended(code(1), "no device"), Ended::Failed(why) if why.ends_with(": no device")));
        assert!(matches!(ended(code(127), ""), Ended::ForGood(_)));
        assert!(matches!(ended(ExitStatus::from_raw(15), ""), Ended::Killed(_)));
    }

    #[test]
    fn hosts_join_first_where_they_see_this_machine() {
        let hosts = ["10.1.0.1", "172.16.0.1", "", "fd00::1"].map(|ip| ready("a", 1, ip));
        let ours = |ip: IpAddr| ["10.0.0.1", "10.1.0.1", "fd00::1"].contains(&ip.to_string().as_str());
        let of = addresses(&hosts, ours, 5, "10.0.0.1:5 10.1.0.1:5").iter().map(|all| all.join(" ")).collect::<Vec<_>>();
        // By its network; by way of another machine; a host that does not say; by IPv6.
        let both = "10.0.0.1:5 10.1.0.1:5";
        assert_eq!(of, ["10.1.0.1:5 10.0.0.1:5", both, both, &format!("[fd00::1]:5 {both}")]);
    }

    #[test]
    fn workers_of_a_host_share_its_cores() {
        assert_eq!(threads(&[ready("a", 8, ""), ready("b", 4, "")]), None);
        assert_eq!(threads(&[ready("a:2", 9, ""), ready("b", 16, ""), ready("c:3", 0, "")]), Some(4));
        assert_eq!(threads(&[ready("a:4", 2, "")]), Some(1));
    }
}
