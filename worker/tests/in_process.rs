//! Coordinator and workers in one process, over real QUIC on free ports: which samples
//! are trained on, and what happens to peers of another run.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use common::config::Config;
use common::dataset::{self, DatasetError, DatasetInfo, Sample, SampleSource, Split};
use common::diagnosis::{Examination, examine};
use common::net::{Authority, COORDINATOR, Endpoint, Role, Token};
use common::plan::Ownership;
use common::run_dir::RunDir;
use common::ui::Verdict;
use coordinator::serve::{Outcome, Run, serve};
use worker::cluster::join::{JoinOptions, join};

const CONFIG: &str = r#"
name = "in-process"
[model]
kind = "alexnet"
width = 0.0625
[data]
kind = "synthetic"
classes = 3
train = 50
val = 11
image_size = 64
[train]
epochs = 2
global_batch = 14
shards = 7
threads = 1
[cluster]
timeout_ms = 10000
"#;

/// A running coordinator, the address to join it at, and its token.
struct Served {
    addr: SocketAddr,
    token: Token,
    outcome: tokio::task::JoinHandle<anyhow::Result<Outcome>>,
    folder: tempfile::TempDir,
}

async fn start(workers: u32, set: &[&str]) -> Served {
    let set: Vec<String> = set.iter().map(|&s| s.to_owned()).collect();
    let config = Config::parse(CONFIG, "test", &set).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let run_dir = RunDir::create(&folder.path().join("run"), &config).unwrap();
    let authority = Authority::open(&folder.path().join("keys")).unwrap();
    let token = authority.tokens().standing(std::time::SystemTime::now()).unwrap();
    let endpoint =
        Endpoint::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), &authority.identity(COORDINATOR).unwrap(), Role::Coordinator).unwrap();
    let source = dataset::open(&config.data, config.seed, &|_| {}).unwrap();
    let addr = endpoint.local_addr().unwrap();
    let (_keep, interrupts) = tokio::sync::mpsc::channel(1);
    let outcome = tokio::spawn(async move {
        let _keep = _keep;
        serve(
            Run {
                config,
                source,
                run_dir,
                authority: Arc::new(authority),
                start_workers: workers,
                may_return: false,
                page: None,
                quiet: true,
            },
            endpoint,
            interrupts,
        )
        .await
    });
    Served { addr, token, outcome, folder }
}

fn options(served: &Served, rank: u32) -> JoinOptions {
    JoinOptions {
        coordinator: vec![served.addr.to_string()],
        wait: None,
        token: served.token.clone(),
        data: None,
        devices: worker::engine::device::ComputeDevice::parse("auto").unwrap_or_else(|e| panic!("{e}")).into(),
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        advertise: None,
        preferred_rank: Some(rank),
        cache_dir: served.folder.path().join("cache"),
        cache_bytes: 1 << 20,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn three_workers_finish_with_one_digest() {
    let served = start(3, &[]).await;
    let (_keep, stop) = tokio::sync::watch::channel(false);
    let workers: Vec<_> = (0..3).map(|rank| tokio::spawn(join(options(&served, rank), stop.clone()))).collect();
    for worker in workers {
        worker.await.unwrap().unwrap();
    }
    // The coordinator fails the run if the digests differ.
    let outcome = served.outcome.await.unwrap().unwrap();
    assert_eq!((outcome.summary.world, outcome.summary.steps, outcome.summary.samples), (3, 8, 100));
    assert!(outcome.summary.bytes_sent > 0 && !outcome.stopped);
}

/// Everything that is more than weights and momentum goes through the coordinator.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_cluster_keeps_its_best_checkpoint_with_the_average_and_ends_without_patience() {
    let set = [
        "train.optimizer=lamb",
        "train.ema=0.5",
        "train.keep=best",
        "train.keep_checkpoints=1",
        "train.keep_metric=loss",
        "train.patience=3",
        "train.lr=1",
        "train.weight_decay=0",
        "train.epochs=30",
    ];
    let served = start(2, &set).await;
    let (_keep, stop) = tokio::sync::watch::channel(false);
    let workers: Vec<_> = (0..2).map(|rank| tokio::spawn(join(options(&served, rank), stop.clone()))).collect();
    for worker in workers {
        worker.await.unwrap().unwrap();
    }
    let outcome = served.outcome.await.unwrap().unwrap();
    let best = outcome.summary.best.expect("it has evaluations");
    let (steps, step) = (outcome.summary.steps, best.evaluation.step);
    assert!(!outcome.stopped && steps == step + 3 * 4 && steps < 30 * 4, "the best of {steps} steps is {step}");
    let there = |step: u64| outcome.run_dir.join(format!("checkpoints/step-{step:08}/manifest.json")).is_file();
    assert!(there(step) && there(steps));
    assert_eq!(std::fs::read_dir(outcome.run_dir.join("checkpoints")).unwrap().count(), 2);
    let device = worker::engine::device::ComputeDevice::parse("auto").unwrap();
    let trained = worker::analysis::trained::TrainedModel::load(&outcome.run_dir, common::run_dir::Which::Best, None, device).unwrap();
    let sums = trained.score(&trained.open_data(None).unwrap(), Split::Val, |_, _, _| ()).unwrap();
    let loss = sums.loss / f64::from(sums.count);
    assert!((loss - best.evaluation.loss).abs() < 1e-3 * loss, "{loss} is not {}", best.evaluation.loss);
}

/// Neither a line of the journal nor a bit of the weights comes of a diagnosis.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_run_beside_which_the_network_is_measured_is_the_same_run() {
    let mut digests = Vec::new();
    for measured in [false, true] {
        let served = start(2, &["train.reproducible=true", "train.epochs=40"]).await;
        let (_keep, stop) = tokio::sync::watch::channel(false);
        let workers: Vec<_> = (0..2).map(|rank| tokio::spawn(join(options(&served, rank), stop.clone()))).collect();
        let journal = served.folder.path().join("run/journal.jsonl");
        let written = || std::fs::read_to_string(&journal).unwrap_or_default();
        if measured {
            while !written().contains("\"generation\"") {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            let examination =
                Examination { coordinator: served.addr.to_string(), token: Some(served.token.clone()), listen: ([127, 0, 0, 1], 0).into() };
            let findings = examine(&examination).await;
            assert!(findings.iter().any(|finding| finding.value.contains("a ring trains")), "{findings:#?}");
            assert!(findings.iter().any(|finding| finding.name == "lost"), "{findings:#?}");
            assert!(findings.iter().all(|finding| finding.verdict != Verdict::Fail), "{findings:#?}");
            assert!(!served.outcome.is_finished(), "the run was over before it was measured beside it");
        }
        for worker in workers {
            worker.await.unwrap().unwrap();
        }
        let outcome = served.outcome.await.unwrap().unwrap();
        let lines = written();
        let events: Vec<&str> =
            ["\"enrolled\"", "\"worker_lost\"", "\"generation\""].into_iter().flat_map(|event| lines.matches(event)).collect();
        digests.push((outcome.summary.weights_blake3, outcome.summary.samples, events.join(" ")));
    }
    assert_eq!(digests[0], digests[1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_another_run_is_refused() {
    let (served, other) = (start(1, &[]).await, start(1, &[]).await);
    let (_keep, stop) = tokio::sync::watch::channel(false);
    let wrong = JoinOptions { token: other.token.clone(), ..options(&served, 0) };
    let error = format!("{:#}", join(wrong, stop).await.unwrap_err());
    assert!(error.contains("token"), "{error}");
    served.outcome.abort();
    other.outcome.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_asks_to_stop_ends_the_run_cleanly_with_a_checkpoint() {
    let served = start(2, &["train.epochs=1000"]).await;
    let (ask, stop) = tokio::sync::watch::channel(false);
    let workers: Vec<_> = (0..2).map(|rank| tokio::spawn(join(options(&served, rank), stop.clone()))).collect();
    let metrics = served.folder.path().join("run").join("metrics.jsonl");
    let patience = std::time::Duration::from_secs(60);
    let under_way = async {
        while std::fs::read_to_string(&metrics).unwrap_or_default().lines().count() < 2 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(patience, under_way).await.expect("the run did not begin");
    ask.send_replace(true);
    for worker in workers {
        worker.await.unwrap().unwrap();
    }
    let outcome = tokio::time::timeout(patience, served.outcome).await.expect("the run did not end").unwrap().unwrap();
    assert!(outcome.summary.steps < 4000);
    let newest = std::fs::read_dir(outcome.run_dir.join("checkpoints")).unwrap().count();
    assert!(newest >= 1);
}

/// Wraps the source that a worker trains on, and notes which samples are read from it.
struct Noted {
    inner: Arc<dyn SampleSource>,
    read: Mutex<Vec<u32>>,
}

impl SampleSource for Noted {
    fn info(&self) -> &DatasetInfo {
        self.inner.info()
    }

    fn read(&self, split: Split, ids: &[u32]) -> Result<Vec<Sample>, DatasetError> {
        if split == Split::Train {
            self.read.lock().unwrap().extend(ids);
        }
        self.inner.read(split, ids)
    }

    fn name(&self, split: Split, id: u32) -> String {
        self.inner.name(split, id)
    }
}

/// The samples that one rank trained on, step by step, and how many it evaluated.
#[derive(Default)]
struct Trained {
    ids: Vec<(u64, Vec<u32>)>,
    evaluated: u64,
}

impl worker::training::record::Record for Trained {
    fn trained(&mut self, step: u64, batch: &worker::data::Batch) -> anyhow::Result<()> {
        self.ids.push((step, batch.ids.clone()));
        Ok(())
    }
    fn step(&mut self, _: &common::metrics::StepMetrics) -> anyhow::Result<()> {
        Ok(())
    }
    fn evaluation(&mut self, evaluation: &common::metrics::Evaluation) -> anyhow::Result<()> {
        self.evaluated += evaluation.samples;
        Ok(())
    }
    fn skipped(&mut self, _: u64, name: &str, problem: &str) -> anyhow::Result<()> {
        panic!("{name}: {problem}")
    }
    fn checkpoint(&mut self, _: bool, _: &mut dyn FnMut() -> anyhow::Result<worker::training::record::Snapshot>) -> anyhow::Result<()> {
        Ok(())
    }
    fn stop_requested(&self) -> bool {
        false
    }
}

/// Runs the loop of one rank by itself: the samples that it takes do not depend on
/// messages.
fn train_alone(source: &Arc<Noted>, rank: u32, ownership: Ownership) -> Trained {
    use worker::{
        engine::device::ComputeDevice,
        replica::Replica,
        training::{
            exchange::{Exchange, Summation},
            job::Job,
            train::{Start, TrainingEnd, train},
        },
    };

    let config = Config::parse(CONFIG, "test", &["data.max_corrupt=1".to_owned()]).unwrap();
    let info = source.info().clone();
    let job = Job::new(config.clone(), info.clone(), rank, ownership).unwrap();
    let device = ComputeDevice::parse("auto").unwrap();
    let mut replica = Replica::new(&config.model, &config.train, Job::input(&config, &info), config.seed, device).unwrap();
    let mut exchange = Exchange::new(None, job.exchange_plan(false), rank, Summation::F32);
    let mut record = Trained::default();
    let shared: Arc<dyn SampleSource> = source.clone();
    assert_eq!(train(&job, &mut replica, &mut exchange, &shared, &mut record, Start::at(0)).unwrap(), TrainingEnd::Run { step: 8 });
    record
}

#[test]
fn what_workers_trained_on_is_every_sample_once_an_epoch_in_any_world() {
    let config = Config::parse(CONFIG, "test", &[]).unwrap();
    let owned: [&[u32]; 6] = [&[7], &[4, 3], &[3, 2, 2], &[1; 7], &[6, 1], &[1, 1, 5]];
    for counts in owned {
        let ownership = Ownership::of(counts, counts.len(), 7).unwrap();
        let world = ownership.world();
        let inner = dataset::open(&config.data, config.seed, &|_| {}).unwrap();
        let source = Arc::new(Noted { inner, read: Mutex::default() });
        let ranks: Vec<Trained> = (0..world).map(|rank| train_alone(&source, rank, ownership.clone())).collect();
        for epoch in 0..2 {
            let trained = ranks.iter().flat_map(|r| &r.ids).filter(|(step, _)| step / 4 == epoch);
            let mut ids: Vec<u32> = trained.flat_map(|(_, ids)| ids.clone()).collect();
            ids.sort_unstable();
            assert_eq!(ids, (0..50).collect::<Vec<_>>(), "{counts:?}, epoch {epoch}");
        }
        let evaluated: u64 = ranks.iter().map(|r| r.evaluated).sum();
        assert_eq!(evaluated, 2 * 11, "every validation sample once an evaluation, none padded");
        assert_eq!(source.read.lock().unwrap().len(), 100, "nothing is read twice");
    }
}
