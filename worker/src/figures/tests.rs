//! Draws every figure in both formats. Whether a figure looks right is for people to check.
#![allow(clippy::unwrap_used)]

use common::config::InputShape;
use common::metrics::{Evaluation, StepMetrics};

use super::*;

fn decoded(figure: &impl Figure) -> crate::data::Picture {
    crate::data::decode(common::dataset::SampleFormat::Encoded, &png(figure).unwrap()).unwrap()
}

fn check(figure: &impl Figure) {
    let folder = tempfile::tempdir().unwrap();
    let (png, svg) = (folder.path().join("a.png"), folder.path().join("a.svg"));
    save(figure, &png).unwrap();
    save(figure, &svg).unwrap();
    let picture = crate::data::decode(common::dataset::SampleFormat::Encoded, &std::fs::read(&png).unwrap()).unwrap();
    assert_eq!((picture.width, picture.height), figure.size());
    let inked = picture.pixels.iter().filter(|&&p| p < 200).count();
    assert!(inked > picture.pixels.len() / 500, "only {inked} of {} values are not white", picture.pixels.len());
    assert!(std::fs::read_to_string(&svg).unwrap().starts_with("<svg"));
    assert!(save(figure, &folder.path().join("a.gif")).unwrap_err().to_string().contains(".png or .svg"));
}

fn step(step: u64) -> StepMetrics {
    StepMetrics {
        step,
        epoch: step / 100,
        loss: 2.0 / (1.0 + step as f64 / 50.0),
        top1: 1.0 - 1.0 / (1.0 + step as f64 / 50.0),
        lr: 0.1,
        grad_norm: 1.0,
        samples_checksum: String::new(),
        samples: 10,
        step_ms: 1.0,
        data_wait_ms: 0.0,
        compute_ms: 1.0,
        all_reduce_exposed_ms: 0.0,
        product_ms: 0.0,
        update_ms: 0.0,
        images_per_second: 1.0,
    }
}

#[test]
fn curves_of_short_long_and_odd_runs_are_drawn() {
    let steps: Vec<StepMetrics> = (0..1234).map(step).collect();
    let evaluation = |n: u64| Evaluation { step: 100 * n, epoch: n, loss: 1.0 / n as f64, top1: 0.5, top5: 1.0, samples: 10 };
    let evaluations: Vec<Evaluation> = (1..=12).map(evaluation).collect();
    let long = Curve::new("long".to_owned(), &steps, &evaluations, 100);
    assert!(long.raw_loss.len() <= 600 && long.train_loss.len() <= 600 && (long.lr.last().unwrap().0 - 12.34).abs() < 0.1);
    check(&Curves(vec![long.clone()]));
    let one = Curve::new("one step".to_owned(), &steps[..1], &[], 100);
    check(&Curves(vec![one.clone()]));
    // A run with NaN and infinite values is drawn, too.
    let mut wrong = steps[..400].to_vec();
    (wrong[100].loss, wrong[200].loss, wrong[300].top1) = (f64::NAN, f64::INFINITY, f64::NEG_INFINITY);
    let mut evaluated = evaluations[..3].to_vec();
    (evaluated[0].loss, evaluated[1].loss) = (f64::NAN, f64::INFINITY);
    check(&Curves(vec![Curve::new("wrong".to_owned(), &wrong, &evaluated, 100)]));
    wrong.iter_mut().for_each(|s| s.loss = f64::NAN);
    check(&Curves(vec![Curve::new("worse".to_owned(), &wrong, &evaluated[..1], 100)]));
    let mut broken = steps[3].clone();
    broken.loss = f64::NAN;
    check(&Curves(vec![long, one, Curve::new("broken".to_owned(), &[broken], &evaluations[..1], 100)]));
}

#[test]
fn smoothing_follows_the_curve_and_forgets_single_steps() {
    let noisy = |n: u64| StepMetrics { loss: 1.0 + if n.is_multiple_of(2) { 0.5 } else { -0.5 }, ..step(n) };
    let mut steps: Vec<StepMetrics> = (0..500).map(noisy).collect();
    steps[250].loss = f64::INFINITY;
    let curve = Curve::new("noisy".to_owned(), &steps, &[], 100);
    assert!(curve.raw_loss.iter().any(|p| p.1 == 1.5) && curve.raw_loss[250].1.is_infinite());
    assert!((curve.train_loss[0].1 - 1.5).abs() < 1e-9, "there is nothing before the first step");
    assert!(curve.train_loss[60..].iter().all(|p| (p.1 - 1.0).abs() < 0.1), "{:?}", &curve.train_loss[60..]);
    let (raw, smooth) = (curve.raw_loss[499].0, curve.train_loss[499].0);
    assert_eq!((raw, smooth), (5.0, 5.0));
}

#[test]
fn lines_have_no_steps_and_pixels_keep_their_colours() {
    let slope: Vec<(f64, f64)> = (0..=100).map(|n| (f64::from(n), f64::from(n) * 0.001)).collect();
    let picture = decoded(&Activations(vec![("slope", slope.clone(), slope)]));
    let greys = picture.pixels.iter().collect::<std::collections::BTreeSet<_>>();
    assert!(greys.len() > 100, "only {} values: edges are hard", greys.len());
    let red = Tile { width: 1, height: 1, pixels: vec![200, 10, 30] };
    let picture = decoded(&Tiles { title: String::new(), rows: vec![(String::new(), vec![red])], side: 40 });
    let inside = picture.pixels.as_chunks::<3>().0.iter().filter(|p| **p == [200, 10, 30]).count();
    assert_eq!(inside, 40 * 40);
}

#[test]
fn regions_confusion_and_functions_are_drawn() {
    check(&Regions {
        title: "t".to_owned(),
        axes: ["a".to_owned(), "b".to_owned()],
        x: Regions::range([0.0, 1.0].into_iter()),
        y: Regions::range([2.0, 2.0].into_iter()),
        classes: vec![vec![0, 0, 1], vec![1, 1, 1]],
        points: vec![(0.0, 2.0, 0), (1.0, 2.0, 1)],
        names: vec!["zero".to_owned(), "one".to_owned()],
    });
    for classes in [2, 15, 60] {
        let counts = (0..classes).map(|r| (0..classes).map(|c| if r == c { 90 } else { 1 }).collect()).collect();
        check(&Confusion { title: "t".to_owned(), classes: (0..classes).map(|n| format!("class {n}")).collect(), counts });
    }
    let line = |slope: f64| (0..20).map(|n| (f64::from(n), slope * f64::from(n))).collect::<Vec<_>>();
    check(&Activations(vec![("one", line(0.1), line(0.0)), ("two", line(-0.2), line(0.05))]));
}

#[test]
fn filters_are_cut_from_convolutions_and_dense_layers() {
    let rgb = InputShape { channels: 3, image_size: 4, classes: 2 };
    let values: Vec<f32> = (0..2 * 3 * 9).map(|n| n as f32 - 27.0).collect();
    let tiles = filters(&[2, 3, 3, 3], &values, rgb).unwrap();
    assert_eq!((tiles.len(), tiles[0].width, tiles[0].pixels.len()), (2, 3, 27));
    // The first filter's first pixel: its three channels, of -27, -18 and -9, over 27.
    assert_eq!(tiles[0].pixels[..3], [0, 43, 85]);
    // A dense layer's weights are [in, out]: a filter is a column.
    let grey = InputShape { channels: 1, image_size: 2, classes: 2 };
    let tiles = filters(&[4, 2], &[1.0, -4.0, 0.5, 0.0, 0.0, 0.0, -1.0, 4.0], grey).unwrap();
    assert_eq!(tiles[0].pixels.chunks(3).map(|p| p[0]).collect::<Vec<_>>(), [255, 191, 128, 0]);
    assert_eq!(tiles[1].pixels.chunks(3).map(|p| p[0]).collect::<Vec<_>>(), [0, 128, 128, 255]);
    check(&Tiles { title: "t".to_owned(), rows: vec![("row".to_owned(), tiles)], side: 40 });
    assert_eq!(filters(&[2, 8], &[0.0; 16], InputShape { channels: 2, image_size: 1, classes: 2 }), None);
}
