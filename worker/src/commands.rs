//! What each command of `worker` does, once its arguments are parsed.

mod look;

use std::io::Write;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, anyhow};
use common::config::Config;
use common::dataset;
use common::net::Token;
use common::recorder::describe;
use common::run_dir::RunDir;
use common::trace;
use common::ui::{index_progress, screen};

use crate::cli::{Cli, Command, DataCommand, JoinArgs, LeaveArgs, TrainArgs};
use crate::device::ComputeDevice;
use crate::join::{JoinOptions, join};
use crate::single::{self, SingleRun};
use crate::{bench, doctor, ending, fetch, presence};

/// Carries out one command.
pub fn run(cli: Cli) -> Result<()> {
    crate::device::keep_memory();
    match cli.command {
        Command::Train(args) => train(args, cli.log.quiet),
        Command::Join(args) => join_command(args),
        Command::Leave(args) => leave_command(&args),
        Command::Eval(args) => look::quietly(|| look::eval(args)),
        Command::Predict(args) => look::quietly(|| look::predict(args)),
        Command::Plot(args) => look::quietly(|| look::plot(args)),
        Command::Summary(args) => look::quietly(|| look::summary(args)),
        Command::Filter(args) => look::quietly(|| look::filter(args)),
        Command::Data(DataCommand::Get { dataset, into, from }) => {
            let into = into.unwrap_or_else(|| PathBuf::from("data").join(&dataset));
            fetch::get(&dataset, &into, from.as_deref())
        }
        Command::Data(DataCommand::Show { data, label, out }) => look::quietly(|| look::show(&data, &label, out)),
        Command::Bench(command) => bench::run(command),
        Command::Doctor => {
            print!("{}", doctor::report());
            Ok(())
        }
    }
}

fn train(args: TrainArgs, quiet: bool) -> Result<()> {
    let _trace = trace::to_file(args.trace);
    let config = Config::load(&args.config, &args.overrides)?;
    let device = ComputeDevice::parse(&args.device)?;
    let progress = index_progress(quiet);
    let source = dataset::open(&config.data, config.seed, &progress)?;
    drop(progress);
    let run_dir = RunDir::open(args.run_dir.as_deref(), args.resume, &config)?;
    let path = run_dir.path().to_owned();
    let stop = Arc::new(AtomicBool::new(false));
    on_interrupt(Arc::clone(&stop))?;
    let stopped = Arc::clone(&stop);
    let summary = single::run(SingleRun { config, source: Arc::clone(&source), run_dir, device, quiet, stop })?;
    // The run is safe whatever becomes of its pictures, or of whoever reads this.
    let mut lines = Vec::new();
    if stopped.load(Ordering::Relaxed) {
        lines.push(format!("stopped; go on with --resume --run-dir {}", path.display()));
    }
    lines.push(describe(&summary, &path));
    match ending::after(&path, source.as_ref(), device) {
        Ok(more) => lines.extend(more),
        Err(e) => tracing::warn!("the run is complete, but could not be drawn: {e:#}"),
    }
    let _ = writeln!(std::io::stdout(), "{}", lines.join("\n"));
    Ok(())
}

/// The first Ctrl-C asks to stop, the second one ends the process.
fn on_interrupt(stop: Arc<AtomicBool>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            while tokio::signal::ctrl_c().await.is_ok() {
                if stop.swap(true, Ordering::Relaxed) {
                    screen().suspend(|| eprintln!("stopped at once"));
                    std::process::exit(1);
                }
                screen().suspend(|| eprintln!("stopping after this step with a checkpoint; once more to stop at once"));
            }
        });
    })?;
    Ok(())
}

fn join_command(args: JoinArgs) -> Result<()> {
    let _trace = trace::to_file(args.trace.clone());
    let token = read_token(&args)?;
    let coordinator = resolve(&args.coordinator)?;
    let cache_dir = args.cache_dir.or_else(|| dirs::cache_dir().map(|d| d.join("ringleader"))).unwrap_or_else(std::env::temp_dir);
    let ring_listen = if coordinator.is_ipv6() && args.ring_listen.ip().is_unspecified() {
        SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), args.ring_listen.port())
    } else {
        args.ring_listen
    };
    let options = JoinOptions {
        coordinator,
        token,
        data: args.data,
        device: args.device,
        ring_listen,
        advertise: args.advertise.map(|a| a.to_string()),
        preferred_rank: args.preferred_rank,
        cache_dir,
        cache_bytes: args.cache_gb << 30,
    };
    if args.supervised {
        end_with_stdin()?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(network_threads()).enable_all().build()?;
    let outcome = runtime.block_on(async {
        let (ask, shutdown) = tokio::sync::watch::channel(false);
        tokio::spawn(leave_when_told(ask, args.supervised));
        // Without it `worker leave` does not find this worker, which trains all the same.
        let _present = presence::announce(&presence::folder(), &args.coordinator).inspect_err(|e| tracing::warn!("{e:#}"));
        join(options, shutdown).await
    });
    // The training thread may sit in a step that nobody waits for any more.
    runtime.shutdown_background();
    outcome
}

/// Threads for the network. Where training needs every core, a second one costs
/// more than it moves: the ring's data would change cores on the way. A large
/// machine has fat links and several connections to fill them.
fn network_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() / 8).clamp(1, 4)
}

/// Ctrl-C and SIGTERM ask to leave; the second of either ends the process.
async fn leave_when_told(ask: tokio::sync::watch::Sender<bool>, supervised: bool) {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
    loop {
        let told = tokio::select! {
            // A launcher gets the same Ctrl-C and tells its workers itself.
            heard = tokio::signal::ctrl_c() => heard.is_ok() && !supervised,
            _ = terminate.recv() => true,
        };
        if told && ask.send_replace(true) {
            std::process::exit(1);
        }
    }
}

fn leave_command(args: &LeaveArgs) -> Result<()> {
    let present = presence::present(&presence::folder());
    for worker in presence::choose(&present, args.pid, args.all)? {
        presence::ask_to_leave(&worker)?;
        println!("worker {} leaves the run of {}", worker.pid, worker.coordinator);
    }
    Ok(())
}

fn read_token(args: &JoinArgs) -> Result<Token> {
    let text = match (&args.token, &args.token_file) {
        (Some(token), _) => token.clone(),
        (None, Some(path)) if path.as_os_str() == "-" => {
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).context("could not read the token from stdin")?;
            line
        }
        (None, Some(path)) => {
            std::fs::read_to_string(path).with_context(|| format!("could not read the token from `{}`", path.display()))?
        }
        (None, None) => return Err(anyhow!("a token is needed: give the --token of the coordinator's join line")),
    };
    Ok(text.trim().parse()?)
}

fn resolve(host: &str) -> Result<SocketAddr> {
    host.to_socket_addrs()
        .with_context(|| format!("`{host}` is not the host:port of a coordinator"))?
        .next()
        .ok_or_else(|| anyhow!("`{host}` has no address"))
}

/// Ends this process when stdin does: the launcher holds the other end and
/// never writes to it again, so the end of the pipe is the end of the launcher.
pub(crate) fn end_with_stdin() -> Result<()> {
    std::thread::Builder::new().name("supervisor".to_owned()).spawn(|| {
        let mut rest = [0; 64];
        while matches!(std::io::Read::read(&mut std::io::stdin(), &mut rest), Ok(1..)) {}
        std::process::exit(1);
    })?;
    Ok(())
}
