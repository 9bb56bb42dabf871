//! What each command of `coordinator` does, once its arguments are parsed.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use common::config::Config;
use common::dataset;
use common::net::{Authority, COORDINATOR, Endpoint, Role};
use common::recorder::describe;
use common::run_dir::RunDir;
use common::ui::{index_progress, screen};
use tokio::sync::mpsc;

use crate::cli::{Cli, Command, LocalArgs, RunArgs, ServeArgs};
use crate::local::{Launch, Workers, worker_binary};
use crate::serve::{Outcome, Run, Told, serve};
use crate::{audit, check, token};

/// How long local workers get to end by themselves.
const GRACE: Duration = Duration::from_secs(5);

/// How often the join line's token is looked at.
const RENEW: Duration = Duration::from_secs(3600);

/// What may wait to be told to the coordinator.
const TOLD: usize = 64;

/// Carries out one command.
pub fn run(cli: Cli) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match cli.command {
        Command::Serve(args) => report(&runtime.block_on(serve_command(args, cli.log.quiet))?),
        Command::Local(args) => report(&runtime.block_on(local_command(args, &cli.log))?),
        Command::Audit(args) => print!("{}", audit::run(&args.run)?),
        Command::Token(command) => print!("{}", token::run(&command)?),
        Command::Check(args) => print!("{}", check::report(&args)?),
    }
    Ok(())
}

fn report(outcome: &Outcome) {
    if outcome.stopped {
        println!("stopped; go on with --resume --run-dir {}", outcome.run_dir.display());
    }
    println!("{}", describe(&outcome.summary, &outcome.run_dir));
}

async fn serve_command(args: ServeArgs, quiet: bool) -> Result<Outcome> {
    let config = Config::load(&args.run.config, &args.run.overrides)?;
    let run = Run { may_return: true, ..prepare(config, &args.run, args.workers.unwrap_or(1), quiet)? };
    let endpoint =
        Endpoint::bind(args.listen, &run.authority.identity(COORDINATOR)?, Role::Coordinator).context("choose another --listen")?;
    let port = endpoint.local_addr()?.port();
    let host = args.advertise.unwrap_or_else(|| host_part(args.listen));
    println!("run directory: {}", run.run_dir.path().display());
    let token = run.authority.tokens().standing(SystemTime::now())?;
    let join = run.run_dir.path().join("keys/join");
    leave_join_line(&join, &format!("{host}:{port} {token}\n"))?;
    tokio::spawn(renew(Arc::clone(&run.authority), join, format!("{host}:{port}")));
    println!("join from other machines with:\n\n  worker join {host}:{port} --token {token}\n");
    let (send, told) = mpsc::channel(TOLD);
    interrupts(send);
    serve(run, endpoint, told).await
}

async fn local_command(args: LocalArgs, log: &common::ui::LogArgs) -> Result<Outcome> {
    let binary = worker_binary(args.worker_binary)?;
    let mut config = Config::load(&args.run.config, &args.run.overrides)?;
    if config.train.threads.is_none() && !config.train.reproducible {
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as u32;
        config.train.threads = Some((cores / args.workers.max(1)).max(1));
    }
    let config = Config::parse(&config.to_toml(), "train.threads", &[])?;
    let data = config.data.path().map(std::path::Path::to_owned);
    let run = prepare(config, &args.run, args.workers, log.quiet)?;
    let endpoint = Endpoint::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), &run.authority.identity(COORDINATOR)?, Role::Coordinator)?;
    // Others may join the local ones.
    let token = run.authority.tokens().standing(SystemTime::now())?;
    leave_join_line(&run.run_dir.path().join("keys/join"), &format!("{} {token}\n", endpoint.local_addr()?))?;
    let launch = Launch {
        workers: args.workers,
        devices: args.devices,
        binary,
        data,
        stream_data: args.stream_data,
        trace: args.trace,
        log: log.options(),
    };
    let path = run.run_dir.path().to_owned();
    let (send, told) = mpsc::channel(TOLD);
    interrupts(send.clone());
    let mut workers = Workers::start(launch, endpoint.local_addr()?, Arc::clone(&run.authority), send).await?;
    let timeout = Duration::from_millis(run.config.cluster.timeout_ms);
    let mut serving = std::pin::pin!(serve(run, endpoint, told));
    let served = tokio::select! {
        outcome = &mut serving => outcome,
        // The coordinator notices by itself what happens to a worker that has
        // joined, and then its word is the better one.
        reason = workers.failed() => match tokio::time::timeout(timeout + GRACE, &mut serving).await {
            Ok(outcome) => outcome,
            Err(_) => Err(anyhow!("{reason}; its last lines stand above; the run's files are in `{}`", path.display())),
        },
    };
    workers.end(if served.is_ok() { GRACE } else { Duration::from_millis(500) }).await;
    served
}

/// Opens data, run directory and the run's certificate authority.
fn prepare(config: Config, args: &RunArgs, start_workers: u32, quiet: bool) -> Result<Run> {
    if start_workers == 0 || start_workers > config.train.shards {
        bail!(
            "--workers is {start_workers}: every worker owns at least one shard, so it must be between 1 and train.shards = {}",
            config.train.shards
        );
    }
    let progress = index_progress(quiet);
    let source = dataset::open(&config.data, config.seed, &progress)?;
    drop(progress);
    let run_dir = RunDir::open(args.run_dir.as_deref(), args.resume, &config)?;
    let authority = Arc::new(Authority::open(&run_dir.path().join("keys"))?);
    Ok(Run { config, source, run_dir, authority, start_workers, may_return: false, quiet })
}

/// A run may be longer than its first token: the join line of the run directory
/// has one that admits workers.
async fn renew(authority: Arc<Authority>, join: PathBuf, address: String) {
    loop {
        tokio::time::sleep(RENEW).await;
        let line = authority.tokens().standing(SystemTime::now()).map(|token| format!("{address} {token}\n"));
        if let Err(e) = line.map_err(Into::into).and_then(|line| leave_join_line(&join, &line)) {
            tracing::warn!("{e:#}");
        }
    }
}

/// Leaves address and token in the run directory, for scripts that start
/// workers. Like the keys beside it, only the owner may read it.
fn leave_join_line(path: &Path, line: &str) -> Result<()> {
    let write = || {
        let mut file = std::fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(line.as_bytes())
    };
    write().with_context(|| format!("could not write `{}`", path.display()))
}

/// Tells of each Ctrl-C or SIGTERM; the third ends the process, whatever it is at.
fn interrupts(told: mpsc::Sender<Told>) {
    tokio::spawn(async move {
        use tokio::signal::unix::{SignalKind, signal};
        let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
        for times in 1.. {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            if times > 2 || told.try_send(Told::Stop).is_err() {
                screen().suspend(|| eprintln!("stopped at once"));
                std::process::exit(1);
            }
        }
    });
}

/// What other machines can call this one: the address that it listens on, or
/// the one it would use to reach the outside. No packet is sent.
fn host_part(listen: SocketAddr) -> String {
    let outward = || {
        let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
        socket.connect("192.0.2.1:9").ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    let ip = if listen.ip().is_unspecified() { outward().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)) } else { listen.ip() };
    match ip {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    }
}
