//! What each command of `coordinator` does, once its arguments are parsed.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use clap::CommandFactory;
use common::config::{Config, ModelConfig};
use common::dataset;
use common::files::replace_private;
use common::net::{Authority, BoundSocket, COORDINATOR, Endpoint, Role, addresses};
use common::objects;
use common::recorder::{Length, describe, plan, what_next};
use common::run_dir::{ContentsCheck, DataDescription, Resume, RunDir, weights_to_begin_with};
use common::signals::Signals;
use common::ui::{busy, exit, index_progress, print_findings, print_result, print_stderr, print_stdout};
use tokio::sync::mpsc;

use crate::cli::arguments::{Cli, Command, LocalArgs, RunArgs, ServeArgs, ShowArgs, SshArgs};
use crate::describe::describe as describe_model;
use crate::inbox::LauncherEvent;
use crate::local::{self, merge_traces, worker_binary};
use crate::page::{Actions, Http, Page, Source};
use crate::serve::{Outcome, Run, serve};
use crate::ssh::{self, Archive, Ssh};
use crate::supervisor::{Launcher, Supervision, Workers};
use crate::{audit, check, doctor, init, runs, slurm, token};

/// How long workers that were started here get to end by themselves.
const GRACE: Duration = Duration::from_secs(5);

/// How often the join line's token is checked.
const RENEW: Duration = Duration::from_secs(3600);

/// The most events that may wait for the coordinator.
const LAUNCHER_QUEUE: usize = 64;

/// Carries out one command.
pub fn run(cli: Cli) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match cli.command {
        Command::Serve(args) => report(runtime.block_on(serve_command(args, cli.log.quiet))?.as_ref()),
        Command::Local(args) => report(runtime.block_on(local_command(args, &cli.log))?.as_ref()),
        Command::Ssh(args) => report(runtime.block_on(ssh_command(args, &cli.log))?.as_ref()),
        Command::Audit(args) => {
            let _busy = busy("auditing");
            print_result(audit::run(&args.run)?.trim_end())?;
        }
        Command::Token(command) => print_result(token::run(&command)?.trim_end())?,
        Command::Slurm(args) => print_result(&slurm::run(&args)?)?,
        Command::Page(args) => runtime.block_on(page_command(args))?,
        Command::Check(args) => print_result(check::report(&args)?.trim_end())?,
        Command::Doctor(args) => {
            let findings = runtime.block_on(doctor::findings(&args, &host_part(args.listen)));
            print_findings(&findings, args.json)?;
        }
        Command::Init(args) => print_result(init::run(&args, cli.log.quiet)?.trim_end())?,
        Command::Runs(args) => print_result(runs::run(&args)?.trim_end())?,
        Command::Schema => print_result(&Config::schema())?,
        Command::Completions(args) => print_result(&args.script(Cli::command()))?,
        Command::Man(args) => print_result(&format!("{} pages", args.write(Cli::command())?))?,
    }
    Ok(())
}

fn report(outcome: Option<&Outcome>) {
    let Some(outcome) = outcome else { return };
    if outcome.stopped {
        print_stdout(&format!("stopped; go on with --resume --run-dir {}", outcome.run_dir.display()));
    }
    print_stdout(&describe(&outcome.summary, &outcome.run_dir));
    print_stdout(&what_next(&outcome.run_dir));
}

/// Serves a run; returns `None` for a run that was complete before.
async fn serve_command(args: ServeArgs, quiet: bool) -> Result<Option<Outcome>> {
    let config = Config::load(&args.run.config, &args.run.overrides)?;
    // The socket is bound first: a port that is taken must not leave a run behind.
    let socket = BoundSocket::bind(args.listen).context("choose another --listen")?;
    let binary = args.worker_binary.map(|path| worker_binary(Some(path))).transpose()?;
    let run = Run { may_return: true, ..prepare(config, &args.run, args.workers.unwrap_or(1), binary.as_deref(), quiet)? };
    if is_complete(&run, args.run.resume)? {
        return Ok(None);
    }
    let endpoint = Endpoint::serve(socket, &run.authority.identity(COORDINATOR)?, Role::Coordinator, None)?;
    let (host, address) = join_at(endpoint.local_addr()?, &args.advertise);
    print_stdout(&format!("run directory: {}", run.run_dir.path().display()));
    let token = run.authority.tokens().standing(SystemTime::now())?;
    let join = run.run_dir.path().join("keys/join");
    leave_join_line(&join, &format!("{address} {token}\n"))?;
    tokio::spawn(renew(Arc::clone(&run.authority), join, address.clone()));
    print_stdout(&format!("join from other machines with:\n\n  worker join {address} --token {token}\n"));
    let (send, events) = mpsc::channel(LAUNCHER_QUEUE);
    let run = with_page(run, args.page.http, &host, address, &send);
    if let Some(page) = &run.page {
        print_stdout(&format!("page: {}", page.url));
    }
    let contents = check_contents(&run, &args.run, send.clone())?;
    interrupts(Signals::listen(false)?, send);
    let outcome = serve(run, endpoint, events).await?;
    contents.finish()?;
    Ok(Some(outcome))
}

async fn local_command(args: LocalArgs, log: &common::ui::LogArgs) -> Result<Option<Outcome>> {
    let binary = worker_binary(args.worker_binary)?;
    let mut config = Config::load(&args.run.config, &args.run.overrides)?;
    if config.train.threads.is_none() && !config.train.reproducible {
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as u32;
        config.train.threads = Some((cores / args.workers.max(1)).max(1));
        config.validate()?;
    }
    let data = config.data.path().map(std::path::Path::to_owned);
    let socket = BoundSocket::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let run = prepare(config, &args.run, args.workers, Some(&binary), log.quiet)?;
    if is_complete(&run, args.run.resume)? {
        return Ok(None);
    }
    let endpoint = Endpoint::serve(socket, &run.authority.identity(COORDINATOR)?, Role::Coordinator, None)?;
    // Other workers may join the local ones.
    let token = run.authority.tokens().standing(SystemTime::now())?;
    leave_join_line(&run.run_dir.path().join("keys/join"), &format!("{} {token}\n", endpoint.local_addr()?))?;
    let launch = local::Launch {
        workers: args.workers,
        addr: endpoint.local_addr()?,
        devices: args.devices,
        binary,
        data,
        stream_data: args.stream_data,
        trace: args.trace.clone(),
        log: log.options(),
    };
    let host = host_part(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
    let join = endpoint.local_addr()?.to_string();
    let outcome = launched(run, endpoint, launch, &args.run, args.page.http, (host, join)).await;
    if let Some(trace) = &args.trace {
        merge_traces(trace, args.workers);
    }
    Ok(Some(outcome?))
}

async fn ssh_command(args: SshArgs, log: &common::ui::LogArgs) -> Result<Option<Outcome>> {
    let mut config = Config::load(&args.run.config, &args.run.overrides)?;
    let hosts = ssh::read_hosts(&args.hosts)?;
    let workers = hosts.iter().map(|host| host.workers).sum();
    if workers > config.train.shards {
        bail!("--hosts has {workers} workers: every worker owns at least one shard, and train.shards is {}", config.train.shards);
    }
    let here = std::env::current_exe().context("could not find this program's own path")?;
    let archive = Archive::find(args.archive, &here)?;
    let socket = BoundSocket::bind(args.listen).context("choose another --listen")?;
    // What lies in a store, workers find by the config.
    let data = args.data.as_deref().or(config.data.path()).filter(|path| !args.stream_data && !objects::is_address(path));
    let data = data.map(std::path::absolute).transpose().context("the data's path")?;
    let ssh = Ssh { config: args.ssh_config, options: args.ssh_options };
    let hosts = ssh::install(&ssh, hosts, &archive, data.as_deref(), log.quiet).await?;
    if let Some(data) = &data {
        for ready in hosts.iter().filter(|ready| !ready.has_data) {
            tracing::warn!("{}: there is no `{}`: its workers get their samples from here", ready.host.name, data.display());
        }
    }
    if config.train.threads.is_none() && !config.train.reproducible {
        config.train.threads = ssh::threads(&hosts);
        config.validate()?;
    }
    // Only the worker of the archive has a model of one's own, and it lies beside this program.
    let binary = matches!(config.model, ModelConfig::Own(_)).then(|| worker_binary(None)).transpose()?;
    let run = prepare(config, &args.run, workers, binary.as_deref(), log.quiet)?;
    if is_complete(&run, args.run.resume)? {
        return Ok(None);
    }
    let endpoint = Endpoint::serve(socket, &run.authority.identity(COORDINATOR)?, Role::Coordinator, None)?;
    let bound = endpoint.local_addr()?;
    let (host, join) = join_at(bound, &args.advertise);
    let is_ours = |ip: IpAddr| addresses::listening(bound).iter().any(|address| address.ip() == ip);
    let addresses = ssh::addresses(&hosts, |ip| args.advertise.is_empty() && is_ours(ip), bound.port(), &join);
    // Other workers may join those of the hosts.
    let token = run.authority.tokens().standing(SystemTime::now())?;
    let line = run.run_dir.path().join("keys/join");
    leave_join_line(&line, &format!("{join} {token}\n"))?;
    tokio::spawn(renew(Arc::clone(&run.authority), line, join.clone()));
    if !log.quiet {
        print_stderr(&format!("run directory: {}", run.run_dir.path().display()));
    }
    let launch = ssh::Launch { ssh, archive: archive.hash, hosts, addresses, devices: args.devices, data, log: log.options() };
    Ok(Some(launched(run, endpoint, launch, &args.run, args.page.http, (host, join)).await?))
}

/// Serves a run with the workers of `launch`, and ends them with it. `host` is this machine for
/// others; `join` is where workers join.
async fn launched(
    run: Run,
    endpoint: Endpoint,
    launch: impl Launcher,
    args: &RunArgs,
    http: Http,
    (host, join): (String, String),
) -> Result<Outcome> {
    let path = run.run_dir.path().to_owned();
    let (send, events) = mpsc::channel(LAUNCHER_QUEUE);
    let run = with_page(run, http, &host, join, &send);
    if let Some(page) = run.page.as_ref().filter(|_| !run.quiet) {
        print_stderr(&format!("page: {}", page.url));
    }
    let contents = check_contents(&run, args, send.clone())?;
    interrupts(Signals::listen(false)?, send.clone());
    let rules = Supervision { min_workers: run.config.cluster.min_workers, run_dir: path.clone() };
    let mut workers = Workers::start(launch, rules, Arc::clone(&run.authority), send).await?;
    let timeout = Duration::from_millis(run.config.cluster.timeout_ms);
    let mut serving = std::pin::pin!(serve(run, endpoint, events));
    let served = tokio::select! {
        outcome = &mut serving => outcome,
        // The coordinator notices by itself what happens to a worker that has joined,
        // and its reason is then the better one.
        reason = workers.failed() => match tokio::time::timeout(timeout + GRACE, &mut serving).await {
            Ok(outcome) => outcome,
            Err(_) => Err(anyhow!("{reason}; the run's files are in `{}`", path.display())),
        },
    };
    workers.end(if served.is_ok() { GRACE } else { Duration::from_millis(500) }).await;
    let outcome = served?;
    contents.finish()?;
    Ok(outcome)
}

/// The run with its page, if it is to have one. `host` is this machine for others; `join` is
/// where workers join.
fn with_page(run: Run, http: Http, host: &str, join: String, events: &mpsc::Sender<LauncherEvent>) -> Run {
    let actions = Actions { events: events.clone(), authority: Arc::clone(&run.authority), address: join };
    let page = Page::of_run(http, host, run.run_dir.path(), actions);
    Run { page, ..run }
}

/// Shows runs by their records until it is interrupted.
async fn page_command(args: ShowArgs) -> Result<()> {
    let Http::At(address) = args.page.http else { bail!("a page that is off shows nothing: name an address after --http") };
    let sources = args.runs.iter().map(|run| Source::recorded(run)).collect::<Result<Vec<_>>>()?;
    let keys = args.runs.iter().map(|run| run.join("keys")).find(|keys| keys.join("ca.pem").is_file());
    let authority = keys.map(|keys| Authority::open(&keys)).transpose()?;
    let mut signals = Signals::listen(false)?;
    let page = Page::bind(address, &host_part(address), authority.as_ref())?;
    print_stdout(&format!("page: {}", page.url));
    let running = page.start(sources)?;
    signals.request().await;
    running.finish().await;
    Ok(())
}

/// Has data that was too large to be read before the run read now; the run is stopped if
/// the data is other than that it was started with.
fn check_contents(run: &Run, args: &RunArgs, events: mpsc::Sender<LauncherEvent>) -> Result<ContentsCheck> {
    let on_other = move || {
        if events.blocking_send(LauncherEvent::Stop).is_err() {
            tracing::debug!("the run was over before its data was read");
        }
    };
    Ok(ContentsCheck::start(run.run_dir.path(), Arc::clone(&run.source), args.accept_data, on_other)?)
}

/// Whether the run is complete already, which is then printed: the same command line
/// may be repeated at each start of a machine.
fn is_complete(run: &Run, resume: Option<Resume>) -> Result<bool> {
    let plan = plan(&run.config, run.source.info()).map_err(|e| anyhow!(e))?;
    let steps = Length::of(&run.config, &plan).steps;
    let complete = resume == Some(Resume::Auto) && run.run_dir.is_complete(steps)?;
    if complete {
        print_stdout(&format!(
            "the run in `{}` is complete after {steps} steps: raise train.epochs to go on",
            run.run_dir.path().display()
        ));
    }
    Ok(complete)
}

/// Opens data, run directory and the run's certificate authority; asks `binary` for the layers
/// of a model of one's own. The steps that can fail come before the run directory is made.
fn prepare(mut config: Config, args: &RunArgs, start_workers: u32, binary: Option<&Path>, quiet: bool) -> Result<Run> {
    if start_workers == 0 || start_workers > config.train.shards {
        bail!(
            "--workers is {start_workers}: every worker owns at least one shard, so it must be between 1 and train.shards = {}",
            config.train.shards
        );
    }
    let progress = index_progress(quiet);
    let source = dataset::open(&config.data, config.seed, &progress)?;
    drop(progress);
    source.passed_over().warn();
    let input = source.info().input(config.data.pixels.image_size);
    describe_model(&mut config, input, binary, args.run_dir.as_deref())?;
    plan(&config, source.info()).map_err(|e| anyhow!(e))?;
    let resume = Resume::applies(args.resume, args.run_dir.as_deref(), &config)?;
    weights_to_begin_with(&config, args.run_dir.as_deref().filter(|_| resume))?;
    let mut run_dir = RunDir::open(args.run_dir.as_deref(), resume, &config)?;
    let data = DataDescription::of(source.as_ref());
    if args.accept_data {
        run_dir.accept_dataset(&data)?;
    }
    run_dir.write_dataset(&data)?;
    let authority = Arc::new(Authority::open(&run_dir.path().join("keys"))?);
    Ok(Run { config, source, run_dir, authority, start_workers, may_return: false, page: None, quiet })
}

/// Keeps a token that admits workers in the join line of the run directory: a run may
/// outlast its first token.
async fn renew(authority: Arc<Authority>, join: PathBuf, address: String) {
    loop {
        tokio::time::sleep(RENEW).await;
        let line = authority.tokens().standing(SystemTime::now()).map(|token| format!("{address} {token}\n"));
        if let Err(e) = line.map_err(Into::into).and_then(|line| leave_join_line(&join, &line)) {
            tracing::warn!("{e:#}");
        }
    }
}

/// Leaves addresses and token in the run directory, for scripts that start workers.
/// Like the keys beside it, the file can be read only by its owner.
fn leave_join_line(path: &Path, line: &str) -> Result<()> {
    replace_private(path, line.as_bytes()).with_context(|| format!("could not write `{}`", path.display()))
}

/// Passes on each request to stop; the third ends the process, whatever it is doing.
fn interrupts(mut signals: Signals, events: mpsc::Sender<LauncherEvent>) {
    tokio::spawn(async move {
        loop {
            let number = signals.request().await;
            let received = events.try_send(LauncherEvent::Stop).is_ok();
            // A run that has just ended need not be events.
            if number > 2 || (number == 2 && !received) {
                print_stderr("stopped at once");
                exit(1);
            }
        }
    });
}

/// How other machines reach a coordinator that is bound to `bound`: its best host, and all
/// its addresses as `worker join` takes them, best first. Those are of the hosts that it is
/// told to name (`advertise`), if there are any.
fn join_at(bound: SocketAddr, advertise: &[String]) -> (String, String) {
    let found = addresses::listening(bound);
    let hosts: Vec<String> = match advertise {
        [] => found.iter().map(|address| as_host(address.ip())).collect(),
        // An IPv6 address needs brackets before a port.
        named => named.iter().map(|host| host.parse().map_or_else(|_| host.clone(), as_host)).collect(),
    };
    let all: Vec<String> = hosts.iter().map(|host| format!("{host}:{}", bound.port())).collect();
    (hosts.into_iter().next().unwrap_or_default(), all.join(" "))
}

/// The host by which other machines can reach this one: the address that it listens on, or
/// the best one of this machine.
fn host_part(listen: SocketAddr) -> String {
    join_at(listen, &[]).0
}

fn as_host(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use std::net::UdpSocket;

    use clap::Parser;

    use super::*;

    fn run_line(arguments: &[&str]) -> Result<()> {
        run(Cli::try_parse_from(["coordinator"].iter().chain(arguments)).unwrap())
    }

    fn config(folder: &Path, train: &str) -> String {
        let path = folder.join("run.toml");
        let text =
            format!("name = \"t\"\n[model]\nkind = \"mlp\"\n[data]\nkind = \"xor\"\n[train]\nglobal_batch = 4\nshards = 1\n{train}\n");
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    #[test]
    fn a_start_that_fails_leaves_no_run_behind() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("run");
        let path = run_dir.display().to_string();
        let held = UdpSocket::bind("127.0.0.1:0").unwrap();
        let listen = held.local_addr().unwrap().to_string();
        let good = config(dir.path(), "");
        let refused = run_line(&["serve", &good, "--run-dir", &path, "--listen", &listen]).unwrap_err();
        assert!(format!("{refused:#}").contains("--listen"), "{refused:#}");
        assert!(!run_dir.exists(), "a port that is taken");

        // More shards than samples.
        let bad = config(dir.path(), "").replace("run.toml", "bad.toml");
        let text = std::fs::read_to_string(&good).unwrap().replace("shards = 1", "shards = 8").replace("batch = 4", "batch = 8");
        std::fs::write(&bad, text.replace("kind = \"xor\"", "kind = \"xor\"\ntrain = 4\nval = 4")).unwrap();
        let refused = run_line(&["serve", &bad, "--run-dir", &path, "--listen", "127.0.0.1:0"]).unwrap_err();
        assert!(format!("{refused:#}").contains("lower train.shards"), "{refused:#}");
        assert!(!run_dir.exists(), "a plan that cannot be");
    }

    #[test]
    fn other_data_is_refused_before_anybody_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("run");
        let data = dir.path().join("data.csv");
        let rows = |last: &str| (0..20).map(|n| format!("{n},{}\n", if n % 2 == 0 { "cat" } else { last })).collect::<String>();
        std::fs::write(&data, format!("x,label\n{}", rows("dog"))).unwrap();
        let toml = config(dir.path(), "");
        let text = std::fs::read_to_string(&toml).unwrap();
        std::fs::write(&toml, text.replace("kind = \"xor\"", &format!("kind = \"csv\"\npath = {data:?}"))).unwrap();
        let cli = Cli::try_parse_from(["coordinator", "serve", &toml, "--resume=auto", "--run-dir", &run_dir.display().to_string()]);
        let Command::Serve(args) = cli.unwrap().command else { panic!("another command") };
        let open = || prepare(Config::load(&args.run.config, &[]).unwrap(), &args.run, 1, None, true);
        let first = open().unwrap();
        first.run_dir.write_dataset(&DataDescription::of(first.source.as_ref())).unwrap();
        drop(first);
        drop(open().unwrap());
        std::fs::write(&data, format!("x,label\n{}", rows("zebra"))).unwrap();
        let refused = format!("{:#}", open().err().unwrap());
        assert!(refused.contains("with `zebra`") && refused.contains("with `dog`") && refused.contains("fingerprint"), "{refused}");
    }

    #[test]
    fn the_join_line_names_where_the_coordinator_is_bound_or_what_it_is_told() {
        let at = |bound: &str, advertise: &[&str]| {
            let advertise: Vec<String> = advertise.iter().map(|&host| host.to_owned()).collect();
            join_at(bound.parse().unwrap(), &advertise).1
        };
        assert_eq!(at("[::1]:7474", &[]), "[::1]:7474");
        assert_eq!(at("127.0.0.1:7474", &[]), "127.0.0.1:7474");
        assert_eq!(at("[::]:7474", &["head.example", "fd00::7", "10.0.0.7"]), "head.example:7474 [fd00::7]:7474 10.0.0.7:7474");
        let own: Vec<String> = addresses::listening("[::]:7474".parse().unwrap()).iter().map(ToString::to_string).collect();
        assert_eq!(at("[::]:7474", &[]), own.join(" "));
    }

    #[test]
    fn the_join_line_is_never_seen_in_part() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("join");
        let lines = ["127.0.0.1:1 short\n".to_owned(), format!("127.0.0.1:2 {}\n", "long".repeat(2000))];
        leave_join_line(&path, &lines[0]).unwrap();
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| (0..100).for_each(|n| leave_join_line(&path, &lines[n % 2]).unwrap()));
            while !writing.is_finished() {
                let seen = std::fs::read_to_string(&path).unwrap();
                assert!(lines.contains(&seen), "{} bytes", seen.len());
            }
        });
    }
}
