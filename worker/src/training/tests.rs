//! Ranks of one ring, each on a thread of this process, that train through the real loop and
//! a real ring.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use common::config::Config;
use common::dataset;
use common::dense::Factored;
use common::digest::Digest;
use common::metrics::{Evaluation, RunPicture, Shown, StepMetrics};
use common::net::{Authority, Endpoint, Role, worker_name};
use common::plan::Ownership;
use common::predictions::Predictions;
use common::ring::{Ring, RingPeer, RingSpec};

use super::exchange::{Exchange, Summation};
use super::job::Job;
use super::record::{Record, Snapshot};
use super::train::{Start, train};
use crate::data::Batch;
use crate::engine::device::{Devices, Share};
use crate::replica::Replica;

/// The last step of an epoch has 16 samples of 64, which are those of few shards: with three
/// workers, one of them has hardly any.
const CONFIG: &str = r#"
name = "ring"
[model]
kind = "mlp"
hidden = [40, 30]
[data]
kind = "synthetic"
classes = 5
train = 208
val = 20
image_size = 8
[train]
epochs = 2
global_batch = 64
shards = 8
threads = 1
optimizer = "sgd"
lr = 0.02
"#;

const ALEXNET: [&str; 3] = ["model={kind=\"alexnet\", preset=\"notes\", width=0.04}", "data.image_size=64", "train.epochs=1"];

#[derive(Default)]
struct Curve {
    losses: Vec<f64>,
    rates: Vec<f64>,
    evaluations: Vec<Evaluation>,
    norms: Vec<f64>,
    draws: bool,
    pictures: Vec<RunPicture>,
    predictions: Vec<Predictions>,
}

impl Record for Curve {
    fn step(&mut self, metrics: &StepMetrics) -> anyhow::Result<()> {
        self.losses.push(metrics.loss);
        self.norms.push(metrics.grad_norm);
        self.rates.push(metrics.lr);
        Ok(())
    }
    fn evaluation(&mut self, evaluation: &Evaluation) -> anyhow::Result<()> {
        self.evaluations.push(evaluation.clone());
        Ok(())
    }
    fn trained(&mut self, _: u64, _: &Batch) -> anyhow::Result<()> {
        Ok(())
    }
    fn skipped(&mut self, _: u64, name: &str, problem: &str) -> anyhow::Result<()> {
        panic!("{name}: {problem}")
    }
    fn draws(&self) -> bool {
        self.draws
    }
    fn picture(&mut self, picture: RunPicture) {
        self.pictures.push(picture);
    }
    fn predictions(&mut self, predictions: Predictions) {
        self.predictions.push(predictions);
    }
    fn checkpoint(&mut self, _: bool, _: &mut dyn FnMut() -> anyhow::Result<Snapshot>) -> anyhow::Result<()> {
        Ok(())
    }
    fn stop_requested(&self) -> bool {
        false
    }
}

/// What a rank ended with.
struct Trained {
    curve: Curve,
    weights: Vec<f32>,
    digest: Digest,
    bytes_sent: u64,
}

/// Trains with a rank on each of these devices. `spoil` gets each rank's replica before it
/// trains.
fn ring(devices: &[&str], sets: &[&str], spoil: &(dyn Fn(usize, &mut Replica) + Sync)) -> Vec<anyhow::Result<Trained>> {
    ring_that(true, devices, sets, spoil)
}

/// The same; `draws`: whether the ranks draw pictures.
fn ring_that(draws: bool, devices: &[&str], sets: &[&str], spoil: &(dyn Fn(usize, &mut Replica) + Sync)) -> Vec<anyhow::Result<Trained>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::open(folder.path()).unwrap();
    let bind = |rank: u32| {
        let _inside = runtime.enter();
        let identity = authority.identity(&worker_name(u64::from(rank))).unwrap();
        Endpoint::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), &identity, Role::Worker).unwrap()
    };
    let endpoints: Vec<Endpoint> = (0..devices.len() as u32).map(bind).collect();
    let peer = |(rank, endpoint): (u32, &Endpoint)| RingPeer {
        rank,
        name: worker_name(u64::from(rank)),
        addresses: vec![endpoint.local_addr().unwrap()],
    };
    let peers: Vec<RingPeer> = (0..).zip(&endpoints).map(peer).collect();
    let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
    let config = Config::parse(CONFIG, "test", &sets).unwrap();
    let rank = |rank: usize| {
        let source = dataset::open(&config.data, config.seed, &|_| {})?;
        let job = Job::new(config.clone(), source.info().clone(), rank as u32, Ownership::equal(devices.len() as u32, config.train.shards))
            .map_err(anyhow::Error::msg)?;
        let devices = Devices::parse(devices[rank], Share::WHOLE).unwrap();
        devices.prepare(&config.train)?;
        let input = Job::input(&job.config, &job.info);
        let mut replica = Replica::new(&config.model, &config.train, input, config.seed, devices)?;
        let plan = job.exchange_plan(true);
        assert!(replica.factor(&plan.factored)?);
        spoil(rank, &mut replica);
        let long = Duration::from_secs(30);
        let spec = RingSpec {
            generation: 1,
            rank: rank as u32,
            peers: peers.clone(),
            layout: plan.layout,
            encoding: plan.encoding,
            gathers: plan.gathers.clone(),
            connections: 1,
            timeout: long,
            form_within: long,
            reach_within: long,
        };
        let ring = runtime.block_on(Ring::form(&endpoints[rank], spec))?;
        let summation = Summation::of(&config.train, Some(config.cluster.wire));
        let mut exchange = Exchange::new(Some(ring), plan, rank as u32, summation);
        let mut curve = Curve { draws, ..Curve::default() };
        train(&job, &mut replica, &mut exchange, &source, &mut curve, Start::at(0))?;
        let bytes_sent = exchange.bytes_sent();
        if let Some(ring) = exchange.into_ring() {
            runtime.block_on(ring.close());
        }
        Ok(Trained { curve, weights: replica.weights()?.into_owned(), digest: replica.weights_blake3()?, bytes_sent })
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..devices.len()).map(|number| scope.spawn(move || rank(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn undisturbed(devices: &[&str], sets: &[&str]) -> Vec<Trained> {
    let trained: Vec<Trained> = ring(devices, sets, &|_, _| ()).into_iter().collect::<Result<_, _>>().unwrap();
    assert!(trained.iter().all(|rank| rank.digest == trained[0].digest), "the ranks have different weights");
    trained
}

fn close(left: &[f32], right: &[f32], within: f32) -> bool {
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    norm(&mut left.iter().zip(right).map(|(l, r)| l - r)) < f64::from(within) * norm(&mut right.iter().copied())
}

#[test]
fn factors_train_as_sums_do_and_send_less() {
    for model in [&[][..], &ALEXNET] {
        for devices in [&["cpu"; 1][..], &["cpu"; 2], &["cpu"; 3], &["cpu:resident"; 2], &["cpu", "cpu,cpu"]] {
            for parts in ["train.micro_batch=1000", "train.micro_batch=5"] {
                let sets = |dense| [model, &[parts, dense]].concat();
                let sums = undisturbed(devices, &sets("cluster.dense=sum"));
                let factors = undisturbed(devices, &sets("cluster.dense=factors"));
                assert!(close(&factors[0].weights, &sums[0].weights, 1e-5), "{devices:?}, {parts}, {model:?}");
                assert_eq!(factors[0].curve.losses.len(), sums[0].curve.losses.len());
                assert!(devices.len() == 1 || factors[0].bytes_sent != sums[0].bytes_sent);
            }
        }
    }
}

#[test]
fn reproducible_weights_are_those_of_any_world() {
    let mixed = ["data.augment=[\"randaugment\", \"mixup\", \"cutmix\", \"erase\"]", "data.eval_crops=ten", "train.label_smoothing=0.1"];
    for model in [&[][..], &ALEXNET, &mixed] {
        let sets = [model, &["train.reproducible=true", "cluster.dense=factors"]].concat();
        for worlds in [&[&["cpu"][..], &["cpu"; 2], &["cpu"; 3], &["cpu"; 4]][..], &[&["cpu:resident"], &["cpu:resident", "cpu,cpu"]]] {
            let alone = undisturbed(worlds[0], &sets);
            for devices in &worlds[1..] {
                let ranks = undisturbed(devices, &sets);
                assert_eq!(ranks[0].digest, alone[0].digest, "{devices:?}, {model:?}");
                assert_eq!(ranks[0].curve.norms, alone[0].curve.norms);
                assert_eq!(ranks[0].curve.evaluations, alone[0].curve.evaluations);
            }
        }
    }
}

#[test]
fn evaluations_decide_alike_on_all_ranks_and_in_any_world() {
    let recipes = [
        ["train.schedule=plateau", "train.plateau_patience=0", "train.optimizer=lamb", "train.keep_metric=loss", "train.epochs=5"],
        ["train.schedule=plateau", "train.plateau_patience=0", "train.ema=0.8", "train.decay=0.9", "train.epochs=4"],
        ["train.patience=1", "train.lr=0.5", "train.optimizer=lars", "train.trust_coefficient=0.5", "train.epochs=40"],
    ];
    for recipe in recipes {
        let noise = ["data.classes=7", "data.val=57", "train.lr=0.05"];
        let of = |devices: &[&str], reproducible: &str| {
            let ranks = undisturbed(devices, &[&noise[..], &recipe, &[reproducible]].concat());
            for rank in &ranks {
                assert_eq!(
                    (&rank.curve.rates, &rank.curve.evaluations),
                    (&ranks[0].curve.rates, &ranks[0].curve.evaluations),
                    "{devices:?}"
                );
            }
            ranks.into_iter().next().unwrap()
        };
        let alone = of(&["cpu"], "train.reproducible=true");
        let (rates, evaluations) = (&alone.curve.rates, &alone.curve.evaluations);
        assert!(rates.last() < rates.first() || evaluations.len() < 40, "nothing was decided: {rates:?}, {evaluations:?}");
        for devices in [&["cpu"; 2][..], &["cpu"; 3]] {
            let ring = of(devices, "train.reproducible=true");
            assert_eq!((&ring.curve.rates, &ring.curve.evaluations), (rates, evaluations), "{devices:?}, {recipe:?}");
            assert_eq!(ring.digest, alone.digest);
            of(devices, "train.reproducible=false");
        }
        of(&["cpu", "cpu:resident", "cpu,cpu"], "train.reproducible=false");
    }
}

#[test]
fn a_ring_draws_what_one_process_draws() {
    let last = |devices: &[&str], shown: Shown| {
        let ranks = undisturbed(devices, &["data.classes=7", "data.val=57", "train.reproducible=true"]);
        let of = |rank: &Trained| rank.curve.pictures.iter().rfind(|picture| picture.shown == shown).unwrap().clone();
        let first = of(&ranks[0]);
        assert!(ranks.iter().all(|rank| of(rank) == first), "{devices:?}, {shown:?}");
        assert!(first.size().is_some_and(|(width, height)| width > 200 && height > 200), "{:?}", first.size());
        first
    };
    for shown in [Shown::Confusion, Shown::Filters] {
        assert_eq!(last(&["cpu"], shown), last(&["cpu"; 3], shown));
    }
    let alone = &undisturbed(&["cpu"], &[])[0].curve.pictures;
    assert_eq!(alone.iter().map(|picture| (picture.shown, picture.step)).next(), Some((Shown::FirstBatch, 1)));
}

#[test]
fn what_is_drawn_and_predicted_changes_no_bit() {
    for sets in [&[][..], &["train.ema=0.9"], &["train.reproducible=true", "data.eval_crops=five"], &ALEXNET] {
        for devices in [&["cpu"][..], &["cpu:resident"], &["cpu"; 2]] {
            let silent: Vec<Trained> = ring_that(false, devices, sets, &|_, _| ()).into_iter().collect::<Result<_, _>>().unwrap();
            let drawn = undisturbed(devices, sets);
            assert_eq!((drawn[0].digest, &drawn[0].curve.losses), (silent[0].digest, &silent[0].curve.losses), "{devices:?}, {sets:?}");
            assert_eq!(drawn[0].curve.evaluations, silent[0].curve.evaluations);
            assert!(silent[0].curve.pictures.is_empty() && silent[0].curve.predictions.is_empty());
            let last = drawn[0].curve.predictions.last().unwrap();
            assert_eq!((last.step, last.pictures.len()), (drawn[0].curve.losses.len() as u64, 8));
            let classes: std::collections::HashSet<u32> = last.pictures.iter().map(|picture| picture.label).collect();
            assert_eq!(classes.len(), 5, "of all classes");
        }
    }
}

#[test]
fn predictions_are_those_of_the_trained_model_and_the_same_in_any_world() {
    // The examples are the whole validation set, so as many are right as the evaluation says.
    let sets = ["train.reproducible=true", "data.val=8", "train.epochs=6"];
    let last = |devices: &[&str]| {
        let ranks = undisturbed(devices, &sets);
        let last = |rank: &Trained| rank.curve.predictions.last().unwrap().clone();
        assert!(ranks.iter().all(|rank| last(rank) == last(&ranks[0])));
        (last(&ranks[0]), ranks[0].curve.evaluations.last().unwrap().top1)
    };
    let (alone, top1) = last(&["cpu"]);
    assert_eq!(alone, last(&["cpu"; 3]).0);
    let right = alone.pictures.iter().filter(|picture| picture.is_right()).count();
    assert_eq!((alone.pictures.len(), right as f64 / 8.0), (8, top1));
    for picture in &alone.pictures {
        assert!(picture.guesses.is_sorted_by(|a, b| a.probability >= b.probability), "{:?}", picture.guesses);
        assert!(picture.guesses.iter().map(|guess| guess.probability).sum::<f32>() <= 1.0 + 1e-5, "{:?}", picture.guesses);
    }
}

#[test]
fn a_flipped_bit_of_a_product_is_found_at_its_step() {
    let sets = ["cluster.dense=factors"];
    let steps = undisturbed(&["cpu"; 2], &sets)[0].curve.losses.len() as u64;
    for step in [0, 2, steps - 1] {
        for flipping in [0, 1] {
            let ended = ring(&["cpu"; 2], &sets, &|rank, replica| {
                if rank == flipping {
                    replica.flip_a_bit_of_a_product_at(step);
                }
            });
            for rank in ended {
                let error = rank.map(|_| ()).expect_err("it went on");
                let error = format!("{error:#}");
                // The last step's marks meet in the evaluation.
                let named = if step + 1 == steps {
                    format!("after {steps} steps")
                } else {
                    format!("the gradient of step {step} was not the same")
                };
                assert!(error.contains(&named) || error.contains("left the ring"), "step {step}: {error}");
            }
        }
    }
}

#[test]
fn a_value_that_is_not_finite_fails_all_ranks_alike() {
    let sets = ["cluster.dense=factors", "train.lr=1e30"];
    for rank in ring(&["cpu"; 2], &sets, &|_, _| ()) {
        let error = format!("{:#}", rank.map(|_| ()).expect_err("it went on"));
        assert!(error.contains("the loss is") || error.contains("not finite") || error.contains("left the ring"), "{error}");
    }
}

#[test]
fn the_config_says_where_each_models_factored_weights_are() {
    let models = [
        "model={kind=\"softmax\"}",
        "model={kind=\"mlp\", hidden=[20, 10]}",
        "model={kind=\"lenet\"}",
        "model={kind=\"alexnet\", preset=\"notes\", width=0.04}",
        "model={kind=\"alexnet\", preset=\"original\", width=0.04}",
        "model={kind=\"alexnet\", preset=\"torchvision\", width=0.04}",
    ];
    for model in models {
        let sets = [model, "cluster.dense=factors", "data.image_size=64"].map(str::to_owned);
        let config = Config::parse(CONFIG, "test", &sets).unwrap();
        let source = dataset::open(&config.data, config.seed, &|_| {}).unwrap();
        let input = Job::input(&config, source.info());
        for device in ["cpu", "cpu:resident"] {
            let mut replica = Replica::new(&config.model, &config.train, input, 1, Devices::parse(device, Share::WHOLE).unwrap()).unwrap();
            let factored = Factored::of(&config, input);
            let dense: Vec<_> = replica.layout().params().iter().filter(|param| param.shape().len() == 2).collect();
            assert_eq!(factored.layers.len(), dense.len(), "{model}");
            for (layer, param) in factored.layers.iter().zip(&dense) {
                assert_eq!((layer.weights.clone(), vec![layer.inputs, layer.units]), (param.range(), param.shape().to_vec()), "{model}");
            }
            assert_eq!(factored.regions.total(), replica.layout().total());
            let digest = replica.products_of_seeded_factors(&factored, &config.train).unwrap();
            assert!(digest.is_some() && digest == replica.products_of_seeded_factors(&factored, &config.train).unwrap());
        }
    }
}
