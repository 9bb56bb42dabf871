//! Batches that are scored, and those that do not fit.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use common::config::Precision;

use super::tests::{batch, devices, replica, train};
use super::*;
use crate::data::Second;

/// On every device: as if each crop were scored by itself and the probabilities averaged.
#[test]
fn crops_of_a_sample_are_scored_together() {
    let softmax = |scores: &[f32]| {
        let exps: Vec<f64> = scores.iter().map(|score| f64::from(*score).exp()).collect();
        exps.iter().map(|exp| exp / exps.iter().sum::<f64>()).collect::<Vec<f64>>()
    };
    for device in devices() {
        let replica = replica(0.5, &train(), &device);
        let (images, _) = batch(6, 0);
        let (_, single) = replica.scores(&images, &[0; 6]).unwrap();
        let (sums, scores) = replica.scores_of_crops(&images, &[3, 7], 3).unwrap();
        assert_eq!((sums.count, scores.len()), (2, 20));
        let mut loss = 0.0;
        for (sample, label) in [3, 7].into_iter().enumerate() {
            let found = softmax(&scores[sample * 10..][..10]);
            let crops: Vec<Vec<f64>> = single[sample * 30..][..30].chunks_exact(10).map(softmax).collect();
            for (class, found) in found.iter().enumerate() {
                let mean = crops.iter().map(|crop| crop[class]).sum::<f64>() / 3.0;
                assert!((found - mean).abs() < 1e-5, "{device}, sample {sample}, class {class}: {found} {mean}");
            }
            loss -= found[label].ln();
        }
        assert!((sums.loss - loss).abs() < 1e-4, "{device}: {} {loss}", sums.loss);
    }
}

/// Where the backward pass is cut, no bit changes.
#[test]
fn features_in_pieces_have_the_same_gradient() {
    for device in devices() {
        for precision in [Precision::F32, Precision::Bf16] {
            let mut replica = replica(0.5, &TrainConfig { precision, ..train() }, &device);
            let (images, labels) = batch(6, 2);
            let masks = Masks::drawn(replica.dropouts(), &[MaskGroup { seed: 4, samples: labels.len() }]);
            let part = BatchPart { inputs: (&images).into(), labels: &labels, seconds: &[], masks: masks.all(), name: None };
            let mut given = |delivery| {
                let mut flat = vec![f32::NAN; replica.layout().total()];
                let sums = replica.gradients(&[part], None, 0.2, delivery, &mut |_, piece| {
                    _ = piece.values().map(|(at, span)| span.read(&mut flat[at..at + span.len()]));
                });
                (sums.unwrap(), flat)
            };
            let [whole, pieces] = [given(Delivery::Sum), given(Delivery::SumInPieces)];
            assert!(whole.1.iter().all(|g| g.is_finite()) && whole == pieces, "{device} {precision:?}");
        }
    }
}

#[test]
fn batches_that_do_not_fit_are_refused() {
    let mut replica = replica(0.0, &train(), &devices()[0]);
    let (images, labels) = batch(2, 0);
    let none = Masks::drawn(&[], &[MaskGroup { seed: 0, samples: labels.len() }]);
    let short = replica.gradient(&images[1..], &labels, 1.0, none.all(), &mut |_, _| ());
    assert!(matches!(short, Err(ReplicaError::Batch { labels: 2, .. })));
    let fewer = replica.gradient(&images, &labels, 1.0, none.rows(&(0..1)), &mut |_, _| ());
    assert!(matches!(fewer, Err(ReplicaError::Masks { masks: 1, labels: 2 })));
    let mut mixed = |seconds: &[Second]| replica.mixed_gradient(&images, &labels, seconds, 1.0, none.all(), &mut |_, _| ());
    let second = |label| Second { label, share: 0.5 };
    assert!(matches!(mixed(&[second(1)]), Err(ReplicaError::Seconds { seconds: 1, labels: 2 })));
    assert!(matches!(mixed(&[second(1), second(-1)]), Err(ReplicaError::Label { index: 1, label: -1, classes: 10 })));
    let crops = replica.scores_of_crops(&images, &labels, 2);
    assert!(matches!(crops, Err(ReplicaError::Batch { labels: 2, .. })));
    let unknown = replica.evaluate(&images, &[0, 10]);
    assert!(matches!(unknown, Err(ReplicaError::Label { index: 1, label: 10, classes: 10 })));
}
