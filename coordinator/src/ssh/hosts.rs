//! The hosts of `coordinator ssh`, and how many workers each of them gets.

use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail};

/// More workers than this on one host are a slip of the keyboard.
const MOST: u32 = 1024;

/// A host, as ssh knows it: an address, a name, `user@name`, or an alias of ~/.ssh/config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    pub name: String,
    pub workers: u32,
}

/// Reads `--hosts`: a file if there is one of that name, else hosts between commas.
///
/// # Errors
/// The file cannot be read, a host or a number of workers is none, or a host stands there
/// twice.
pub fn read(hosts: &str) -> Result<Vec<Host>> {
    let path = Path::new(hosts);
    if path.is_file() {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the hosts in `{hosts}`"))?;
        return of_file(&text).with_context(|| format!("`{hosts}`"));
    }
    if hosts.contains('/') && !hosts.contains(',') {
        bail!("--hosts: there is no file `{hosts}`");
    }
    once(hosts.split(',').map(str::parse).collect::<Result<_>>()?).context("--hosts")
}

/// One host in a line: its name, and `:N` or ` N` for N workers. What follows a `#` is a
/// comment.
fn of_file(text: &str) -> Result<Vec<Host>> {
    let mut hosts = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
        let host = match words[..] {
            [] => continue,
            [name] => name.parse::<Host>(),
            [name, count] => name.parse::<Host>().and_then(|host| Ok(Host { workers: workers(count)?, ..host })),
            _ => Err(anyhow!("a line has a host and how many workers it gets, and nothing else")),
        };
        hosts.push(host.with_context(|| format!("line {}", n + 1))?);
    }
    once(hosts)
}

impl FromStr for Host {
    type Err = anyhow::Error;

    /// `host`, `host:N`, `[IPv6]` or `[IPv6]:N`; an IPv6 address without brackets has no
    /// number.
    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let (name, count) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((name, "")) => (name, None),
            Some((name, rest)) => (name, Some(rest.strip_prefix(':').unwrap_or(rest))),
            None if text.matches(':').count() > 1 => (text, None),
            None => text.split_once(':').map_or((text, None), |(name, count)| (name, Some(count))),
        };
        let good = |c: char| !c.is_whitespace() && !c.is_control() && !"'\"`$\\;&|<>()*?![]{}/".contains(c);
        // ssh would take a name with a dash in front for an option.
        if name.is_empty() || name.starts_with('-') || !name.chars().all(good) {
            bail!("`{text}` is no host: write a name, an address, or user@name, and :N for N workers there");
        }
        Ok(Self { name: name.to_owned(), workers: count.map_or(Ok(1), workers)? })
    }
}

fn workers(count: &str) -> Result<u32> {
    let count: Option<u32> = count.parse().ok().filter(|n| (1..=MOST).contains(n));
    count.with_context(|| format!("a host gets 1 to {MOST} workers, as in node7:2"))
}

/// Refuses hosts that stand there twice, and none.
fn once(hosts: Vec<Host>) -> Result<Vec<Host>> {
    if hosts.is_empty() {
        bail!("there is no host");
    }
    for (n, host) in hosts.iter().enumerate() {
        if hosts[..n].iter().any(|before| before.name == host.name) {
            bail!("`{0}` stands there twice: {0}:2 gives it two workers", host.name);
        }
    }
    Ok(hosts)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn host(name: &str, workers: u32) -> Host {
        Host { name: name.to_owned(), workers }
    }

    #[test]
    fn hosts_stand_between_commas() {
        assert_eq!(read("a,me@b:2, 10.0.0.3").unwrap(), [host("a", 1), host("me@b", 2), host("10.0.0.3", 1)]);
        assert_eq!(read("[fd00::1]:3,fd00::2,[fd00::3]").unwrap(), [host("fd00::1", 3), host("fd00::2", 1), host("fd00::3", 1)]);
    }

    #[test]
    fn hosts_stand_in_a_file_with_comments() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        std::fs::write(&path, "# the old ones\nnode1\n\n  node2:4   # four GPUs\nnode3 2\nfd00::1 2\n").unwrap();
        let hosts = read(&path.display().to_string()).unwrap();
        assert_eq!(hosts, [host("node1", 1), host("node2", 4), host("node3", 2), host("fd00::1", 2)]);
    }

    #[test]
    fn what_is_no_host_is_refused_with_its_place() {
        for (text, word) in [
            ("", "is no host"),
            ("a,,b", "is no host"),
            ("-oProxyCommand=x", "is no host"),
            ("a b", "is no host"),
            ("a;reboot", "is no host"),
            ("a:0", "1 to 1024"),
            ("a:x", "1 to 1024"),
            ("[fd00::1]2x", "1 to 1024"),
            ("a,b,a:2", "twice"),
            ("conf/hosts", "no file"),
        ] {
            let said = format!("{:#}", read(text).unwrap_err());
            assert!(said.contains(word), "{text}: {said}");
        }
        for (text, words) in [("a\nb c d\n", "line 2"), ("# none\n", "no host"), ("a 0", "line 1: a host gets"), ("a\na", "twice")] {
            let said = format!("{:#}", of_file(text).unwrap_err());
            assert!(said.contains(words), "{text}: {said}");
        }
    }
}
