//! `coordinator ssh` with real ssh servers, on hosts that are network namespaces of this
//! machine: each has an address of its own, and no way out of their common network.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cluster_tests::netns::Machines;
use cluster_tests::record::{generations, wait_for_ring};
use cluster_tests::scenario::{SMALL_AND_LONG, Scenario};
use cluster_tests::{Running, binary, project, signal, until};
use serde_json::Value;
use tempfile::TempDir;

const SSHD: &str = "/usr/sbin/sshd";

/// Names an unpacked archive of `make dist`, to be tried instead of the binaries that were just
/// built.
const ARCHIVE: &str = "RINGLEADER_ARCHIVE";

fn archive() -> Option<String> {
    std::env::var(ARCHIVE).ok()
}

/// How long what must not stay may take to end.
const END: Duration = Duration::from_secs(8);

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// Hosts on one switch, whose links carry 1 Gb/s: number 0 is where the coordinator runs, 1 and
/// 2 have ssh servers, and 3 is somebody else's.
struct Network {
    folder: TempDir,
    machines: Machines,
    servers: Vec<Child>,
}

impl Network {
    /// None, with a word, where this user may make none or there is no ssh server.
    fn new() -> Option<Self> {
        let tools = ["ssh", "ssh-keygen", "strip", "tc", "curl"];
        let there = |tool: &&str| Command::new("which").arg(tool).output().is_ok_and(|o| o.status.success());
        if !Path::new(SSHD).is_file() || !tools.iter().all(there) {
            eprintln!("left out: it takes {SSHD} and {}", tools.join(", "));
            return None;
        }
        let machines = Machines::new(4)?;
        let folder = TempDir::new().unwrap_or_else(|e| panic!("{e}"));
        let mut network = Self { folder, machines, servers: Vec::new() };
        network.connect();
        network.serve();
        network.release();
        Some(network)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn connect(&self) {
        let Self { machines, .. } = self;
        machines.set(0, &["link", "add", "name", "switch", "type", "bridge"]);
        machines.set(0, &["address", "add", "10.78.0.1/24", "dev", "switch"]);
        machines.set(0, &["link", "set", "switch", "up"]);
        for n in 1..4 {
            machines.link(0, n, &[]);
            machines.set(0, &["link", "set", &format!("to{n}"), "master", "switch"]);
            machines.set(n, &["address", "add", &format!("10.78.0.{}/24", n + 1), "dev", "to0"]);
            for (machine, device) in [(0, format!("to{n}")), (n, "to0".to_owned())] {
                let rate = ["root", "tbf", "rate", "1gbit", "burst", "256kb", "latency", "20ms"];
                run("tc", &[&["-n", machines.name(machine), "qdisc", "add", "dev", &device][..], &rate].concat());
            }
        }
    }

    /// Starts the ssh servers, and writes what a user's ~/.ssh would have.
    fn serve(&mut self) {
        for key in ["key", "other-key", "host-key"] {
            run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &self.text(key)]);
        }
        let public = |name: &str| std::fs::read_to_string(self.path(name)).unwrap_or_else(|e| panic!("{e}"));
        write(&self.path("authorized"), &public("key.pub"));
        write(&self.path("known"), &(2..4).map(|n| format!("10.78.0.{n} {}", public("host-key.pub"))).collect::<String>());
        let mut config = String::new();
        for (name, address, key, known) in [
            ("node1", "10.78.0.2", "key", "known"),
            ("node2", "10.78.0.3", "key", "known"),
            ("uninvited", "10.78.0.2", "other-key", "known"),
            ("stranger", "10.78.0.3", "key", "none"),
            ("elsewhere", "10.79.0.1", "key", "known"),
        ] {
            let [key, known] = [key, known].map(|file| self.text(file));
            let _ = writeln!(config, "Host {name}\nHostName {address}\nIdentityFile {key}\nUserKnownHostsFile {known}");
        }
        config.push_str("Host *\nUser root\nIdentitiesOnly yes\nIdentityAgent none\nGlobalKnownHostsFile /dev/null\n");
        write(&self.path("ssh_config"), &config);
        // sshd wants this folder, which its service makes.
        std::fs::create_dir_all("/run/sshd").unwrap_or_else(|e| panic!("{e}"));
        // The worker of an archive finds its libraries by itself, the one that was just built does not.
        let libraries = if archive().is_some() { String::new() } else { std::env::var("LD_LIBRARY_PATH").unwrap_or_default() };
        for n in 1..3 {
            let cache = self.text(&format!("cache{n}"));
            let config = self.path(&format!("sshd_config{n}"));
            let text = format!(
                "HostKey {}\nAuthorizedKeysFile {}\nPidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n\
                 SetEnv XDG_CACHE_HOME={cache} \"LD_LIBRARY_PATH={libraries}\"\n",
                self.text("host-key"),
                self.text("authorized")
            );
            write(&config, &text);
            let log = std::fs::File::create(self.path(&format!("sshd{n}.log"))).unwrap_or_else(|e| panic!("{e}"));
            let mut sshd = Command::new("ip");
            sshd.args(["netns", "exec", self.machines.name(n), SSHD, "-D", "-e", "-f"]).arg(config).stdin(Stdio::null()).stderr(log);
            self.servers.push(sshd.spawn().unwrap_or_else(|e| panic!("{e}")));
        }
    }

    /// An unpacked archive: the one that [`ARCHIVE`] names, or the binaries alone.
    fn release(&self) {
        if let Some(archive) = archive() {
            run("cp", &["-r", &archive, &self.text("release")]);
        } else {
            std::fs::create_dir_all(self.path("release/bin")).unwrap_or_else(|e| panic!("{e}"));
            write(&self.path("release/RELEASE"), "ringleader-test\n");
            run("strip", &["-o", &self.text("release/bin/worker"), &binary("worker").display().to_string()]);
            run("strip", &["-o", &self.text("release/bin/coordinator"), &binary("coordinator").display().to_string()]);
        }
        // The archive's hash tells the processes of this network from those of other tests, and
        // covers the folder of libraries.
        std::fs::create_dir_all(self.path("release/lib")).unwrap_or_else(|e| panic!("{e}"));
        write(&self.path("release/lib/network"), &self.text(""));
        let listening = |n: usize| {
            let log = std::fs::read_to_string(self.path(&format!("sshd{n}.log"))).unwrap_or_default();
            log.contains("Server listening").then_some(())
        };
        (1..3).for_each(|n| until("ssh server", END, || listening(n)));
    }

    /// Starts the archive's `coordinator ssh` on host 0.
    fn start(&self, hosts: &str, run_dir: &str) -> Running {
        let sets = SMALL_AND_LONG.into_iter().chain(["train.shards=6", "train.global_batch=36", "cluster.timeout_ms=5000"]);
        self.start_with("configs/alexnet-synthetic.toml", hosts, run_dir, "off", sets)
    }

    /// The same, with a page and another config.
    fn start_with<'a>(&self, config: &str, hosts: &str, run_dir: &str, http: &str, sets: impl IntoIterator<Item = &'a str>) -> Running {
        let run_dir = self.path(run_dir);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.machines.name(0)]).arg(self.path("release/bin/coordinator"));
        command.args(["ssh", config, "--http", http, "--ssh-option=LogLevel=INFO"]);
        command.arg("--hosts").arg(hosts).arg("--ssh-config").arg(self.path("ssh_config")).arg("--run-dir").arg(&run_dir);
        for pair in sets {
            command.args(["--set", pair]);
        }
        command.current_dir(project()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Running::spawned(command.spawn().unwrap_or_else(|e| panic!("{e}")), run_dir)
    }

    /// What host 3 reads of a run's page, with its token or without: the HTTP code, and the
    /// answer.
    fn page(&self, run: &Running, path: &str, with_token: bool) -> (String, String) {
        let url = std::fs::read_to_string(run.path.join("keys/page")).unwrap_or_default();
        let (address, token) = url.trim().split_once("/?token=").unwrap_or_else(|| panic!("no token in {url:?}"));
        let token = if with_token { token } else { "none" };
        let mut curl = Command::new("ip");
        curl.args(["netns", "exec", self.machines.name(3), "curl", "--silent", "--max-time", "5", "--write-out", "\n%{http_code}"]);
        curl.args(["--header", &format!("Authorization: Bearer {token}")]).arg("--cacert").arg(run.path.join("keys/ca.pem"));
        let output = curl.arg(format!("{address}{path}")).output().unwrap_or_else(|e| panic!("{e}"));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (answer, code) = text.rsplit_once('\n').unwrap_or_default();
        (code.to_owned(), answer.to_owned())
    }

    /// The status of a run, from host 3.
    fn status(&self, run: &Running) -> Option<Value> {
        let (code, answer) = self.page(run, "/status.json", true);
        (code == "200").then(|| serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{e}: {answer}")))
    }

    /// The workers that run on a host.
    fn workers(&self, n: usize) -> Vec<i32> {
        let below = self.path(&format!("cache{n}"));
        let is_one = |pid: &i32| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.starts_with(&below));
        pids().into_iter().filter(is_one).collect()
    }

    /// The command lines of all that was started on hosts, and of ssh here: each names the
    /// hash of the archive.
    fn left(&self) -> Vec<String> {
        let mut installed = std::fs::read_dir(self.path("cache1/ringleader/dist")).unwrap_or_else(|e| panic!("{e}")).flatten();
        let hash = installed.next().unwrap_or_else(|| panic!("nothing is installed")).file_name().to_string_lossy().into_owned();
        let of = |pid: i32| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let lines = pids().into_iter().map(|pid| String::from_utf8_lossy(&of(pid)).replace('\0', " "));
        lines.filter(|line| line.contains(&hash)).collect()
    }

    fn nothing_is_left(&self) {
        until("end of all workers", END, || self.left().is_empty().then_some(()));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

fn pids() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap_or_else(|e| panic!("{e}")).flatten();
    entries.filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok())).collect()
}

fn parent(pid: i32) -> i32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    line.and_then(|id| id.trim().parse().ok()).unwrap_or_else(|| panic!("process {pid} has no parent"))
}

#[test]
fn workers_on_other_hosts_live_and_end_with_the_run() {
    let Some(network) = Network::new() else { return };
    let hosts = network.path("hosts");
    write(&hosts, "# two of them\nnode1:2\nnode2  # and one\n");
    let hosts = hosts.display().to_string();
    let copies = |log: &str| ["node1", "node2"].map(|host| log.matches(&format!("{host}: copying the archive")).count());

    // Two hosts, three workers, one copy for each host.
    let mut first = network.start(&hosts, "first");
    first.wait_for_steps(3);
    assert_eq!(copies(&first.log()), [1, 1], "{}", first.log());
    assert_eq!([network.workers(1).len(), network.workers(2).len()], [2, 1]);
    wait_for_ring(&first.path, 3);
    // ssh, the shell and the worker, three times.
    assert!(network.left().len() >= 9, "{:?}", network.left());
    assert!(!network.left().iter().any(|line| line.contains("rl1-")), "a token is on a command line: {:?}", network.left());

    // One that is killed is started again.
    let before = network.workers(1);
    signal(before[0], libc::SIGKILL);
    until("another worker", END, || network.workers(1).iter().any(|pid| !before.contains(pid)).then_some(()));
    assert!(first.log().contains("on node1 was killed by signal 9: starting another in its place"), "{}", first.log());
    let rings = generations(&first.path).len();
    wait_for_ring(&first.path, 3);

    // One whose connection breaks ends there, and is started again over another connection.
    let cut = network.workers(2);
    let shell = parent(cut[0]);
    signal(parent(shell), libc::SIGKILL);
    until("end of the worker without a connection", END, || cluster_tests::gone(&[cut[0], shell]).then_some(()));
    until("another worker on node2", END, || network.workers(2).iter().any(|pid| !cut.contains(pid)).then_some(()));
    assert!(first.log().contains("worker 2 on node2 has lost its ssh connection"), "{}", first.log());
    until("another ring", END, || (generations(&first.path).len() > rings).then_some(()));
    wait_for_ring(&first.path, 3);

    // Ctrl-C stops the run with a checkpoint, and leaves nothing.
    first.signal(libc::SIGINT);
    let first = first.wait().succeeded();
    assert!(first.stdout.contains("stopped; go on with --resume"), "{}", first.stdout);
    assert!(first.stderr.contains("[rank 2 on node2] "), "{}", first.stderr);
    network.nothing_is_left();

    // Another start copies nothing, and nothing outlives a coordinator that is killed.
    let mut second = network.start("node1,node2", "second");
    second.wait_for_steps(1);
    assert_eq!(copies(&second.log()), [0, 0], "{}", second.log());
    second.signal(libc::SIGKILL);
    second.await_end();
    network.nothing_is_left();

    // What is wrong with each host is said, and no run is begun.
    let refused = network.start("node1,uninvited,stranger,elsewhere,nowhere.invalid", "third").wait();
    let refused = refused.failed(
        1,
        &[
            "uninvited: it lets nobody in without a password: run `ssh-copy-id uninvited`",
            "stranger: its host key is not known here: connect once by hand with `ssh stranger`",
            "elsewhere: no route leads to it",
            "nowhere.invalid: its name is unknown here",
        ],
    );
    assert!(!refused.stderr.contains("node1:") && !refused.path.exists(), "{}", refused.stderr);
}

/// At its full size, on hosts that have nothing yet.
#[test]
fn alexnet_trains_within_half_a_minute_of_typing() {
    let Some(network) = Network::new() else { return };
    let sets = ["train.precision=f32", "train.global_batch=8", "train.shards=4"];
    let typed = Instant::now();
    let mut run = network.start_with("benches/alexnet-224.toml", "node1,node2", "alexnet", "off", sets);
    run.wait_for_steps(1);
    let first = typed.elapsed();
    println!("the first step took {first:.1?} from typing on");
    assert!(first < Duration::from_secs(30), "the first step took {first:?}");
    run.signal(libc::SIGINT);
    run.wait().succeeded();
    network.nothing_is_left();
}

/// A host is unplugged and plugged in again, which is seen on the page from a host that takes
/// no part; the weights are those of one process.
#[test]
fn a_host_that_is_unplugged_is_missed_and_comes_back() {
    let Some(network) = Network::new() else { return };
    let scenario = Scenario::endless();
    let mut run = network.start_with("configs/alexnet-synthetic.toml", "node1,node2", "unplugged", "10.78.0.1:7475", scenario.sets());
    run.wait_for_steps(1);

    assert_eq!(network.page(&run, "/status.json", false).0, "403");
    let of = |status: &Value, key: &str| status[key].as_u64().unwrap_or_default();
    let world = |world: usize| {
        let has = |status: &Value| status["workers"].as_array().is_some_and(|workers| workers.len() == world);
        until("the page to tell", Duration::from_secs(40), || network.status(&run).filter(has))
    };
    world(2);
    network.machines.set(0, &["link", "set", "to2", "down"]);
    let alone = world(1);
    until("steps without the other host", END, || network.status(&run).filter(|s| of(s, "step") > of(&alone, "step") + 3));
    network.machines.set(0, &["link", "set", "to2", "up"]);
    let again = world(2);
    assert!(of(&again, "generation") > of(&alone, "generation"), "{again}");
    until("steps of both", END, || network.status(&run).filter(|s| of(s, "step") > of(&again, "step") + 3));

    let run = Scenario::stop(run);
    network.nothing_is_left();
    scenario.assert_undisturbed(&run);
}
