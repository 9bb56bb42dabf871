//! What each command of `worker` does, once its arguments are parsed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, anyhow};
use clap::CommandFactory;
use common::config::Config;
use common::dataset;
use common::diagnosis::{Examination, examine};
use common::net::Token;
use common::objects;
use common::recorder::{Length, describe, plan, what_next};
use common::run_dir::{ContentsCheck, DataDescription, Resume, RunDir, weights_to_begin_with};
use common::signals::Signals;
use common::trace;
use common::ui::{exit, index_progress, print_findings, print_result, print_stderr, print_stdout};

use super::arguments::{Cli, Command, DataCommand, DoctorArgs, JoinArgs, LeaveArgs, TrainArgs};
use super::inspect;
use crate::analysis::{after_training, doctor, fetch, pack};
use crate::bench;
use crate::cluster::join::{JoinOptions, join};
use crate::cluster::registry;
use crate::cluster::supervised::end_with_stdin;
use crate::engine::device::{Devices, Share};
use crate::models::{Model, ParamLayout, describe as describe_model};
use crate::training::job::Job;
use crate::training::single::{self, SingleRun};
use crate::weights::WeightsFile;

/// Carries out one command.
pub fn run(cli: Cli) -> Result<()> {
    crate::engine::device::prepare_process();
    match cli.command {
        Command::Train(args) => train(args, cli.log.quiet),
        Command::Join(args) => join_command(args),
        Command::Leave(args) => leave_command(&args),
        Command::Eval(args) => inspect::eval(args),
        Command::Predict(args) => inspect::predict(args),
        Command::Export(args) => inspect::export(args),
        Command::Plot(args) => inspect::plot(args),
        Command::Summary(args) => inspect::summary(args),
        Command::Describe(args) => inspect::describe(args),
        Command::Filter(args) => inspect::filter(args),
        Command::Data(DataCommand::Get { dataset, into, from }) => {
            let into = into.unwrap_or_else(|| PathBuf::from("data").join(&dataset));
            fetch::get(&dataset, &into, from.as_deref())
        }
        Command::Data(DataCommand::Pack { source, out, short_side, quality, on_corrupt }) => {
            inspect::pack(&source, &out, pack::Options { short_side, quality, on_corrupt })
        }
        Command::Data(DataCommand::Verify { data, label }) => inspect::verify(&data, &label),
        Command::Data(DataCommand::Show { data, label, out }) => inspect::show(&data, &label, out),
        Command::Bench(command) => bench::run(command),
        Command::Doctor(args) => doctor_command(args),
        Command::Completions(args) => print_result(&args.script(Cli::command())),
        Command::Man(args) => print_result(&format!("{} pages", args.write(Cli::command())?)),
    }
}

fn train(args: TrainArgs, quiet: bool) -> Result<()> {
    let _trace = trace::to_file(args.trace);
    let mut config = Config::load(&args.config, &args.overrides)?;
    let devices = Devices::parse(&args.devices, Share::WHOLE)?;
    let progress = index_progress(quiet);
    let source = dataset::open(&config.data, config.seed, &progress)?;
    drop(progress);
    source.passed_over().warn();
    let input = Job::input(&config, source.info());
    describe_model(&mut config.model, input, &devices.first().burn())?;
    let plan = plan(&config, source.info()).map_err(|e| anyhow!(e))?;
    let resume = Resume::applies(args.resume, args.run_dir.as_deref(), &config)?;
    // What is wrong with weights is said before there is a run directory.
    if let Some(file) = weights_to_begin_with(&config, args.run_dir.as_deref().filter(|_| resume))? {
        let model = Model::new(&config.model, input, &devices.first().burn())?;
        let layout = ParamLayout::of(&model, &config.train);
        WeightsFile::open(&file, &file)?.check(&config.model, &layout)?;
    }
    let mut run_dir = RunDir::open(args.run_dir.as_deref(), resume, &config)?;
    let data = DataDescription::of(source.as_ref());
    if args.accept_data {
        run_dir.accept_dataset(&data)?;
    }
    run_dir.write_dataset(&data)?;
    let steps = Length::of(&config, &plan).steps;
    if args.resume == Some(Resume::Auto) && run_dir.is_complete(steps)? {
        print_stdout(&format!("the run in `{}` is complete after {steps} steps: raise train.epochs to go on", run_dir.path().display()));
        return Ok(());
    }
    let path = run_dir.path().to_owned();
    let stop = Arc::new(AtomicBool::new(false));
    stop_when_told(Arc::clone(&stop))?;
    let stop_for_data = Arc::clone(&stop);
    let on_other = move || stop_for_data.store(true, Ordering::Relaxed);
    let contents = ContentsCheck::start(&path, Arc::clone(&source), args.accept_data, on_other)?;
    let outcome = single::run(SingleRun { config, source: Arc::clone(&source), run_dir, devices: devices.clone(), quiet, stop })?;
    contents.finish()?;
    // The run's files are complete, so an error in drawing its pictures must not fail
    // the command.
    let mut lines = Vec::new();
    if outcome.stopped {
        lines.push(format!("stopped; go on with --resume --run-dir {}", path.display()));
    }
    lines.push(describe(&outcome.summary, &path));
    match after_training::results(&path, source.as_ref(), devices.first()) {
        Ok(more) => lines.extend(more),
        Err(e) => tracing::warn!("the run is complete, but could not be drawn: {e:#}"),
    }
    lines.push(what_next(&path));
    print_stdout(&lines.join("\n"));
    Ok(())
}

/// The first request to stop takes effect after the step in flight, the second one ends
/// the process.
fn stop_when_told(stop: Arc<AtomicBool>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let entered = runtime.enter();
    let mut signals = Signals::listen(false)?;
    drop(entered);
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            while signals.request().await == 1 {
                stop.store(true, Ordering::Relaxed);
                print_stderr("stopping after this step with a checkpoint; once more to stop at once");
            }
            print_stderr("stopped at once");
            exit(1);
        });
    })?;
    Ok(())
}

fn join_command(args: JoinArgs) -> Result<()> {
    let _trace = trace::to_file(args.trace.clone());
    let token = read_token(args.token.as_deref(), args.token_file.as_deref())?;
    let (cache_dir, _temporary) = match args.cache_dir.or_else(doctor::default_cache) {
        Some(folder) => (folder, None),
        // With a local copy of the data nothing is streamed.
        None if args.data.is_some() => (PathBuf::new(), None),
        None => {
            let made = tempfile::Builder::new().prefix("ringleader-").tempdir();
            let made = made.context("there is no folder for streamed samples: name one with --cache-dir")?;
            (made.path().to_owned(), Some(made))
        }
    };
    if !cache_dir.as_os_str().is_empty() {
        objects::keep_blocks(&cache_dir, args.cache_gb << 30);
    }
    let options = JoinOptions {
        coordinator: args.coordinator.clone(),
        wait: args.wait,
        token,
        data: args.data,
        devices: Devices::parse(&args.devices, args.share)?,
        listen: args.listen,
        advertise: args.advertise,
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
        tokio::spawn(leave_when_told(Signals::listen(args.supervised)?, ask.clone()));
        // Without the announcement `worker leave` does not find this worker, but it
        // trains all the same.
        let announced = registry::folder().and_then(|folder| {
            registry::announce(&folder, &args.coordinator.join(" "), move || {
                ask.send_replace(true);
            })
        });
        let _present = announced.inspect_err(|e| tracing::warn!("{e:#}"));
        join(options, shutdown).await
    });
    // The training thread may still compute a step whose result is no longer needed.
    runtime.shutdown_background();
    outcome
}

/// Threads for the network. Where training needs every core, a second one costs more
/// than it gains, because the ring's data would move between cores. A large machine has
/// fast links and several connections, which need more threads.
fn network_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() / 8).clamp(1, 4)
}

/// On the first request to stop the worker leaves the run, the second one ends the process.
async fn leave_when_told(mut signals: Signals, ask: tokio::sync::watch::Sender<bool>) {
    while signals.request().await == 1 {
        ask.send_replace(true);
    }
    print_stderr("stopped at once");
    exit(1);
}

fn leave_command(args: &LeaveArgs) -> Result<()> {
    let present = registry::present(&registry::folder()?);
    for worker in registry::choose(&present, args.pid, args.all)? {
        registry::ask_to_leave(&worker)?;
        print_stdout(&format!("worker {} leaves the run of {}", worker.pid, worker.coordinator));
    }
    Ok(())
}

fn doctor_command(args: DoctorArgs) -> Result<()> {
    let cache = args.cache_dir.or_else(doctor::default_cache);
    let mut findings = doctor::machine(cache.as_deref(), args.cache_gb << 30);
    if let Some(coordinator) = args.coordinator {
        let given = args.token.is_some() || args.token_file.is_some();
        let token = given.then(|| read_token(args.token.as_deref(), args.token_file.as_deref())).transpose()?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(network_threads()).enable_all().build()?;
        findings.extend(runtime.block_on(examine(&Examination { coordinator, token, listen: args.listen })));
        // The system may still look for a name.
        runtime.shutdown_background();
    }
    print_findings(&findings, args.json)
}

fn read_token(token: Option<&str>, file: Option<&Path>) -> Result<Token> {
    let text = match (token, file) {
        (Some(token), _) => token.to_owned(),
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
