//! `coordinator check`: validates config and data, and prints the plan.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, anyhow};
use clap::Args;
use common::config::{Balance, Config, name_of};
use common::dataset;
use common::dense::{DenseLayer, FEWEST_WEIGHTS, Way, dense_layers};
use common::plan::Ownership;
use common::recorder::{Length, plan};
use common::ring::Encoding;
use common::run_dir::weights_to_begin_with;
use common::ui::index_progress;
use indicatif::HumanCount;

use crate::describe::describe;
use crate::forecast::{Network, forecast, latency, rate};
use crate::local::worker_binary;

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The config to check, a TOML file.
    pub config: PathBuf,
    /// Change one key of the config, for example train.epochs=3.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Print the plan for this many workers; with --link, the forecast for each of these
    /// numbers [default: 2, with --link 2,3,4,8].
    #[arg(long, value_name = "N,N...", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub workers: Vec<u32>,
    /// Measure a step on this machine, and predict those of several machines like it that
    /// are connected at this rate each way, for example 1Gb/s.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub link: Option<f64>,
    /// The time from one machine to the next, with --link.
    #[arg(long, value_name = "TIME", default_value = "0.2ms", value_parser = latency, requires = "link")]
    pub latency: Duration,
    /// The worker binary that measures and that has the config's model, if not the one beside
    /// this program.
    #[arg(long, value_name = "FILE")]
    pub worker_binary: Option<PathBuf>,
}

/// The plan as text. Errors when config or data cannot be trained on.
pub fn report(args: &CheckArgs) -> Result<String> {
    let mut config = Config::load(&args.config, &args.overrides)?;
    let progress = index_progress(false);
    let source = dataset::open(&config.data, config.seed, &progress)?;
    drop(progress);
    weights_to_begin_with(&config, None)?;
    let info = source.info();
    let input = info.input(config.data.pixels.image_size);
    let binary = args.worker_binary.clone().map(|path| worker_binary(Some(path))).transpose()?;
    describe(&mut config, input, binary.as_deref(), None)?;
    let plan = plan(&config, info).map_err(|e| anyhow!(e))?;
    let length = Length::of(&config, &plan);
    let parameters = config.model.parameters(input);
    let workers = args.workers.first().copied().unwrap_or(2).clamp(1, config.train.shards);
    let dense = dense_layers(&config, input);
    let (world, batch) = (u64::from(workers), u64::from(config.train.global_batch));
    let width = if config.train.reproducible { Encoding::Fixed } else { Encoding::from(config.cluster.wire) }.width() as u64;
    let trained = config.train.trained_values(&config.model, input);
    let others = trained - dense.iter().map(|layer| layer.inputs * layer.units).sum::<u64>();
    let sent_of_others = 2.0 * (world - 1) as f64 * (others * width) as f64 / world as f64;
    let sent = sent_of_others + dense.iter().map(|layer| layer.bytes(world, batch)).sum::<f64>();
    let gathered: u64 = dense.iter().map(|layer| layer.gathered_bytes(batch)).sum();
    let equal = Ownership::equal(workers, config.train.shards);
    let shards: Vec<String> = (0..workers)
        .map(|rank| {
            let own = equal.range(rank);
            let samples: u32 = own.clone().map(|s| plan.shard_len(s)).sum();
            format!("rank {rank}: shards {}-{}, {samples} samples", own.start, own.end - 1)
        })
        .collect();
    let rows = [
        ("config", format!("{} ({})", args.config.display(), config.name)),
        ("model", format!("{}, {} parameters, {:.1} MB as f32", config.model.kind(), HumanCount(parameters), parameters as f64 * 4e-6)),
        (
            "data",
            format!(
                "{} classes, {} training and {} validation samples",
                info.classes.len(),
                HumanCount(info.train.into()),
                HumanCount(info.val.into())
            ),
        ),
        ("fingerprint", info.fingerprint.short()),
        ("shards", format!("{} of {} to {} samples", plan.shards(), plan.shard_len(plan.shards() - 1), plan.shard_len(0))),
        (
            "steps",
            format!(
                "{} of {} samples in an epoch, {} in the run",
                length.steps_per_epoch,
                config.train.global_batch,
                HumanCount(length.steps)
            ),
        ),
        ("last step of an epoch", format!("{} samples", plan.global_count(length.steps_per_epoch - 1))),
        ("workers", format!("{workers}; {}", shards.join("; "))),
        ("balance", balance(&config, workers)),
    ];
    let learned: u64 = config.train.trained_layers(&config.model.layers(input)).map(|layer| layer.parameters).sum();
    let frozen = (parameters > learned).then(|| {
        let share = format!(
            "{} of {} parameters keep their weights ({})",
            HumanCount(parameters - learned),
            HumanCount(parameters),
            config.train.freeze.join(", ")
        );
        ("frozen".to_owned(), share)
    });
    let layer = |layer: &DenseLayer| {
        let [of_sum, of_factors] = [layer.bytes_of_sum(world), layer.bytes_of_factors(world, batch)].map(|bytes| bytes * 1e-6);
        let (takes, rows) = match layer.way {
            Way::Factors => ("factors", format!("{batch} rows, factors pay below {:.0}", layer.most_rows)),
            Way::Sum if layer.inputs * layer.units < FEWEST_WEIGHTS => ("sum", format!("fewer than {FEWEST_WEIGHTS} weights")),
            Way::Sum => ("sum", format!("{batch} rows, factors pay below {:.0}", layer.most_rows)),
        };
        let (inputs, units) = (layer.inputs, layer.units);
        (layer.name.clone(), format!("{inputs} x {units}: {takes}; {of_sum:.2} MB as sum, {of_factors:.2} MB as factors; {rows}"))
    };
    let rows = rows.into_iter().map(|(name, value)| (name.to_owned(), value));
    let rows = rows.chain(frozen).chain(dense.iter().map(layer)).chain([(
        "wire".to_owned(),
        format!(
            "{:.1} MB sent by each worker a step ({}), {:.1} MB of gathered factors in memory",
            sent * 1e-6,
            name_of(config.cluster.wire),
            gathered as f64 * 1e-6
        ),
    )]);
    let mut rows: Vec<(String, String)> = rows.collect();
    if !source.passed_over().is_empty() {
        rows.push(("passed over".to_owned(), source.passed_over().to_string()));
    }
    if let Some(gbit_per_s) = args.link {
        let asked = if args.workers.is_empty() { &[2, 3, 4, 8][..] } else { &args.workers };
        let most = config.train.shards;
        let worlds: Vec<u32> = asked.iter().copied().filter(|&workers| workers <= most).collect();
        if worlds.len() < asked.len() {
            rows.push(("workers at most".to_owned(), format!("{most}: each owns one of train.shards = {most} at least")));
        }
        let network = Network { gbit_per_s, latency: args.latency };
        rows.extend(forecast(&config, input, network, &worlds, &worker_binary(args.worker_binary.clone())?)?);
    }
    Ok(rows.iter().map(|(name, value)| format!("{name:>22}  {value}\n")).collect())
}

/// With fewer shards for each worker, the parts that move are large: a worker's part of a
/// step is a number of shards.
const SHARDS_A_WORKER: u32 = 8;

/// How the shards will be owned, and whether there are enough of them for it.
fn balance(config: &Config, workers: u32) -> String {
    let (shards, workers) = (config.train.shards, workers.max(config.cluster.min_workers));
    match config.cluster.balance {
        Balance::Equal => "equal shards for all workers, however fast they are (cluster.balance)".to_owned(),
        Balance::Speed if workers < 2 || shards < 2 => "a worker that is alone owns all shards".to_owned(),
        Balance::Speed => {
            let said = format!("equal shards at first, then by the workers' speeds, in parts of 1/{shards} of a step");
            let enough = workers.saturating_mul(SHARDS_A_WORKER);
            if shards >= enough {
                return said;
            }
            let batch = config.train.global_batch;
            let better = (enough..=batch).find(|shards| batch.is_multiple_of(*shards));
            let advice = match better {
                Some(better) => format!("train.shards = {better} would be finer"),
                None => format!("train.shards = {enough} and a train.global_batch that is a multiple of it would be finer"),
            };
            format!("{said}: coarse for {workers} workers of unlike speeds; {advice}")
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn too_few_shards_for_the_workers_are_named_with_what_would_do() {
        let text = "name = \"t\"\n[model]\nkind = \"softmax\"\n[data]\nkind = \"synthetic\"\nclasses = 2\ntrain = 640\nval = 8\nimage_size = 8\n[train]\n";
        let said = |workers, sets: &[&str]| {
            let sets: Vec<String> = ["train.global_batch=120"].iter().chain(sets).map(|&set| set.to_owned()).collect();
            balance(&Config::parse(text, "test", &sets).unwrap(), workers)
        };
        assert!(
            said(2, &[]).ends_with("in parts of 1/8 of a step: coarse for 2 workers of unlike speeds; train.shards = 20 would be finer")
        );
        assert!(said(1, &["cluster.min_workers=4"]).ends_with("coarse for 4 workers of unlike speeds; train.shards = 40 would be finer"));
        assert!(said(20, &[]).ends_with("train.shards = 160 and a train.global_batch that is a multiple of it would be finer"));
        assert!(said(2, &["train.shards=24"]).ends_with("in parts of 1/24 of a step"));
        assert!(said(1, &[]).contains("alone") && said(3, &["cluster.balance=equal"]).contains("however fast"));
    }
}
