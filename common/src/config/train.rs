//! `[train]` and `[cluster]`: how long, how large, how fast, and how workers talk.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{ConfigError, invalid};
use super::recipe::{AVERAGE, Keep, Metric, OptimizerKind, ScheduleKind};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Passes over the training set. For a perceptron, which may finish earlier, the
    /// maximum: there it may be written `max_epochs`.
    #[serde(alias = "max_epochs")]
    pub epochs: u32,
    /// Ends the run after this many steps even if `epochs` would go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<u64>,
    /// Samples in one step, over all workers. A multiple of `shards`.
    pub global_batch: u32,
    /// V: the parts the data is cut into, and the most workers the run can have. With
    /// `cluster.balance = "speed"` at least eight for each worker, since a worker's part
    /// of a step is a number of shards.
    pub shards: u32,
    /// The rule by which gradients change the weights.
    pub optimizer: OptimizerKind,
    /// The learning rate before the schedule: the largest, but for warm-up.
    pub lr: f64,
    /// The batch that `lr` is for: it is multiplied by `global_batch / lr_batch`, the linear
    /// scaling of Goyal et al. 2017. Left out: `lr` is for any batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr_batch: Option<u32>,
    /// SGD's and LARS's momentum.
    pub momentum: f64,
    /// SGD looks ahead by one step of the momentum (Nesterov 1983, in PyTorch's form).
    #[serde(skip_serializing_if = "is_false")]
    pub nesterov: bool,
    /// How much of each weight joins its gradient, or is taken from it (AdamW, LAMB).
    pub weight_decay: f64,
    /// Whether weight decay acts on parameters of one dimension too: biases, and the scales
    /// and shifts of norms.
    #[serde(skip_serializing_if = "is_true")]
    pub decay_bias: bool,
    /// LARS: the length of a layer's update as a share of its weights' length, at a learning
    /// rate of 1.
    #[serde(skip_serializing_if = "is_default_trust")]
    pub trust_coefficient: f64,
    /// Adam, AdamW, LAMB: the decay rate of the mean of gradients.
    pub beta1: f64,
    /// Adam, AdamW, LAMB: the decay rate of the mean of squared gradients.
    pub beta2: f64,
    /// Adam, AdamW, LAMB: what is added to the root of that mean.
    pub epsilon: f64,
    /// How the learning rate changes over the run.
    pub schedule: ScheduleKind,
    /// The learning rate rises linearly over this many epochs first.
    pub warmup_epochs: f64,
    /// `step`: epochs after which the learning rate is multiplied by `decay`.
    pub decay_epochs: Vec<f64>,
    /// `step` and `plateau`: what the learning rate is multiplied by.
    pub decay: f64,
    /// `cosine`: where the learning rate ends, as a share of `lr`. `plateau`: it falls no
    /// further.
    pub final_lr: f64,
    /// `polynomial`: the exponent of what is left of the run.
    #[serde(skip_serializing_if = "is_one")]
    pub power: f64,
    /// `plateau`: evaluations in a row that may bring no improvement; after one more the
    /// learning rate is multiplied by `decay`.
    #[serde(skip_serializing_if = "is_default_plateau")]
    pub plateau_patience: u32,
    /// Scales the gradient down to this norm where it is longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// The share of each label that is spread over all classes (Szegedy et al. 2016).
    pub label_smoothing: f64,
    /// Layers that keep their weights, by name, such as `conv1`; or `features`, all before the
    /// first dense layer, or `classifier`, the rest. Their gradients are neither computed nor
    /// exchanged.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub freeze: Vec<String>,
    /// Keeps an exponential moving average of the weights, of which each update leaves so much:
    /// 0.999, say. Evaluations are of the average; checkpoints have both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema: Option<f64>,
    /// The number format of forward and backward pass.
    pub precision: Precision,
    /// The same weights, bit for bit, from any number of workers and whatever
    /// happens to them: gradients are computed shard by shard and summed as
    /// integers. Costs speed and memory: a gradient for each shard of a worker.
    pub reproducible: bool,
    /// Each worker records which samples it put into each step, in audit.jsonl;
    /// always so if `reproducible`.
    pub audit: bool,
    /// Compute threads per worker. By default all cores, shared between the workers of
    /// `coordinator local`; 1 if `reproducible`, where the number of threads decides
    /// how sums are grouped and is part of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    /// The most samples that a worker computes at a time: a larger batch is computed in
    /// parts whose gradients are added, which takes the memory of one part. By default
    /// the whole batch. "auto": the whole batch if the device has memory for it, else half
    /// of it, and so on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<MicroBatch>,
    /// Evaluates after every so many epochs, and always at the end.
    pub eval_epochs: u32,
    /// Ends the run after so many evaluations in a row without a better one than the best.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience: Option<u32>,
    /// Checkpoints after every so many steps; by default at the end of every epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_steps: Option<u64>,
    /// How many checkpoints to keep; older ones are removed.
    pub keep_checkpoints: u32,
    /// "best": also the checkpoint with the best evaluation, and one is made after each
    /// evaluation that is better than all before it.
    #[serde(skip_serializing_if = "Keep::is_newest")]
    pub keep: Keep,
    /// What says which of two evaluations is better: for `keep`, `patience` and
    /// `schedule = "plateau"`.
    #[serde(skip_serializing_if = "is_top1")]
    pub keep_metric: Metric,
}

/// The one of You, Gitman and Ginsburg 2017.
const TRUST_COEFFICIENT: f64 = 0.001;

/// PyTorch's.
const PLATEAU_PATIENCE: u32 = 10;

// Keys that have their default are left out of a resolved config, so that runs of versions
// without these keys are still the same runs. serde hands over references.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_false(value: &bool) -> bool {
    !value
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_true(value: &bool) -> bool {
    *value
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_one(value: &f64) -> bool {
    *value == 1.0
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_default_plateau(value: &u32) -> bool {
    *value == PLATEAU_PATIENCE
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_top1(value: &Metric) -> bool {
    *value == Metric::Top1
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_default_trust(value: &f64) -> bool {
    *value == TRUST_COEFFICIENT
}

/// How many samples are computed at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "micro_batch is a number of samples, or \"auto\"")]
pub enum MicroBatch {
    Samples(u32),
    Auto(Auto),
}

/// The word for what is found out at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Auto {
    Auto,
}

/// The number format of forward and backward. Weights, optimizer state and the
/// sums over samples are f32 in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    F32,
    /// f32, whose products on a GPU round their factors to 10 bits of mantissa and are
    /// several times as fast. The same as `f32` on a CPU.
    Tf32,
    Bf16,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            epochs: 10,
            max_steps: None,
            global_batch: 128,
            shards: 8,
            optimizer: OptimizerKind::Sgd,
            lr: 0.01,
            lr_batch: None,
            momentum: 0.9,
            nesterov: false,
            weight_decay: 5e-4,
            decay_bias: true,
            trust_coefficient: TRUST_COEFFICIENT,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            schedule: ScheduleKind::Cosine,
            warmup_epochs: 0.0,
            decay_epochs: Vec::new(),
            decay: 0.1,
            final_lr: 0.0,
            power: 1.0,
            plateau_patience: PLATEAU_PATIENCE,
            clip_norm: None,
            label_smoothing: 0.0,
            freeze: Vec::new(),
            ema: None,
            precision: Precision::F32,
            reproducible: false,
            audit: false,
            threads: None,
            micro_batch: None,
            eval_epochs: 1,
            patience: None,
            checkpoint_steps: None,
            keep_checkpoints: 2,
            keep: Keep::Newest,
            keep_metric: Metric::Top1,
        }
    }
}

impl TrainConfig {
    /// Compute threads of a worker that has `cores` cores to itself.
    pub fn compute_threads(&self, cores: usize) -> usize {
        let default = if self.reproducible { 1 } else { cores.max(1) };
        self.threads.map_or(default, |n| n as usize)
    }

    /// The names of what an update changes beside the weights; each is as long as those that
    /// are trained.
    pub fn state(&self) -> Vec<&'static str> {
        self.optimizer.state().iter().copied().chain(self.ema.map(|_| AVERAGE)).collect()
    }

    /// The learning rate for this run's batch, before the schedule.
    pub fn scaled_lr(&self) -> f64 {
        self.lr_batch.map_or(self.lr, |batch| self.lr * f64::from(self.global_batch) / f64::from(batch))
    }

    /// Whether training, or what is kept of it, depends on the results of evaluations, which
    /// are a part of its state then.
    pub fn follows_evaluations(&self) -> bool {
        self.schedule == ScheduleKind::Plateau || self.patience.is_some() || self.keep == Keep::Best
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if self.epochs == 0 || self.max_steps == Some(0) {
            return Err(invalid("train.epochs", "and train.max_steps must be at least 1"));
        }
        if self.shards == 0 || self.shards > 65_536 {
            return Err(invalid("train.shards", format!("is {}: it must be between 1 and 65536", self.shards)));
        }
        if self.global_batch == 0 || !self.global_batch.is_multiple_of(self.shards) {
            let above = self.global_batch.max(1).next_multiple_of(self.shards);
            return Err(invalid(
                "train.global_batch",
                format!(
                    "is {}: every shard gives the same number of samples to a step, so it must be a multiple of train.shards = {}; the next one is {above}",
                    self.global_batch, self.shards
                ),
            ));
        }
        let positive = [
            ("train.lr", self.lr),
            ("train.epsilon", self.epsilon),
            ("train.decay", self.decay),
            ("train.trust_coefficient", self.trust_coefficient),
            ("train.power", self.power),
        ];
        if let Some((key, value)) = positive.into_iter().find(|(_, v)| !(v.is_finite() && *v > 0.0)) {
            return Err(invalid(key, format!("is {value}: it must be above 0")));
        }
        let shares = [
            ("train.momentum", self.momentum),
            ("train.beta1", self.beta1),
            ("train.beta2", self.beta2),
            ("train.label_smoothing", self.label_smoothing),
        ];
        if let Some((key, value)) = shares.into_iter().find(|(_, v)| !(0.0..1.0).contains(v)) {
            return Err(invalid(key, format!("is {value}: it must be at least 0 and below 1")));
        }
        let not_negative =
            [("train.weight_decay", self.weight_decay), ("train.warmup_epochs", self.warmup_epochs), ("train.final_lr", self.final_lr)];
        if let Some((key, value)) = not_negative.into_iter().find(|(_, v)| !(v.is_finite() && *v >= 0.0)) {
            return Err(invalid(key, format!("is {value}: it must not be negative")));
        }
        if self.nesterov && (self.optimizer != OptimizerKind::Sgd || self.momentum == 0.0) {
            return Err(invalid("train.nesterov", "belongs to train.optimizer = \"sgd\" with a train.momentum above 0"));
        }
        if self.schedule == ScheduleKind::OneCycle && self.warmup_epochs > 0.0 {
            return Err(invalid("train.warmup_epochs", "must be 0 with train.schedule = \"onecycle\", which rises by itself"));
        }
        if self.schedule == ScheduleKind::Plateau && self.decay >= 1.0 {
            return Err(invalid("train.decay", format!("is {}: with train.schedule = \"plateau\" it must be below 1", self.decay)));
        }
        if self.patience == Some(0) {
            return Err(invalid(
                "train.patience",
                "is 0: the run would end with its first evaluation that is not the best; leave it out to go on",
            ));
        }
        if let Some(ema) = self.ema
            && !(ema > 0.0 && ema < 1.0)
        {
            return Err(invalid("train.ema", format!("is {ema}: it must be above 0 and below 1; leave it out to keep no average")));
        }
        if self.lr_batch == Some(0) {
            return Err(invalid("train.lr_batch", "is 0: it is the batch that train.lr is for; leave it out to not scale"));
        }
        if let Some(norm) = self.clip_norm
            && !(norm.is_finite() && norm > 0.0)
        {
            return Err(invalid("train.clip_norm", format!("is {norm}: it must be above 0; leave it out to not clip")));
        }
        let part = self.global_batch / self.shards;
        match self.micro_batch {
            Some(MicroBatch::Samples(0)) => return Err(invalid("train.micro_batch", "must be at least 1")),
            Some(MicroBatch::Samples(samples)) if self.reproducible && samples < part => {
                return Err(invalid(
                    "train.micro_batch",
                    format!(
                        "is {samples}: with train.reproducible a shard is computed at once, and its part of a step has {part} samples; raise train.shards"
                    ),
                ));
            }
            Some(MicroBatch::Auto(_)) if self.reproducible => {
                return Err(invalid(
                    "train.micro_batch",
                    format!(
                        "is \"auto\": with train.reproducible a shard is computed at once, {part} samples; raise train.shards to compute fewer"
                    ),
                ));
            }
            _ => {}
        }
        if self.threads == Some(0) || self.checkpoint_steps == Some(0) || self.eval_epochs == 0 || self.keep_checkpoints == 0 {
            return Err(invalid(
                "train.threads",
                "train.checkpoint_steps, train.eval_epochs and train.keep_checkpoints must be at least 1",
            ));
        }
        Ok(())
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterConfig {
    /// The run waits while there are fewer workers.
    pub min_workers: u32,
    /// The interval of a worker's heartbeats.
    pub heartbeat_ms: u64,
    /// A worker is considered dead after this long without a message.
    pub timeout_ms: u64,
    /// A worker that is alive is given up once all others have waited for it in the
    /// ring for this long. Longer than any step or evaluation takes.
    pub stall_ms: u64,
    /// How long the run waits for an unreachable former member that alone holds the
    /// newest step, before it goes back to its newest checkpoint.
    pub rejoin_ms: u64,
    /// How long the transfer of a newcomer's state may delay a ring that trains; a
    /// newcomer with a slower link is left out.
    pub handover_ms: u64,
    /// How long workers without a coordinator train on, or wait with their state,
    /// before they end.
    pub orphan_ms: u64,
    /// How many shards each worker owns: "speed": in proportion to how fast each computes,
    /// so that none waits long for another; "equal": equally many. Which samples a step
    /// takes is the same.
    pub balance: Balance,
    /// The number format of gradients between workers.
    pub wire: WireEncoding,
    /// Bytes of f32 gradient that are reduced in one round.
    pub bucket_bytes: usize,
    /// QUIC connections side by side to the next worker of the ring.
    pub connections: u32,
    /// Workers that reach the coordinator but not each other exchange their packets through
    /// it, which takes longer. `false`: they are left out of the ring.
    #[serde(skip_serializing_if = "is_true")]
    pub relay: bool,
    /// How the gradients of dense layers are summed over the workers.
    #[serde(skip_serializing_if = "DenseExchange::is_auto")]
    pub dense: DenseExchange,
}

/// What workers exchange of a dense layer: its gradient, or the factors of which each
/// makes the gradient of the whole batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DenseExchange {
    /// For each layer what takes less time.
    #[default]
    Auto,
    /// The gradients of all layers are summed round the ring.
    Sum,
    /// The factors of all dense layers are gathered.
    Factors,
}

impl DenseExchange {
    // serde hands over a reference.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

/// What decides how many shards a worker owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Balance {
    /// The workers' speeds, as measured in the run.
    Speed,
    /// Nothing: all own equally many, to within one.
    Equal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum WireEncoding {
    F32,
    Bf16,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            min_workers: 1,
            heartbeat_ms: 250,
            timeout_ms: 1000,
            stall_ms: 300_000,
            rejoin_ms: 60_000,
            handover_ms: 10_000,
            orphan_ms: 600_000,
            balance: Balance::Speed,
            wire: WireEncoding::F32,
            bucket_bytes: 8 << 20,
            connections: 1,
            relay: true,
            dense: DenseExchange::Auto,
        }
    }
}

impl ClusterConfig {
    pub(super) fn validate(&self, shards: u32) -> Result<(), ConfigError> {
        if self.min_workers == 0 || self.min_workers > shards {
            return Err(invalid(
                "cluster.min_workers",
                format!(
                    "is {}: every worker owns at least one shard, so it must be between 1 and train.shards = {shards}",
                    self.min_workers
                ),
            ));
        }
        if self.heartbeat_ms == 0 || self.timeout_ms < 2 * self.heartbeat_ms {
            return Err(invalid(
                "cluster.timeout_ms",
                format!("is {}: it must be at least twice cluster.heartbeat_ms = {}", self.timeout_ms, self.heartbeat_ms),
            ));
        }
        if self.stall_ms < self.timeout_ms {
            return Err(invalid(
                "cluster.stall_ms",
                format!("is {}: it must be at least cluster.timeout_ms = {}", self.stall_ms, self.timeout_ms),
            ));
        }
        if self.handover_ms == 0 {
            return Err(invalid("cluster.handover_ms", "is 0: no newcomer could ever take the state over".to_owned()));
        }
        if self.orphan_ms < self.timeout_ms {
            return Err(invalid(
                "cluster.orphan_ms",
                format!("is {}: it must be at least cluster.timeout_ms = {}", self.orphan_ms, self.timeout_ms),
            ));
        }
        if !(4096..=1 << 30).contains(&self.bucket_bytes) {
            return Err(invalid("cluster.bucket_bytes", format!("is {}: it must be between 4096 and {}", self.bucket_bytes, 1 << 30)));
        }
        if !(1..=16).contains(&self.connections) {
            return Err(invalid("cluster.connections", format!("is {}: it must be between 1 and 16", self.connections)));
        }
        Ok(())
    }
}
