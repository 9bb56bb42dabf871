use common::dense::{Factored, FactoredLayer, Regions};
use common::ring::{BucketLayout, Gathers};

use super::*;

/// A receiver that needs nothing before the end.
struct Nothing;

impl Receiver for Nothing {
    fn summed(&mut self, _offset: usize, _span: Span<'_>) {}

    fn gathered(&mut self, _layer: usize, _inputs: Span<'_>, _slopes: Span<'_>) {}
}

/// A gradient of so many values in buckets of so many bytes, all of it summed.
fn sums(elements: usize, bucket_bytes: usize) -> ExchangePlan {
    ExchangePlan {
        factored: Factored::nothing(elements),
        layout: BucketLayout::new(elements, bucket_bytes),
        encoding: Encoding::F32,
        gathers: Gathers::default(),
    }
}

/// The summed gradient as one vector.
fn whole(exchange: &mut Exchange) -> Vec<f32> {
    exchange.gradient().iter().flat_map(|bucket| bucket.clone().into_f32()).collect()
}

#[test]
fn exact_sums_do_not_depend_on_who_has_which_part() {
    let plan = sums(50, 4 * 7);
    let part = |p: usize| -> Vec<f32> { (0..50).map(|i| ((i * 31 + p * 17) % 97) as f32 / 7.0 - 6.0).collect() };
    let sum = |order: &[usize]| {
        let mut exchange = Exchange::new(None, plan.clone(), 0, Summation::Exact { shards: 4 });
        for _ in 0..2 {
            for (place, &p) in order.iter().enumerate() {
                let values = part(p);
                for span in [20..50, 0..20] {
                    exchange.add(place, Piece::Values(span.start, Span::F32(&values[span]))).unwrap_or_else(|e| panic!("{e}"));
                }
            }
            exchange.finish(StepTotals::default(), &mut Nothing).unwrap_or_else(|e| panic!("{e}"));
        }
        whole(&mut exchange)
    };
    let first = sum(&[0, 1, 2, 3]);
    assert_eq!(first, sum(&[3, 1, 0, 2]));
    for (i, got) in first.iter().enumerate() {
        let truth: f32 = (0..4).map(|p| part(p)[i]).sum();
        assert!((got - truth).abs() < 1e-5, "{i}: {got} {truth}");
    }
}

#[test]
fn a_nan_in_one_part_spoils_its_bucket_and_no_other() {
    let mut exchange = Exchange::new(None, sums(4, 8), 0, Summation::Exact { shards: 2 });
    exchange.add(0, Piece::Values(0, Span::F32(&[1.0, f32::NAN, 2.0, 3.0]))).unwrap_or_else(|e| panic!("{e}"));
    exchange.finish(StepTotals::default(), &mut Nothing).unwrap_or_else(|e| panic!("{e}"));
    let sums = whole(&mut exchange);
    assert!(sums[..2].iter().all(|v| v.is_nan()));
    assert_eq!(sums[2..], [2.0, 3.0]);
}

#[test]
fn spans_in_any_order_make_up_the_gradient() {
    let plan = sums(50, 4 * 7);
    for summation in [Summation::F32, Summation::Bf16] {
        let mut exchange = Exchange::new(None, plan.clone(), 0, summation);
        for round in 0..3 {
            // Small integers, which bf16 holds exactly.
            let flat: Vec<f32> = (0..50).map(|i| (i + round * 100) as f32).collect();
            for span in [30..50, 0..9, 9..30] {
                exchange.add(0, Piece::Values(span.start, Span::F32(&flat[span]))).unwrap_or_else(|e| panic!("{e}"));
            }
            let mine = StepTotals { count: 3, ..StepTotals::default() };
            assert_eq!(exchange.finish(mine, &mut Nothing).ok(), Some(mine));
            assert_eq!(whole(&mut exchange), flat);
        }
    }
}

/// What a receiver was given.
#[derive(Default)]
struct Seen {
    flat: Vec<f32>,
    products: Vec<(usize, Vec<f32>, Vec<f32>)>,
}

impl Receiver for Seen {
    fn summed(&mut self, offset: usize, span: Span<'_>) {
        span.read(&mut self.flat[offset..offset + span.len()]);
    }

    fn gathered(&mut self, layer: usize, inputs: Span<'_>, slopes: Span<'_>) {
        let all = |span: Span<'_>| {
            let mut values = Vec::new();
            span.for_each_f32(|part| values.extend_from_slice(part));
            values
        };
        self.products.push((layer, all(inputs), all(slopes)));
    }
}

#[test]
fn factors_have_the_rows_of_their_samples_and_other_rows_are_zeros() {
    // Two layers, of 2 x 1 and 1 x 3 weights, among other values; four rows.
    let layer = |number, inputs, units, weights| FactoredLayer { number, inputs, units, weights };
    let layers = vec![layer(0, 2, 1, 3..5), layer(1, 1, 3, 6..9)];
    let regions = Regions::new(11, layers.iter().map(|layer| layer.weights.clone()).collect());
    let plan = ExchangePlan {
        layout: BucketLayout::new(regions.summed_len(), 8),
        factored: Factored { layers, regions },
        encoding: Encoding::F32,
        gathers: Gathers::new(&[4], vec![2, 1, 1, 3], false),
    };
    for summation in [Summation::F32, Summation::Exact { shards: 2 }] {
        let mut exchange = Exchange::new(None, plan.clone(), 0, summation);
        // A full step, and one of which a shard has one sample less, in two parts.
        for (rows, parts) in [(vec![0, 1, 2, 3], vec![0..2, 2..4]), (vec![0, 2, 3], vec![0..1, 1..3])] {
            exchange.begin(rows.clone(), &parts).unwrap_or_else(|e| panic!("{e}"));
            for (part, samples) in parts.iter().enumerate() {
                let of = |width: usize| -> Vec<f32> {
                    samples.clone().flat_map(|s| (0..width).map(move |at| (10 * s + at + 1) as f32)).collect()
                };
                for (layer, inputs, slopes) in [(0, of(2), of(1)), (1, of(1), of(3))] {
                    let piece = Piece::Factors { layer, inputs: Span::F32(&inputs), slopes: Span::F32(&slopes) };
                    exchange.add(part, piece).unwrap_or_else(|e| panic!("{e}"));
                }
                // In reproducible mode each part has values; else only their sum comes.
                if part + 1 == parts.len() || exchange.exact.is_some() {
                    let share = if exchange.exact.is_some() { 0.5 } else { 1.0 };
                    for range in [9..11, 5..6, 0..3] {
                        let values: Vec<f32> = range.clone().map(|at| at as f32 * share).collect();
                        exchange.add(part, Piece::Values(range.start, Span::F32(&values))).unwrap_or_else(|e| panic!("{e}"));
                    }
                }
            }
            let mut seen = Seen { flat: vec![f32::NAN; 11], ..Seen::default() };
            exchange.finish(StepTotals::default(), &mut seen).unwrap_or_else(|e| panic!("{e}"));
            let row = |row: usize, width: usize| -> Vec<f32> {
                let sample = rows.iter().position(|&r| r == row);
                (0..width).map(|at| sample.map_or(0.0, |s| (10 * s + at + 1) as f32)).collect()
            };
            let all = |width| (0..4).flat_map(|r| row(r, width)).collect::<Vec<_>>();
            assert_eq!(seen.products, [(1, all(1), all(3)), (0, all(2), all(1))]);
            let summed: Vec<usize> = (0..11).filter(|at| !seen.flat[*at].is_nan()).collect();
            assert_eq!(summed, [0, 1, 2, 5, 9, 10], "products are not summed");
            assert!(summed.iter().all(|&at| (seen.flat[at] - at as f32).abs() < 1e-6));
        }
    }
}

#[test]
fn a_rank_with_other_weights_is_found() {
    let mut exchange = Exchange::new(None, sums(4, 8), 0, Summation::F32);
    exchange.committed(1.25);
    let (all, _) = exchange.evaluation(StepTotals::default(), Vec::new()).unwrap_or_else(|e| panic!("{e}"));
    assert!(!exchange.differs(&all));
    // The least change of the norm.
    exchange.committed(f64::from_bits(1.25f64.to_bits() + 1));
    assert!(exchange.differs(&all));
}
