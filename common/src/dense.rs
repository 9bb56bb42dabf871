//! What workers exchange of a dense layer. Pure: it follows from the config alone.
//!
//! A dense layer Y = XW + b has the gradient XᵀD over a batch, where D is the gradient of
//! the loss with respect to Y. Its *factors* X and D are much smaller than XᵀD where a
//! batch has few samples, so workers may gather the rows of X and D round the ring, and
//! each forms the product over the whole global batch (Xie, Kim, Zhou, Ho, Kumar, Yu, Xing,
//! "Distributed Machine Learning via Sufficient Factor Broadcasting", 2014). Nothing is
//! approximated.
//!
//! Sums cost 2f·in·out·w bytes a worker, factors f·M·(in + out)·w, and the product over all
//! M rows instead of a worker's own takes f·M·in·out multiply-adds more, where
//! f = (N - 1) / N in a world of N. So f cancels: the choice depends on the layer and on M,
//! the samples of a step, and not on how many workers there are. A worker that joins
//! changes nothing.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::config::{ClusterConfig, Config, DenseExchange, InputShape, LayerKind, ModelConfig, Precision, TrainConfig, WireEncoding};
use crate::digest::Digest;

/// A layer with fewer weights is always summed: its gradient takes no time worth saving.
pub const FEWEST_WEIGHTS: u64 = 1 << 18;

/// What workers exchange of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// The gradient is summed round the ring.
    Sum,
    /// The factors are gathered, and each worker multiplies them.
    Factors,
}

/// A dense layer of a run, and what is exchanged of it.
#[derive(Debug, Clone, PartialEq)]
pub struct DenseLayer {
    /// Its number among the model's dense layers, in the order of the forward pass.
    pub number: usize,
    /// The prefix of its parameters' names.
    pub name: String,
    pub inputs: u64,
    pub units: u64,
    /// With fewer rows than this, factors take less time than the sum.
    pub most_rows: f64,
    pub way: Way,
    /// Bytes of a value of the gradient on the wire, and of a factor.
    widths: (u64, u64),
}

impl DenseLayer {
    /// Bytes that a worker sends in a step if the gradient is summed.
    pub fn bytes_of_sum(&self, world: u64) -> f64 {
        2.0 * others(world) * (self.inputs * self.units * self.widths.0) as f64
    }

    /// Bytes that a worker sends in a step if factors of `rows` rows in all are gathered.
    pub fn bytes_of_factors(&self, world: u64, rows: u64) -> f64 {
        others(world) * (rows * (self.inputs + self.units) * self.widths.1) as f64
    }

    /// Bytes that a worker sends in a step.
    pub fn bytes(&self, world: u64, rows: u64) -> f64 {
        match self.way {
            Way::Sum => self.bytes_of_sum(world),
            Way::Factors => self.bytes_of_factors(world, rows),
        }
    }

    /// Bytes of the gathered factors in memory.
    pub fn gathered_bytes(&self, rows: u64) -> u64 {
        match self.way {
            Way::Sum => 0,
            Way::Factors => rows * (self.inputs + self.units) * self.widths.1,
        }
    }
}

/// The share of a ring that the others are.
fn others(world: u64) -> f64 {
    (world - 1) as f64 / world as f64
}

/// The dense layers that a run trains, in the order of the forward pass.
pub fn dense_layers(config: &Config, input: InputShape) -> Vec<DenseLayer> {
    dense_layers_of(&config.model, &config.train, &config.cluster, input)
}

/// The dense layers of a model that are trained, if it is trained like this.
pub fn dense_layers_of(model: &ModelConfig, train: &TrainConfig, cluster: &ClusterConfig, input: InputShape) -> Vec<DenseLayer> {
    // Reproducible sums travel as integers of 32 bits.
    let of_sum = if train.reproducible || cluster.wire == WireEncoding::F32 { 4 } else { 2 };
    let of_factor = if train.precision == Precision::Bf16 { 2 } else { 4 };
    let rows = f64::from(train.global_batch);
    let dense = model.layers(input).into_iter().filter_map(|layer| match layer.kind {
        LayerKind::Dense { inputs, units } => Some((layer.name, inputs, units)),
        _ => None,
    });
    let layer = |(number, (name, inputs, units)): (usize, (String, u64, u64))| {
        let bytes = of_factor as f64 * (1.0 / inputs as f64 + 1.0 / units as f64);
        let most_rows = 2.0 * of_sum as f64 / (bytes + multiply_add(train));
        let pays = inputs * units >= FEWEST_WEIGHTS && rows < most_rows;
        let way = match cluster.dense {
            DenseExchange::Auto if pays => Way::Factors,
            DenseExchange::Auto | DenseExchange::Sum => Way::Sum,
            DenseExchange::Factors => Way::Factors,
        };
        DenseLayer { number, name, inputs, units, most_rows, way, widths: (of_sum, of_factor) }
    };
    dense.enumerate().filter(|(_, (name, ..))| !train.freezes(name, false)).map(layer).collect()
}

/// The time of a multiply-add of the product, in bytes that could be exchanged meanwhile:
/// measured on CPUs, which need the most. In reproducible mode the product replaces sums of
/// integers, which take longer than it.
fn multiply_add(train: &TrainConfig) -> f64 {
    match train.precision {
        _ if train.reproducible => 0.0,
        Precision::Bf16 => 0.004,
        Precision::F32 | Precision::Tf32 => 0.02,
    }
}

/// A dense layer whose factors are exchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FactoredLayer {
    /// Its number among the dense layers, in the order of the forward pass.
    pub number: usize,
    pub inputs: usize,
    pub units: usize,
    /// Its weights in the flat vector: `[inputs, units]`.
    pub weights: Range<usize>,
}

/// The layers whose factors are exchanged, and the flat gradient without their weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Factored {
    /// In the order of the forward pass.
    pub layers: Vec<FactoredLayer>,
    pub regions: Regions,
}

impl Factored {
    /// Nothing is exchanged as factors of a gradient of so many values.
    pub fn nothing(total: usize) -> Self {
        Self { layers: Vec::new(), regions: Regions::new(total, Vec::new()) }
    }

    /// What the config says.
    pub fn of(config: &Config, input: InputShape) -> Self {
        let (mut layers, mut at) = (Vec::new(), 0);
        let mut dense = dense_layers(config, input).into_iter();
        for layer in config.train.trained_layers(&config.model.layers(input)) {
            if let LayerKind::Dense { inputs, units } = layer.kind
                && let Some(DenseLayer { number, way: Way::Factors, .. }) = dense.next()
            {
                let (inputs, units) = (inputs as usize, units as usize);
                // The bias follows the weights.
                layers.push(FactoredLayer { number, inputs, units, weights: at..at + inputs * units });
            }
            at += layer.parameters as usize;
        }
        // Running statistics follow all parameters.
        let total = config.train.trained_values(&config.model, input) as usize;
        let regions = Regions::new(total, layers.iter().map(|layer| layer.weights.clone()).collect());
        Self { layers, regions }
    }
}

/// The flat gradient as what the ring sums and what is made of factors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Regions {
    total: usize,
    /// In order, apart from each other.
    products: Vec<Range<usize>>,
    /// What lies between them, in order, with the place of each in the vector that is
    /// summed.
    summed: Vec<(usize, Range<usize>)>,
}

impl Regions {
    /// A flat gradient of `total` values, of which these ranges, in order, are products.
    pub fn new(total: usize, products: Vec<Range<usize>>) -> Self {
        let (mut summed, mut place, mut start) = (Vec::with_capacity(products.len() + 1), 0, 0);
        for product in products.iter().chain([&(total..total)]) {
            assert!(start <= product.start && product.end <= total, "products lie apart, in order, within the gradient");
            if start < product.start {
                summed.push((place, start..product.start));
            }
            place += product.start - start;
            start = product.end;
        }
        Self { total, products, summed }
    }

    /// Values of the flat gradient.
    pub fn total(&self) -> usize {
        self.total
    }

    /// The ranges that are made of factors.
    pub fn products(&self) -> &[Range<usize>] {
        &self.products
    }

    /// How many values the ring sums.
    pub fn summed_len(&self) -> usize {
        self.summed.last().map_or(0, |(place, range)| place + range.len())
    }

    /// The ranges that the ring sums.
    pub fn summed(&self) -> impl Iterator<Item = Range<usize>> {
        self.summed.iter().map(|(_, range)| range.clone())
    }

    /// The place, in the vector that is summed, of the flat value at `at`, which is one of
    /// those.
    pub fn place(&self, at: usize) -> usize {
        let after = self.summed.partition_point(|(_, range)| range.start <= at);
        let (place, range) = &self.summed[after - 1];
        debug_assert!(range.contains(&at), "the value at {at} is made of factors");
        place + (at - range.start)
    }

    /// The flat ranges of a range of the vector that is summed, in order.
    pub fn flat(&self, places: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let first = self.summed.partition_point(|(place, range)| place + range.len() <= places.start);
        let within = self.summed[first..].iter().take_while({
            let end = if places.is_empty() { 0 } else { places.end };
            move |(place, _)| *place < end
        });
        within.map(move |(place, range)| {
            let (from, to) = (places.start.max(*place) - place, places.end.min(place + range.len()) - place);
            range.start + from..range.start + to
        })
    }
}

/// Whether workers make the same bits of the same factors.
///
/// Each multiplies the same seeded factors at the shapes of the run, and says the digest of
/// the products; none if it cannot multiply factors. Processors with unlike instructions may
/// differ, and then the weights would.
///
/// # Errors
/// Says why the gradients have to be summed.
pub fn agreed<'a>(said: impl IntoIterator<Item = (&'a str, Option<Digest>)>) -> Result<Digest, String> {
    let mut first: Option<(&str, Digest)> = None;
    for (name, products) in said {
        let Some(products) = products else { return Err(format!("{name} cannot multiply factors")) };
        match first {
            None => first = Some((name, products)),
            Some((_, same)) if same == products => {}
            Some((other, _)) => return Err(format!("{name} makes other bits of the same factors than {other}")),
        }
    }
    first.map(|(_, products)| products).ok_or_else(|| "there is no worker".to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use rand_chacha::rand_core::RngCore;

    use super::*;
    use crate::seed;

    fn config(sets: &[&str]) -> Config {
        let text = "name = \"t\"\n[model]\nkind = \"alexnet\"\npreset = \"original\"\n[data]\nkind = \"synthetic\"\nclasses = 1000\ntrain = 6400\nval = 1000\nimage_size = 224\n[train]\nglobal_batch = 64\n";
        let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
        Config::parse(text, "test", &sets).unwrap()
    }

    fn layers(sets: &[&str]) -> Vec<DenseLayer> {
        dense_layers(&config(sets), InputShape { channels: 3, image_size: 224, classes: 1000 })
    }

    const BF16: [&str; 2] = ["train.precision=bf16", "cluster.wire=bf16"];

    #[test]
    fn the_choice_is_that_of_the_formula() {
        let most = |sets: &[&str]| layers(sets).iter().map(|layer| layer.most_rows.round() as u64).collect::<Vec<_>>();
        assert_eq!(most(&BF16), [850, 804, 616]);
        assert_eq!(most(&[]), [374, 364, 320]);
        // By bytes alone: twice 5671, 4096 and 1608, as many as with sums of bf16, because integers have 32 bits.
        assert_eq!(most(&[&BF16[..], &["train.reproducible=true"]].concat()), [11343, 8192, 3215]);
        for (batch, ways) in [("64", [Way::Factors; 3]), ("352", [Way::Factors, Way::Factors, Way::Sum]), ("400", [Way::Sum; 3])] {
            let found: Vec<Way> = layers(&[&format!("train.global_batch={batch}")]).iter().map(|layer| layer.way).collect();
            assert_eq!(found, ways, "{batch}");
        }
    }

    #[test]
    fn forced_ways_hold_for_all_layers_and_small_layers_are_summed() {
        assert!(layers(&["cluster.dense=sum"]).iter().all(|layer| layer.way == Way::Sum));
        assert!(layers(&["cluster.dense=factors", "train.global_batch=4096"]).iter().all(|layer| layer.way == Way::Factors));
        // dense3 has 512 x 1000 weights, the others 256 times fewer than at full width.
        let ways: Vec<Way> = layers(&["model.width=0.0625"]).iter().map(|layer| layer.way).collect();
        assert_eq!(ways, [Way::Sum, Way::Sum, Way::Sum]);
    }

    #[test]
    fn bytes_are_those_of_the_exchange() {
        // MB that a worker sends in a step of AlexNet with 32 samples a worker, in bf16.
        let convolutions = 3_747_200.0 + 9_192.0;
        for (world, sum, factors) in [(2, 125, 9), (4, 187, 16), (8, 218, 25), (16, 234, 40), (32, 242, 67)] {
            let layers = layers(&BF16);
            let rest = 2.0 * others(world) * convolutions * 2.0;
            let mb = |bytes: f64| ((bytes + rest) * 1e-6).round() as u64;
            assert_eq!(mb(layers.iter().map(|l| l.bytes_of_sum(world)).sum()), sum, "{world}");
            assert!(mb(layers.iter().map(|l| l.bytes_of_factors(world, 32 * world)).sum()).abs_diff(factors) <= 1, "{world}");
        }
    }

    #[test]
    fn factored_weights_lie_where_the_model_has_them() {
        let input = InputShape { channels: 3, image_size: 224, classes: 1000 };
        let factored = Factored::of(&config(&["train.global_batch=352"]), input);
        let convolutions = 3_747_200;
        let (first, second) = (9216 * 4096, 4096 * 4096);
        let expected = [convolutions..convolutions + first, convolutions + first + 4096..convolutions + first + 4096 + second];
        assert_eq!(factored.regions.products(), expected);
        assert_eq!(factored.layers.iter().map(|layer| layer.number).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(factored.regions.total(), 62_378_344);
        assert_eq!(factored.regions.summed_len(), 62_378_344 - first - second);
        let none = Factored::of(&config(&["cluster.dense=sum"]), input);
        assert_eq!(none, Factored::nothing(62_378_344));
    }

    #[test]
    fn regions_cover_the_gradient_once() {
        for case in 0..2000u64 {
            let mut rng = seed::stream(case, "regions", &[]);
            let mut below = |n: u32| (rng.next_u32() % n) as usize;
            let (mut products, mut at) = (Vec::new(), 0);
            for _ in 0..below(5) {
                let start = at + below(4);
                at = start + 1 + below(6);
                products.push(start..at);
            }
            let total = at + below(4);
            let regions = Regions::new(total, products.clone());
            let mut kinds = vec![0; total];
            regions.summed().for_each(|range| kinds[range].iter_mut().for_each(|n| *n += 1));
            products.iter().cloned().for_each(|range| kinds[range].iter_mut().for_each(|n| *n += 1));
            assert!(kinds.iter().all(|n| *n == 1), "{products:?} of {total}");
            let flat: Vec<usize> = regions.summed().flatten().collect();
            assert_eq!(flat.len(), regions.summed_len());
            assert!(flat.iter().enumerate().all(|(place, &at)| regions.place(at) == place));
            let (a, b) = (below(flat.len() as u32 + 1), below(flat.len() as u32 + 1));
            let (from, to) = (a.min(b), a.max(b));
            assert_eq!(regions.flat(from..to).flatten().collect::<Vec<_>>(), flat[from..to], "{from}..{to} of {products:?}");
            assert!(regions.flat(from..to).all(|range| !range.is_empty()));
        }
    }

    #[test]
    fn workers_agree_if_all_make_the_same_bits() {
        let (one, other) = (Digest::of(b"one"), Digest::of(b"other"));
        assert_eq!(agreed([("a", Some(one)), ("b", Some(one))]), Ok(one));
        assert_eq!(agreed([("a", Some(one)), ("b", Some(other))]), Err("b makes other bits of the same factors than a".to_owned()));
        assert_eq!(agreed([("a", Some(one)), ("b", None)]), Err("b cannot multiply factors".to_owned()));
    }
}
