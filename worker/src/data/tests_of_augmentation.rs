//! What augmentation draws, and what it makes of a picture. `worker/golden/augment.py` makes
//! the pictures of torchvision.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;

use common::config::{Augment, EraseValue, EvalCrops, Pixels, Random};
use common::seed;
use serde::Deserialize;

use super::augment::{Change, Colour};
use super::operations::Operation;
use super::policies::{KINDS, Kind, Strengths};
use super::tests::pixels;
use super::*;

#[derive(Deserialize)]
struct Figures {
    size: usize,
    colours: Vec<Figure>,
    magnitudes: Vec<Magnitudes>,
    operations: Vec<Operated>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Policy {
    RandAugment,
    TrivialAugment,
}

#[derive(Deserialize)]
struct Magnitudes {
    policy: Policy,
    name: String,
    signed: bool,
    strengths: Vec<f64>,
}

#[derive(Deserialize)]
struct Operated {
    #[serde(flatten)]
    figure: Figure,
    policy: Policy,
    magnitude: u32,
    negative: bool,
}

impl Policy {
    fn strengths(&self, size: u32) -> Strengths {
        match self {
            Self::RandAugment => Strengths::rand_augment(size),
            Self::TrivialAugment => Strengths::TRIVIAL_AUGMENT,
        }
    }
}

/// The kind that torchvision calls so.
fn kind(name: &str) -> Kind {
    let name = if name == "Color" { "Colour" } else { name };
    KINDS.into_iter().find(|kind| format!("{kind:?}") == name).unwrap()
}

#[derive(Deserialize)]
struct Figure {
    name: String,
    strength: f64,
    channels: usize,
    /// In base64.
    pixels: String,
}

impl Figure {
    fn bytes(&self) -> Vec<u8> {
        base64(&self.pixels)
    }
}

fn figures() -> Figures {
    serde_json::from_str(include_str!("../../golden/augment.json")).unwrap()
}

fn base64(text: &str) -> Vec<u8> {
    let sextet = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let digits: Vec<u32> = text.bytes().filter(|&c| c != b'=').map(|c| sextet(c).into()).collect();
    let group = |digits: &[u32]| {
        let bits = (0..4).fold(0, |bits, at| bits << 6 | digits.get(at).copied().unwrap_or(0));
        bits.to_be_bytes()[1..digits.len()].to_vec()
    };
    digits.chunks(4).flat_map(group).collect()
}

/// The picture that the script changes.
fn source(size: usize, channels: usize) -> Vec<u8> {
    let row = size * channels;
    let value = |place: usize| {
        let mut x = (place as u32).wrapping_mul(2_654_435_761).wrapping_add(40503);
        x ^= x >> 16;
        x = x.wrapping_mul(0x85eb_ca6b);
        x ^= x >> 13;
        (30 + (x >> 8) as usize % 130 + 60 * (place % row) / row) as u8
    };
    (0..size * row).map(value).collect()
}

fn assert_same(figure: &Figure, size: usize, operation: Operation) {
    let (mut found, expected) = (source(size, figure.channels), figure.bytes());
    assert_eq!(found.len(), expected.len());
    operation.apply(&mut found, size, figure.channels);
    let differ = found.iter().zip(&expected).filter(|(a, b)| a != b).count();
    assert_eq!(differ, 0, "{operation:?} on {} channels: so many bytes are not torchvision's", figure.channels);
}

#[test]
fn changes_of_colour_are_torchvisions() {
    let Figures { size, colours, .. } = figures();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for figure in &colours {
        let strength = figure.strength as f32;
        let operation = match figure.name.as_str() {
            "saturation" => Operation::Saturation(strength),
            "hue" => Operation::Hue(strength),
            "grey" => Operation::Grey,
            name => panic!("{name} is not known here"),
        };
        assert_same(figure, size, operation);
        *seen.entry(figure.name.clone()).or_default() += 1;
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [("grey".to_owned(), 2), ("hue".to_owned(), 10), ("saturation".to_owned(), 8)]);
}

#[test]
fn magnitudes_are_torchvisions() {
    let all = figures().magnitudes;
    assert_eq!(all.len(), 2 * KINDS.len());
    for (place, Magnitudes { policy, name, signed, strengths: expected }) in all.into_iter().enumerate() {
        let (kind, strengths) = (kind(&name), policy.strengths(224));
        assert_eq!(KINDS[place % KINDS.len()], kind, "the order of the draws");
        assert_eq!(strengths.at(kind, 0).is_some(), !expected.is_empty(), "{name}");
        assert_eq!(strengths.is_signed(kind), signed, "{name}");
        for (magnitude, expected) in (0..).zip(expected) {
            let found = strengths.at(kind, magnitude).unwrap();
            // torch's last bit depends on the width of the processor's vectors.
            assert!((found - expected).abs() <= 2e-7 * expected.abs(), "{name} {magnitude}: {found} {expected}");
        }
    }
}

#[test]
fn operations_are_torchvisions() {
    let Figures { size, operations, .. } = figures();
    assert_eq!(operations.len(), 14 + 9 + 14 + 9 + 9 + 14);
    for Operated { figure, policy, magnitude, negative } in &operations {
        match policy.strengths(size as u32).operation(kind(&figure.name), *magnitude, *negative) {
            Some(operation) => assert_same(figure, size, operation),
            None => assert_eq!((figure.name.as_str(), figure.bytes()), ("Identity", source(size, figure.channels))),
        }
    }
}

/// Pictures so small or so plain that there is nothing to measure.
#[test]
fn operations_on_any_picture_end() {
    let all = KINDS.into_iter().flat_map(|kind| {
        let at = |magnitude, negative| Strengths::TRIVIAL_AUGMENT.operation(kind, magnitude, negative);
        [at(0, false), at(30, false), at(30, true)]
    });
    for operation in all.flatten() {
        for (size, channels) in [(1, 1), (1, 3), (2, 3), (3, 1)] {
            for value in [0, 7, 255] {
                let mut bytes = vec![value; size * size * channels];
                operation.apply(&mut bytes, size, channels);
                if matches!(operation, Operation::AutoContrast | Operation::Equalize | Operation::Sharpness(_)) {
                    assert!(bytes.iter().all(|byte| *byte == value), "{operation:?} of one value");
                }
            }
        }
    }
}

#[test]
fn policies_draw_every_operation_equally_often() {
    let count = |augment: Augment, operations: u32| {
        let config = Pixels { randaugment_operations: operations, randaugment_magnitude: 10, ..pixels(60, &[augment]) };
        let mut seen: BTreeMap<String, u32> = BTreeMap::new();
        for case in 0..2800 {
            let recipe = Recipe::draw(&config, 60, 60, true, || seed::stream(case, "policy", &[]));
            assert!(recipe.changes.len() <= operations as usize);
            for change in recipe.changes {
                *seen.entry(format!("{change:?}")).or_default() += 1;
            }
        }
        seen
    };
    let rand = count(Augment::RandAugment, 3);
    // Nine have two signs; identity is none.
    assert_eq!(rand.len(), 2 * 9 + 4, "{rand:?}");
    for (operation, times) in &rand {
        let expected =
            if ["Posterize", "Solarize", "AutoContrast", "Equalize"].iter().any(|name| operation.contains(name)) { 600 } else { 300 };
        assert!(times.abs_diff(expected) < expected / 4, "{operation}: {times}");
    }
    assert!(rand.keys().any(|operation| operation.contains("Rotate(-10.0)")), "{rand:?}");
    let trivial = count(Augment::TrivialAugment, 1);
    let of = |name: &str| trivial.iter().filter(|(operation, _)| operation.contains(name)).map(|(_, times)| times).sum::<u32>();
    for name in ["ShearX", "TranslateY", "Rotate", "Saturation", "Posterize", "Solarize", "Equalize"] {
        assert!(of(name).abs_diff(200) < 60, "{name}: {}", of(name));
    }
    assert!(trivial.keys().filter(|operation| operation.contains("Rotate")).count() > 40, "of any magnitude");
}

/// Before an operation that mixes channels, the bytes get the changes so far, rounded.
#[test]
fn changes_act_in_their_order() {
    let picture = Picture { width: 1, height: 1, channels: 3, pixels: vec![100, 50, 201] };
    let colour = |colour| Change::Colour(colour);
    let found = changed(&picture, vec![colour(Colour::Brightness(0.5)), Change::Operation(Operation::Grey)], false);
    // 50, 25 and 100.5, whose half is rounded up, are 41 as grey.
    assert!(found.iter().all(|number| (number - 41.0 / 255.0).abs() < 1e-6), "{found:?}");
    let found = changed(&picture, vec![Change::Operation(Operation::Grey), colour(Colour::Brightness(0.5))], false);
    // 82 as grey, and its half is not rounded.
    assert!(found.iter().all(|number| (number - 41.0 / 255.0).abs() < 1e-6), "{found:?}");
    let bright = [colour(Colour::Brightness(3.0)), Change::Operation(Operation::Saturation(0.0)), colour(Colour::Brightness(0.1))];
    let found = changed(&picture, bright.to_vec(), false);
    // 255, 150 and 255 are cut before they become 193 as grey.
    assert!(found.iter().all(|number| (number - 19.3 / 255.0).abs() < 1e-6), "{found:?}");
}

#[test]
fn draws_keep_to_their_strengths() {
    let config = Pixels { saturation: 0.3, hue: 0.2, grey: 0.25, ..pixels(8, &[Augment::Saturation, Augment::Hue, Augment::Grey]) };
    let (mut grey, mut factors, mut shifts) = (0, Vec::new(), Vec::new());
    for case in 0..2000 {
        let recipe = Recipe::draw(&config, 8, 8, true, || seed::stream(case, "colours", &[]));
        for change in recipe.changes {
            match change {
                Change::Operation(Operation::Saturation(factor)) => factors.push(factor),
                Change::Operation(Operation::Hue(shift)) => shifts.push(shift),
                Change::Operation(Operation::Grey) => grey += 1,
                other => panic!("{other:?} was not asked for"),
            }
        }
    }
    assert_eq!((factors.len(), shifts.len()), (2000, 2000));
    assert!((400..600).contains(&grey), "{grey} of 2000");
    for (drawn, [low, high]) in [(factors, [0.7, 1.3]), (shifts, [-0.2, 0.2])] {
        let (least, most) = drawn.iter().fold((f32::MAX, f32::MIN), |(least, most), &x| (least.min(x), most.max(x)));
        let margin = 0.01 * (high - low);
        assert!(least >= low && least < low + margin && most <= high && most > high - margin, "{least} {most}");
    }
}

#[test]
fn random_crops_lie_in_the_picture_and_have_the_asked_area() {
    let config = Pixels { crop_scale: [0.25, 0.5], crop_ratio: [1.0, 1.0], ..pixels(8, &[Augment::Crop]) };
    for case in 0..2000 {
        let mut rng = seed::stream(case, "crop", &[]);
        let Recipe { crop: [x, y, w, h], .. } = Recipe::draw(&config, 100, 80, false, || &mut rng);
        assert!(x >= 0.0 && y >= 0.0 && x + w <= 100.001 && y + h <= 80.001, "{x} {y} {w} {h}");
        assert!((0.249..0.501).contains(&(w * h / 8000.0)), "{w} {h}");
    }
}

#[test]
fn a_share_of_pictures_loses_a_part_that_lies_in_them() {
    const SIZE: usize = 40;
    let erase = Pixels { erase: 0.3, erase_scale: [0.1, 0.2], erase_ratio: [0.5, 2.0], ..pixels(SIZE as u32, &[Augment::Erase]) };
    let picture = Picture { width: 40, height: 40, channels: 3, pixels: vec![200; SIZE * SIZE * 3] };
    for value in [EraseValue::Same(0.0), EraseValue::Channels([2.0, 3.0, 4.0]), EraseValue::Random(Random::Random)] {
        let config = Pixels { erase_value: value, ..erase.clone() };
        let (mut erased, mut upright) = (0, 0);
        for case in 0..2000 {
            let mut rng = seed::stream(case, "erase", &[]);
            let recipe = Recipe::draw(&config, 40, 40, true, || &mut rng);
            let Some(Erased { part: [left, top, width, height], .. }) = recipe.erased else { continue };
            erased += 1;
            upright += u32::from(height > width);
            assert!(left + width <= SIZE && top + height <= SIZE && width < SIZE && height < SIZE, "{left} {top} {width} {height}");
            let [w, h] = [width, height].map(|side| side as f64);
            // Each side is rounded to whole pixels.
            assert!((w * h - 240.0).abs() < 80.0 + (w + h) / 2.0, "{w} x {h}");
            assert!((0.5..2.0).contains(&(h / w)) || (h / w).ln().abs() < 2f64.ln() + 0.5 / w + 0.5 / h, "{w} x {h}");
            let out = Renderer::default().numbers(&picture, &recipe, &config).unwrap();
            let plain = 200.0 / 255.0;
            for (channel, plane) in out.chunks_exact(SIZE * SIZE).enumerate() {
                let inside = |at: usize| (left..left + width).contains(&(at % SIZE)) && (top..top + height).contains(&(at / SIZE));
                for (at, &number) in plane.iter().enumerate() {
                    match value {
                        _ if !inside(at) => assert!((number - plain).abs() < 1e-6, "outside stays what it is"),
                        EraseValue::Same(expected) => assert_eq!(number, expected),
                        EraseValue::Channels(expected) => assert_eq!(number, expected[channel]),
                        EraseValue::Random(_) => assert!((number - plain).abs() > 1e-6 && number.abs() < 7.0),
                    }
                }
            }
            assert_eq!(Recipe::evaluation(&config, 40, 40, true).erased, None);
        }
        assert!((500..700).contains(&erased), "{erased} of 2000");
        assert!((erased / 3..erased * 2 / 3).contains(&upright), "{upright} of {erased} are upright");
    }
}

#[test]
fn evaluation_takes_the_centre() {
    let config = Pixels { eval_resize: 1.25, ..pixels(8, &[Augment::Crop, Augment::Flip]) };
    assert_eq!(Recipe::evaluation(&config, 100, 50, false).crop, [30.0, 5.0, 40.0, 40.0]);
    assert_eq!(Recipe::evaluation(&config, 28, 28, true).crop, [0.0, 0.0, 28.0, 28.0]);
    assert_eq!(Recipe::evaluations(&config, 100, 50, false), [Recipe::evaluation(&config, 100, 50, false)]);
}

#[test]
fn five_crops_are_the_corners_and_the_centre_and_ten_their_mirror_images_too() {
    let config = |eval_crops| Pixels { eval_crops, eval_resize: 1.25, ..pixels(8, &[Augment::Crop, Augment::Flip]) };
    let corners = [[25.0, 0.0], [35.0, 0.0], [25.0, 10.0], [35.0, 10.0], [30.0, 5.0]];
    for whole in [false, true] {
        let five = Recipe::evaluations(&config(EvalCrops::Five), 100, 50, whole);
        let ten = Recipe::evaluations(&config(EvalCrops::Ten), 100, 50, whole);
        assert_eq!((five.len(), ten.len()), (EvalCrops::Five.count(), EvalCrops::Ten.count()));
        for (place, recipe) in ten.iter().enumerate() {
            let [x, y] = corners[place % 5];
            assert_eq!((recipe.crop, recipe.flip), ([x, y, 40.0, 40.0], place >= 5));
            assert!(recipe.changes.is_empty() && recipe.erased.is_none());
        }
        assert_eq!(five, ten[..5]);
    }
}

fn rendered(picture: &Picture, colours: Vec<Colour>, flip: bool) -> Vec<f32> {
    let changes = colours.into_iter().map(Change::Colour).collect();
    changed(picture, changes, flip)
}

/// The normalised numbers of a picture that is as large as the model's input.
fn changed(picture: &Picture, changes: Vec<Change>, flip: bool) -> Vec<f32> {
    let config = pixels(picture.width, &[]);
    let recipe = Recipe { crop: [0.0, 0.0, picture.width.into(), picture.height.into()], flip, changes, erased: None };
    Renderer::default().numbers(picture, &recipe, &config).unwrap()
}

#[test]
fn colours_change_as_defined_and_planes_lie_channel_by_channel() {
    // Two pixels a row: (51, 102, 153) and (204, 51, 0) of 255.
    let picture = Picture { width: 2, height: 2, channels: 3, pixels: [51, 102, 153, 204, 51, 0].repeat(2) };
    let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-5);
    let plain = [0.2, 0.8, 0.2, 0.8, 0.4, 0.2, 0.4, 0.2, 0.6, 0.0, 0.6, 0.0];
    assert!(close(&rendered(&picture, vec![], false), &plain));
    assert!(close(&rendered(&picture, vec![], true)[..4], &[0.8, 0.2, 0.8, 0.2]));
    assert!(close(&rendered(&picture, vec![Colour::Brightness(1.5)], false)[..4], &[0.3, 1.0, 0.3, 1.0]), "clamped at white");
    let grey = 0.299 * 0.5 + 0.587 * 0.3 + 0.114 * 0.3;
    let contrast = rendered(&picture, vec![Colour::Contrast(0.5)], false);
    assert!(close(&contrast[..2], &[0.1 + grey / 2.0, 0.4 + grey / 2.0]));
    let warm = rendered(&picture, vec![Colour::Temperature(0.1)], false);
    assert!(close(&[warm[0], warm[4], warm[8]], &[0.22, 0.4, 0.54]));
    let lit = rendered(&picture, vec![Colour::Lighting([0.1, 0.0, -0.1])], false);
    assert!(close(&[lit[0], lit[4], lit[8]], &[0.3, 0.4, 0.5]));
}
