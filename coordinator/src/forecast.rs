//! `coordinator check --link`: whether more machines would help. One step is measured on
//! this machine; what the ring adds is simulated ([`common::ring::sim`]).

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use common::config::{Config, InputShape, LayerKind, WireEncoding, name_of};
use common::ring::sim::{Compute, Costs, Machines, simulate, work};
use common::ui::busy;

/// The network between machines that are like this one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Network {
    /// What a link carries each way, in 10^9 bits a second.
    pub gbit_per_s: f64,
    pub latency: Duration,
}

/// Reads a rate such as `1Gb/s` or `200Mb/s`, in 10^9 bits a second.
pub fn rate(text: &str) -> Result<f64, String> {
    let bits = text.strip_suffix("/s").or_else(|| text.strip_suffix("ps")).unwrap_or(text);
    let units = [("Gb", 1.0), ("Gbit", 1.0), ("G", 1.0), ("Mb", 1e-3), ("Mbit", 1e-3), ("M", 1e-3)];
    let rate = quantity(bits, &units).ok_or("write it as 1Gb/s or 200Mb/s")?;
    if (1e-3..=1e6).contains(&rate) { Ok(rate) } else { Err("it must be between 1Mb/s and 1000000Gb/s".to_owned()) }
}

/// Reads a time such as `0.3ms`, which may be a fraction.
pub fn latency(text: &str) -> Result<Duration, String> {
    let seconds = quantity(text, &[("us", 1e-6), ("ms", 1e-3), ("s", 1.0)]).ok_or("write it as 0.3ms or 200us")?;
    Duration::try_from_secs_f64(seconds).ok().filter(|time| time.as_secs() < 60).ok_or_else(|| "it must be under a minute".to_owned())
}

/// A number and its unit, of which each is worth so much.
fn quantity(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic())?);
    let (_, worth) = units.iter().find(|(name, _)| *name == unit.trim())?;
    Some(number.trim().parse::<f64>().ok()? * worth)
}

/// What a worker computes by itself in a step of some samples.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Measured {
    samples: u32,
    forward_ms: f64,
    backward_ms: f64,
    update_ms: f64,
}

/// The compute of a step, by its samples.
#[derive(Debug, Clone, Copy)]
struct Machine {
    few: Measured,
    many: Measured,
    /// The share of the arithmetic that is in dense layers, which the backward pass does
    /// first.
    dense: f64,
}

impl Machine {
    /// On the line through the two measurements.
    fn compute(&self, samples: f64) -> Compute {
        let (few, many) = (self.few, self.many);
        let at = |of: fn(&Measured) -> f64| {
            let apart = f64::from(many.samples) - f64::from(few.samples);
            let slope = if apart == 0.0 { 0.0 } else { (of(&many) - of(&few)) / apart };
            // Fewer samples take no less than half their share.
            (of(&few) + slope * (samples - f64::from(few.samples))).max(of(&many) * samples / f64::from(many.samples.max(1)) * 0.5)
        };
        Compute { forward_ms: at(|m| m.forward_ms), backward_ms: at(|m| m.backward_ms), dense_at: self.dense, update_ms: many.update_ms }
    }
}

/// A predicted step.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Row {
    workers: u32,
    step_ms: f64,
    /// Of that, waiting for the ring.
    exposed_ms: f64,
    images_per_second: f64,
}

fn row(config: &Config, input: InputShape, machine: &Machine, network: Network, workers: u32) -> Row {
    let samples = f64::from(config.train.global_batch) / f64::from(workers);
    let work = work(&config.model, input, &config.train, &config.cluster, workers, machine.compute(samples));
    let costs = Costs { link_gbit_per_s: network.gbit_per_s, latency_us: network.latency.as_secs_f64() * 1e6, ..Costs::USUAL };
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    let machines = Machines { cores: threads, workers_each: 1, compute_cores: threads };
    let outcome = simulate(workers as usize, &work, &costs, &machines, 1.0);
    let images_per_second = f64::from(config.train.global_batch) / outcome.step_ms * 1e3;
    Row { workers, step_ms: outcome.step_ms, exposed_ms: outcome.exposed_ms, images_per_second }
}

/// What would make so many workers faster than one, if they are not.
fn advice(config: &Config, input: InputShape, machine: &Machine, network: Network, workers: u32) -> String {
    let gain = |config: &Config, network: Network| {
        let alone = row(config, input, machine, network, 1).images_per_second;
        row(config, input, machine, network, workers).images_per_second / alone
    };
    let mut tried = Vec::new();
    if config.cluster.wire == WireEncoding::F32 && !config.train.reproducible {
        tried.push(("cluster.wire=bf16".to_owned(), gain(&with(config, "cluster.wire=\"bf16\""), network)));
    }
    if config.cluster.dense != common::config::DenseExchange::Auto {
        tried.push(("cluster.dense=auto".to_owned(), gain(&with(config, "cluster.dense=\"auto\""), network)));
    }
    for times in [2, 4, 8] {
        let batch = config.train.global_batch.saturating_mul(times);
        tried.push((format!("train.global_batch={batch}"), gain(&with(config, &format!("train.global_batch={batch}")), network)));
    }
    for times in [2.5, 10.0] {
        let faster = Network { gbit_per_s: network.gbit_per_s * times, ..network };
        tried.push((format!("a link of {} Gb/s", faster.gbit_per_s), gain(config, faster)));
    }
    let helps: Vec<String> = tried.iter().filter(|(_, gain)| *gain > 1.1).map(|(what, gain)| format!("{what} ({gain:.2}x)")).collect();
    match helps.is_empty() {
        true => "nothing that was tried would change it".to_owned(),
        false => format!("faster than one would be {workers} workers with {}", helps.join(", or ")),
    }
}

fn with(config: &Config, set: &str) -> Config {
    config.with(&[set.to_owned()]).unwrap_or_else(|_| config.clone())
}

/// The forecast as lines of a table.
fn lines(config: &Config, input: InputShape, machine: &Machine, network: Network, workers: &[u32]) -> Vec<(String, String)> {
    let alone = row(config, input, machine, network, 1);
    let mut best = alone;
    let mut lines =
        vec![("1 worker".to_owned(), format!("{:.0} ms a step, {:.1} images/s, measured here", alone.step_ms, alone.images_per_second))];
    for &workers in workers.iter().filter(|workers| **workers > 1) {
        let row = row(config, input, machine, network, workers);
        let gain = row.images_per_second / alone.images_per_second;
        lines.push((
            format!("{workers} workers"),
            format!(
                "{:.0} ms a step, {:.1} images/s, {gain:.2}x one worker, {:.0} % efficiency; waits {:.0} ms for the ring",
                row.step_ms,
                row.images_per_second,
                100.0 * gain / f64::from(workers),
                row.exposed_ms
            ),
        ));
        if row.images_per_second < best.images_per_second {
            let advice = advice(config, input, machine, network, workers);
            lines.push((
                String::new(),
                format!(
                    "slower than {}: {advice}",
                    if best.workers == 1 { "one worker".to_owned() } else { format!("{} workers", best.workers) }
                ),
            ));
        } else {
            best = row;
        }
    }
    lines
}

/// Measures a step with `worker` and predicts those of several workers.
///
/// # Errors
/// The worker could not compute a step.
pub fn forecast(config: &Config, input: InputShape, network: Network, workers: &[u32], worker: &Path) -> Result<Vec<(String, String)>> {
    let most = workers.iter().copied().max().unwrap_or(1).max(2);
    let (few, many) = (config.train.global_batch.div_ceil(most), config.train.global_batch);
    tracing::info!("measuring steps of {few} and {many} samples on this machine");
    let _busy = busy("measuring steps on this machine");
    let layers = config.model.layers(input);
    let macs = |dense: bool| -> u64 { layers.iter().filter(|l| !dense || matches!(l.kind, LayerKind::Dense { .. })).map(|l| l.macs).sum() };
    let dense = macs(true) as f64 / macs(false).max(1) as f64;
    let machine = Machine { few: measure(config, input, few, worker)?, many: measure(config, input, many, worker)?, dense };
    let mut rows = lines(config, input, &machine, network, workers);
    let latency = network.latency.as_secs_f64() * 1e3;
    let format = name_of(config.cluster.wire);
    rows.insert(0, ("link".to_owned(), format!("{} Gb/s each way, {latency} ms; gradients as {format}; simulated", network.gbit_per_s)));
    Ok(rows)
}

/// One step of so many samples on this machine.
fn measure(config: &Config, input: InputShape, samples: u32, worker: &Path) -> Result<Measured> {
    let mut resolved = tempfile::NamedTempFile::with_suffix(".toml")?;
    resolved.write_all(config.to_toml().as_bytes())?;
    let threads = config.train.threads.map(|threads| ["--threads".to_owned(), threads.to_string()]);
    let output = Command::new(worker)
        .args(["bench", "step", "--json", "--steps", "3", "--config"])
        .arg(resolved.path())
        .args(["--batch", &samples.to_string(), "--classes", &input.classes.to_string(), "--channels", &input.channels.to_string()])
        .args(["--size", &input.image_size.to_string()])
        .args(threads.into_iter().flatten())
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", worker.display()))?;
    if !output.status.success() {
        bail!("`{}` could not compute a step: {}", worker.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    let result: StepTimes = serde_json::from_slice(&output.stdout).context("`worker bench step` printed something else than its result")?;
    Ok(Measured { samples, forward_ms: result.forward_ms, backward_ms: result.backward_ms, update_ms: result.update_ms })
}

/// What is read of a result of `worker bench step --json`.
#[derive(serde::Deserialize)]
struct StepTimes {
    forward_ms: f64,
    backward_ms: f64,
    update_ms: f64,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const INPUT: InputShape = InputShape { channels: 3, image_size: 224, classes: 1000 };

    fn config(sets: &[&str]) -> Config {
        let text = "name = \"t\"\n[model]\nkind = \"alexnet\"\npreset = \"original\"\n[data]\nkind = \"synthetic\"\nclasses = 1000\ntrain = 64000\nval = 1000\nimage_size = 224\n[train]\nglobal_batch = 64\nprecision = \"bf16\"\n[cluster]\nwire = \"bf16\"\n";
        Config::parse(text, "test", &sets.iter().map(|&set| set.to_owned()).collect::<Vec<_>>()).unwrap()
    }

    fn machine() -> Machine {
        let of = |samples: u32| {
            let n = f64::from(samples);
            Measured { samples, forward_ms: 20.0 + 12.0 * n, backward_ms: 60.0 + 24.0 * n, update_ms: 60.0 }
        };
        Machine { few: of(8), many: of(64), dense: 0.08 }
    }

    fn gain(config: &Config, gbit_per_s: f64, workers: u32) -> f64 {
        let network = Network { gbit_per_s, latency: Duration::from_micros(300) };
        let of = |workers| row(config, INPUT, &machine(), network, workers).images_per_second;
        of(workers) / of(1)
    }

    #[test]
    fn rates_are_read() {
        assert_eq!(rate("1Gb/s"), Ok(1.0));
        assert_eq!(rate("2.5Gbit/s"), Ok(2.5));
        assert_eq!(rate("200 Mb/s").map(|rate| (rate * 1e3).round()), Ok(200.0));
        for wrong in ["", "1", "1GB/s", "-1Gb/s", "Gb/s", "1e9Gb/s", "0Mb/s"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
        assert_eq!(latency("0.3ms"), Ok(Duration::from_micros(300)));
        for wrong in ["", "3", "-1ms", "1h", "61s"] {
            assert!(latency(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn compute_lies_on_the_measured_line() {
        let Compute { forward_ms, backward_ms, .. } = machine().compute(32.0);
        assert!((forward_ms - 404.0).abs() < 1e-9 && (backward_ms - 828.0).abs() < 1e-9);
    }

    #[test]
    fn factors_help_where_sums_do_not() {
        assert!(gain(&config(&[]), 1.0, 2) > 1.7);
        assert!(gain(&config(&["cluster.dense=sum"]), 0.2, 2) < 1.0);
        assert!(gain(&config(&[]), 0.2, 2) > gain(&config(&["cluster.dense=sum"]), 0.2, 2));
    }

    #[test]
    fn what_is_slower_is_said_with_what_would_change_it() {
        let network = Network { gbit_per_s: 0.1, latency: Duration::from_millis(1) };
        let config = config(&["cluster.dense=sum"]);
        let text: String =
            lines(&config, INPUT, &machine(), network, &[2, 4]).into_iter().map(|(name, value)| format!("{name}: {value}\n")).collect();
        assert!(text.contains("slower than one worker") && text.contains("cluster.dense=auto"), "{text}");
        let fast = Network { gbit_per_s: 100.0, latency: Duration::from_micros(10) };
        let text: String = lines(&config, INPUT, &machine(), fast, &[2, 4]).into_iter().map(|(_, value)| value).collect();
        assert!(!text.contains("slower"), "{text}");
    }
}
