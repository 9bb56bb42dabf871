//! Machines of their own for processes: network namespaces, with links between them and no
//! route to anywhere else.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Namespaces that end with this.
pub struct Machines {
    names: Vec<String>,
}

impl Machines {
    /// This many, each with loopback alone; none, with a word, where this process may not
    /// make any.
    pub fn new(count: u32) -> Option<Self> {
        let prefix = format!("rl{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut machines = Self { names: Vec::new() };
        for number in 0..count {
            let name = format!("{prefix}-{number}");
            if !tried(&["netns", "add", &name]) {
                eprintln!("left out: `ip netns add` needs root and iproute2");
                return None;
            }
            machines.names.push(name);
            machines.set(number, &["link", "set", "lo", "up"]);
        }
        Some(machines)
    }

    pub fn name(&self, number: u32) -> &str {
        &self.names[number as usize]
    }

    /// Joins two of them by a link with these addresses (with their prefixes) at its ends.
    pub fn link(&self, one: u32, other: u32, addresses: &[(&str, &str)]) {
        let (near, far) = (format!("to{other}"), format!("to{one}"));
        self.set(one, &["link", "add", &near, "type", "veth", "peer", "name", &far, "netns", self.name(other)]);
        for (number, device) in [(one, &near), (other, &far)] {
            for ends in addresses {
                let address = if number == one { ends.0 } else { ends.1 };
                // An IPv6 address is not usable until its duplicates were looked for.
                let now: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
                self.set(number, &[&["address", "add", address, "dev", device], now].concat());
            }
            self.set(number, &["link", "set", device, "up"]);
        }
    }

    /// Runs `ip` with these arguments in one of them.
    pub fn set(&self, number: u32, arguments: &[&str]) {
        assert!(tried(&[&["-n", self.name(number)], arguments].concat()), "ip {arguments:?} failed");
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        self.names.iter().for_each(|name| _ = tried(&["netns", "delete", name]));
    }
}

fn tried(arguments: &[&str]) -> bool {
    Command::new("ip").args(arguments).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}
