//! `/metrics`: a run's status in the text format of OpenMetrics, which Prometheus reads.
//! Whoever asks for plain text alone, as for promtool, gets Prometheus's older text format.
//! Base units, shares from 0 to 1, counters that end in `_total`. Pure.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::document::{RunState, StatusDocument};

/// What the text is, for the header `Content-Type`.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The same of the older text format.
pub(super) const PLAIN_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

type Labels = Vec<(&'static str, String)>;
type Gauges = Family<Labels, Gauge<f64, AtomicU64>>;

/// The metrics of one run.
pub(super) fn metrics(status: &StatusDocument) -> String {
    let mut registry = Registry::with_prefix("ringleader");
    let mut register = Register(&mut registry);
    let info: Labels = vec![("run", status.name.clone()), ("model", status.model.to_owned()), ("directory", status.directory.clone())];
    register.0.register("run", "The run that this coordinator serves", Info::new(info));
    let states = RunState::ALL.map(|state| (vec![("state", state.name().to_owned())], f64::from(u8::from(state == status.state))));
    register.family("run_state", "1 for the state in which the run is", states);
    register.gauge("step", "Committed steps", Some(status.step as f64));
    register.gauge("steps", "Steps of the whole run", Some(status.steps as f64));
    register.gauge("epoch", "Epochs that have begun", Some(status.epoch as f64));
    register.gauge("epochs", "Epochs of the whole run", Some(status.epochs as f64));
    register.gauge("remaining_seconds", "What the steps that are left take at the present rate", status.seconds_left);
    register.gauge("start_time_seconds", "When the run was started, in Unix time", status.started_unix_seconds);
    let training = status.training.as_ref();
    register.gauge("train_loss", "Mean loss over the newest steps", training.and_then(|t| t.loss));
    register.gauge("train_top1_ratio", "Samples classified right over the newest steps", training.and_then(|t| t.top1));
    register.gauge("images_per_second", "Samples of all workers over the newest steps", training.and_then(|t| t.images_per_second));
    register.gauge("step_duration_seconds", "How long a step takes", training.and_then(|t| t.step_seconds));
    register.gauge("learning_rate", "Learning rate of the newest step", training.and_then(|t| t.learning_rate));
    register.gauge("gradient_norm", "L2 norm of the newest gradient", training.and_then(|t| t.gradient_norm));
    let evaluation = status.evaluation.as_ref();
    register.gauge("validation_step", "Steps before the newest evaluation", evaluation.map(|e| e.step as f64));
    register.gauge("validation_loss", "Loss of the newest evaluation", evaluation.and_then(|e| e.loss));
    register.gauge("validation_top1_ratio", "Top-1 accuracy of the newest evaluation", evaluation.and_then(|e| e.top1));
    register.gauge("validation_top5_ratio", "Top-5 accuracy of the newest evaluation", evaluation.and_then(|e| e.top5));
    register.gauge("generation", "Number of the newest ring", Some(status.generation as f64));
    register.gauge("workers", "Members of the newest ring", Some(status.workers.len() as f64));
    register.gauge("checkpoint_step", "Steps behind the newest checkpoint", status.checkpoint_step.map(|step| step as f64));
    register.0.register("recoveries", "Losses of workers that the run has survived", ConstCounter::new(status.recoveries));
    register.0.register("skipped_samples", "Samples left out because they do not decode", ConstCounter::new(status.skipped_samples));
    let phases = status.last_recovery.into_iter().flat_map(|r| [("detect", r.detect_ms), ("resume", r.resume_ms)]);
    let phases = phases.map(|(phase, ms)| (vec![("phase", phase.to_owned())], ms / 1e3));
    register.family("last_recovery_seconds", "How long the newest loss took to be noticed, and from there to the next step", phases);
    register.workers(status);
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = encode(&mut text, &registry);
    text
}

/// Whether a header `Accept` means the older text format: it names plain text and not
/// OpenMetrics.
pub(super) fn wants_plain(accept: &str) -> bool {
    accept.contains("text/plain") && !accept.contains("application/openmetrics-text")
}

/// Text of [`metrics`] in the older format: a family is named as its samples are, there are
/// neither infos nor units, and no mark ends it.
/// <https://prometheus.io/docs/instrumenting/exposition_formats/>
pub(super) fn plain(text: &str) -> String {
    let typed = |family: &str, kind: &str| text.contains(&format!("# TYPE {family} {kind}\n"));
    let named = |family: &str| match () {
        () if typed(family, "counter") => format!("{family}_total"),
        () if typed(family, "info") => format!("{family}_info"),
        () => family.to_owned(),
    };
    let line = |line: &str| match line.splitn(4, ' ').collect::<Vec<_>>()[..] {
        ["#", "EOF"] | ["#", "UNIT", ..] => None,
        ["#", "TYPE", family, kind] => Some(format!("# TYPE {} {}\n", named(family), if kind == "info" { "gauge" } else { kind })),
        ["#", "HELP", family, help] => Some(format!("# HELP {} {help}\n", named(family))),
        _ => Some(format!("{line}\n")),
    };
    text.lines().filter_map(line).collect()
}

struct Register<'a>(&'a mut Registry);

impl Register<'_> {
    /// A gauge; none where the value is not known.
    fn gauge(&mut self, name: &str, help: &str, value: Option<f64>) {
        self.family(name, help, value.map(|value| (Labels::new(), value)));
    }

    fn family(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, f64)>) {
        let family = Gauges::default();
        let mut any = false;
        for (labels, value) in values {
            any = true;
            family.get_or_create(&labels).set(value);
        }
        if any {
            self.0.register(name, help, family);
        }
    }

    fn workers(&mut self, status: &StatusDocument) {
        let labels = |worker: &super::document::Worker| vec![("rank", worker.rank.to_string()), ("worker", worker.name.clone())];
        let workers = || status.workers.iter();
        let about = workers().map(|w| {
            let machine = [("machine", w.machine.clone()), ("device", w.device.clone().unwrap_or_default())];
            (labels(w).into_iter().chain(machine).collect(), 1.0)
        });
        self.family("worker_info", "A worker's machine and device", about);
        self.family("worker_shards", "Shards that a worker owns", workers().map(|w| (labels(w), f64::from(w.shards))));
        self.family("worker_step", "Steps that a worker has committed", workers().map(|w| (labels(w), w.step as f64)));
        let rates = workers().filter_map(|w| Some((labels(w), w.images_per_second?)));
        self.family("worker_images_per_second", "A worker's own samples", rates);
        let speeds = workers().filter_map(|w| Some((labels(w), w.speed?)));
        self.family("worker_speed_images_per_second", "Samples that a worker could compute if it never waited for others", speeds);
        let shares = workers().filter_map(|w| Some((labels(w), w.shares?))).flat_map(|(labels, shares)| {
            [("computing", shares.computing), ("data", shares.data), ("others", shares.others)]
                .map(|(activity, share)| (labels.iter().cloned().chain([("activity", activity.to_owned())]).collect(), share))
        });
        self.family("worker_time_ratio", "Where a worker's time goes: computing, waiting for data, waiting for others", shares);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use common::metrics::{Recovery, TimeShares};

    use super::*;
    use crate::page::document::tests::{about, trained};

    /// Prometheus's own check of a program's metrics, where it is installed.
    fn promtool_accepts(text: &str) {
        let mut command = Command::new("promtool");
        command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let Ok(mut promtool) = command.spawn() else {
            println!("skipped: promtool is not installed (Debian has it in the package prometheus)");
            return;
        };
        promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = promtool.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
    }

    #[test]
    fn plain_text_is_for_those_who_ask_for_nothing_newer() {
        let scrape = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(["text/plain", scrape, "*/*", ""].map(wants_plain), [true, false, false, false]);
    }

    #[test]
    fn the_status_is_written_by_the_conventions_of_prometheus() {
        let history = trained();
        let mut live = history.status.clone();
        live.members[0].shares = Some(TimeShares { computing: 0.75, data: 0.25, others: 0.0 });
        live.members[1].device = "a \"quoted\\ device\n".to_owned();
        live.skipped = 3;
        live.recovered(Recovery { detect_ms: 1250.0, resume_ms: 400.0 });
        let text = metrics(&StatusDocument::new(&about(), &history, Some(&live), 9.0));
        for line in [
            "# TYPE ringleader_recoveries counter",
            "ringleader_recoveries_total 1",
            "ringleader_skipped_samples_total 3",
            "ringleader_step 50.0",
            "ringleader_run_state{state=\"training\"} 1.0",
            "ringleader_run_state{state=\"failed\"} 0.0",
            "ringleader_last_recovery_seconds{phase=\"detect\"} 1.25",
            "ringleader_worker_time_ratio{rank=\"0\",worker=\"worker-1\",activity=\"computing\"} 0.75",
            "ringleader_worker_shards{rank=\"1\",worker=\"worker-2\"} 2.0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        let older = plain(&text);
        for line in ["# TYPE ringleader_recoveries_total counter", "ringleader_recoveries_total 1", "# TYPE ringleader_run_info gauge"] {
            assert!(older.lines().any(|l| l == line), "{line} is not in\n{older}");
        }
        assert!(!older.contains("# EOF") && !older.contains(" info\n") && older.contains("# HELP ringleader_run_info "), "{older}");
        let samples = |text: &str| text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(samples(&older), samples(&text));
        promtool_accepts(&older);
        assert!(text.contains(r#"device="a \"quoted\\ device\n""#), "{text}");
        assert!(!text.contains("validation_loss") && text.ends_with("# EOF\n"), "{text}");
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            assert!(line.starts_with("ringleader_") && line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
        }
    }
}
