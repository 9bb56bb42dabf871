//! The batch file of `coordinator slurm` under a real Slurm: a controller and three nodes,
//! all on this machine, with keys, sockets and state in a folder of the test.

use std::fmt::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cluster_tests::record::{checkpoints, committed, wait_for_ring};
use cluster_tests::scenario::{SMALL_AND_LONG, events};
use cluster_tests::{binary, project, until};
use tempfile::TempDir;

const DAEMONS: [&str; 3] = ["munged", "slurmctld", "slurmd"];
const SOON: Duration = Duration::from_secs(20);

/// A cluster of three nodes; its daemons end with the value.
struct Slurm {
    folder: TempDir,
    daemons: Vec<Child>,
}

fn free_tcp_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    listener.unwrap_or_else(|e| panic!("no free port: {e}")).port()
}

impl Slurm {
    /// None, with a word, where Slurm is not installed or this user may not start it.
    fn start() -> Option<Self> {
        let installed = |name: &&str| Command::new("which").arg(name).output().is_ok_and(|o| o.status.success());
        if !rustix::process::geteuid().is_root() || !DAEMONS.iter().all(installed) {
            eprintln!("not tried: it takes root, and {} (apt-get install munge slurm-wlm)", DAEMONS.join(", "));
            return None;
        }
        let folder = TempDir::new().unwrap_or_else(|e| panic!("{e}"));
        let mut slurm = Self { folder, daemons: Vec::new() };
        slurm.configure();
        let [key, socket, seed, pid, log] =
            ["munge.key", "munge.sock", "munge.seed", "munged.pid", "munged.log"].map(|name| slurm.text(name));
        let munged = [("key-file", &key), ("socket", &socket), ("seed-file", &seed), ("pid-file", &pid), ("log-file", &log)];
        let options = munged.map(|(option, value)| format!("--{option}={value}"));
        slurm.daemon("munged", &[&["--foreground", "--force"], &options.each_ref().map(String::as_str)[..]].concat());
        until("munge", SOON, || slurm.path("munge.sock").exists().then_some(()));
        let conf = slurm.text("slurm.conf");
        slurm.daemon("slurmctld", &["-D", "-i", "-f", &conf]);
        for node in ["n1", "n2", "n3"] {
            slurm.daemon("slurmd", &["-D", "-N", node, "-f", &conf]);
        }
        until("three idle nodes", SOON, || (slurm.says("sinfo", &["-h", "-o", "%T %D"]) == "idle 3").then_some(()));
        Some(slurm)
    }

    fn configure(&self) {
        let write = |name: &str, text: &[u8]| std::fs::write(self.path(name), text).unwrap_or_else(|e| panic!("{name}: {e}"));
        let key: String = (0..32).map(|n| format!("{:04x}", std::process::id().wrapping_mul(n + 7))).collect();
        write("munge.key", key.as_bytes());
        let private = std::fs::Permissions::from_mode(0o400);
        std::fs::set_permissions(self.path("munge.key"), private).unwrap_or_else(|e| panic!("{e}"));
        std::fs::create_dir(self.path("state")).unwrap_or_else(|e| panic!("{e}"));
        let host = rustix::system::uname().nodename().to_string_lossy().split('.').next().unwrap_or_default().to_owned();
        let folder = self.folder.path().display();
        let mut conf = format!(
            "ClusterName=ringleader\nSlurmctldHost={host}(127.0.0.1)\nSlurmctldPort={}\nSlurmUser=root\nSlurmdUser=root\n\
             AuthType=auth/munge\nAuthInfo=socket={folder}/munge.sock\nCredType=cred/munge\nMpiDefault=none\n\
             ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nJobAcctGatherType=jobacct_gather/none\n\
             StateSaveLocation={folder}/state\nSlurmdSpoolDir={folder}/spool-%n\nSlurmctldPidFile={folder}/slurmctld.pid\n\
             SlurmdPidFile={folder}/slurmd-%n.pid\nSlurmctldLogFile={folder}/slurmctld.log\nSlurmdLogFile={folder}/slurmd-%n.log\n\
             ReturnToService=2\nSchedulerType=sched/backfill\nSchedulerParameters=sched_interval=2,bf_interval=2\n\
             SelectType=select/cons_tres\nSelectTypeParameters=CR_Core\nKillWait=20\nJobRequeue=1\n\
             PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n",
            free_tcp_port()
        );
        for node in ["n1", "n2", "n3"] {
            let port = free_tcp_port();
            let _ = writeln!(conf, "NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1 State=UNKNOWN");
        }
        write("slurm.conf", conf.as_bytes());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn daemon(&mut self, name: &str, arguments: &[&str]) {
        let log = std::fs::File::create(self.path(&format!("{}-{name}.out", self.daemons.len()))).unwrap_or_else(|e| panic!("{e}"));
        let mut command = Command::new(name);
        command.args(arguments).env("SLURM_CONF", self.path("slurm.conf")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.daemons.push(command.spawn().unwrap_or_else(|e| panic!("{name}: {e}")));
    }

    /// What one of Slurm's commands, or a binary of this project, prints; empty if it fails.
    fn says(&self, program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> String {
        let mut command = Command::new(program);
        command.args(arguments).env("SLURM_CONF", self.path("slurm.conf")).current_dir(project()).stdin(Stdio::null());
        let output = command.output().unwrap_or_else(|e| panic!("{arguments:?}: {e}"));
        if !output.status.success() {
            eprintln!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
            return String::new();
        }
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// The state of a job, and why it waits.
    fn job(&self, job: &str) -> String {
        self.says("squeue", &["-h", "-j", job, "-o", "%T %r"])
    }

    fn control(&self, arguments: &[&str]) {
        let _ = self.says("scontrol", arguments);
    }

    /// Processes of the run that have not ended.
    fn left(&self) -> usize {
        let run = self.text("run");
        let entries = std::fs::read_dir("/proc").unwrap_or_else(|e| panic!("{e}")).flatten();
        let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
        let binaries = ["coordinator", "worker"].map(|name| binary(name).display().to_string());
        let of_run = |line: &Vec<u8>| {
            let line = String::from_utf8_lossy(line);
            line.contains(&run) && binaries.iter().any(|binary| line.contains(binary))
        };
        lines.filter(of_run).count()
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        // A job that still runs would outlive its node's daemon.
        let _ = self.says("scancel", &["--full", "--signal=KILL", "--user=root"]);
        for daemon in self.daemons.iter_mut().rev() {
            // SAFETY: kill(2) takes plain numbers; the process is ours and not yet waited for.
            let _ = unsafe { libc::kill(daemon.id() as i32, libc::SIGTERM) };
        }
        std::thread::sleep(Duration::from_millis(300));
        for daemon in &mut self.daemons {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

fn wait_for_steps(run: &Path, steps: u64) {
    until("steps of the run", SOON, || (committed(run) >= steps).then_some(()));
}

#[test]
fn a_job_is_drained_requeued_and_cancelled_without_loss() {
    let Some(slurm) = Slurm::start() else { return };
    let (run, batch) = (slurm.path("run"), slurm.text("job.sbatch"));
    let mut line = vec!["slurm", "configs/alexnet-synthetic.toml", "--nodes", "3", "--cpus-per-node", "1"];
    let run_text = slurm.text("run");
    line.extend(["--run-dir", &run_text, "--out", &batch]);
    for pair in SMALL_AND_LONG.into_iter().chain(["train.shards=4", "train.global_batch=32", "cluster.timeout_ms=10000"]) {
        line.extend(["--set", pair]);
    }
    assert!(slurm.says(binary("coordinator"), &line).contains("submit it with"));
    let job = slurm.says("sbatch", &["--parsable", &batch]);
    assert!(job.parse::<u32>().is_ok(), "sbatch gave no job: {job}");
    until("run directory", SOON, || run.join("journal.jsonl").exists().then_some(()));
    wait_for_steps(&run, 3);
    wait_for_ring(&run, 3);

    // What runs on a node that is drained goes on.
    slurm.control(&["update", "nodename=n3", "state=drain", "reason=test"]);
    assert!(slurm.says("sinfo", &["-h", "-o", "%T %D"]).contains("draining 1"));
    let before = committed(&run);
    wait_for_steps(&run, before + 3);
    assert_eq!(slurm.job(&job), "RUNNING None");

    // A job that is requeued saves its run, and waits for the node.
    slurm.control(&["requeue", &job]);
    until("end of the job's processes", SOON, || (slurm.left() == 0).then_some(()));
    let saved = committed(&run);
    assert_eq!(checkpoints(&run).last(), Some(&saved), "no step is lost");
    // Slurm lets it wait for two minutes, so that credentials of its first start have expired.
    until("waiting job", SOON, || slurm.job(&job).starts_with("PENDING").then_some(()));
    slurm.control(&["update", &format!("jobid={job}"), "starttime=now"]);
    until("job that waits for its node", SOON, || {
        let state = slurm.job(&job);
        (state.starts_with("PENDING") && !state.ends_with("BeginTime")).then_some(())
    });
    assert_eq!(events(&run, "run_started"), 1);
    slurm.control(&["update", "nodename=n3", "state=resume"]);
    until("second start", SOON, || (events(&run, "run_started") == 2).then_some(()));
    wait_for_steps(&run, saved + 3);
    wait_for_ring(&run, 3);
    let journal = std::fs::read_to_string(run.join("journal.jsonl")).unwrap_or_default();
    assert!(journal.lines().any(|line| line.contains("run_started") && line.contains(&format!("\"step\":{saved}"))), "{journal}");

    // One that is cancelled saves it too, for good.
    let _ = slurm.says("scancel", &[&job]);
    until("end of the job", SOON, || (slurm.left() == 0 && slurm.job(&job).is_empty()).then_some(()));
    assert_eq!(checkpoints(&run).last(), Some(&committed(&run)), "no step is lost");
    assert!(slurm.says("scontrol", &["show", "job", &job]).contains("JobState=CANCELLED"));
    assert_eq!(events(&run, "run_failed"), 0);
}
