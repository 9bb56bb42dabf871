#![allow(clippy::unwrap_used, clippy::expect_used)]

use common::digest::Digest;
use std::io::Cursor;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::config::{Augment, CorruptPolicy, DataConfig, EvalCrops, Pixels};
use common::dataset::{DatasetError, DatasetInfo, Sample, SampleFormat, SampleSource, Split};
use common::plan::Plan;
use common::seed;
use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use jpeg_encoder::{ColorType, Encoder};

use super::*;

pub(super) fn pixels(size: u32, augment: &[Augment]) -> Pixels {
    let config: DataConfig = toml::from_str("kind = \"idx\"\npath = \"x\"").unwrap();
    Pixels { image_size: size, augment: augment.to_vec(), ..config.pixels }
}

/// Left half red, right half blue.
fn halves(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, _| if x < width / 2 { Rgb([250, 10, 10]) } else { Rgb([10, 10, 250]) })
}

fn jpeg_of(image: &[u8], width: u16, height: u16, color: ColorType) -> Vec<u8> {
    let mut out = Vec::new();
    Encoder::new(&mut out, 95).encode(image, width, height, color).unwrap();
    out
}

fn png_of(image: DynamicImage) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    image.write_to(&mut out, ImageFormat::Png).unwrap();
    out.into_inner()
}

/// A JPEG with an EXIF block that holds nothing but the orientation.
fn oriented(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    let tiff = [b'I', b'I', 42, 0, 8, 0, 0, 0, 1, 0, 0x12, 0x01, 3, 0, 1, 0, 0, 0, orientation, 0, 0, 0, 0, 0, 0, 0];
    let mut segment = vec![0xff, 0xe1, 0, 0];
    segment.extend(b"Exif\0\0");
    segment.extend(tiff);
    let length = (segment.len() - 2) as u16;
    segment[2..4].copy_from_slice(&length.to_be_bytes());
    [&jpeg[..2], &segment, &jpeg[2..]].concat()
}

fn decoded(bytes: &[u8]) -> Picture {
    decode(SampleFormat::Encoded, bytes).unwrap()
}

fn near(picture: &Picture, x: u32, y: u32, colour: [u8; 3]) -> bool {
    let at = ((y * picture.width + x) * 3) as usize;
    picture.pixels[at..at + 3].iter().zip(colour).all(|(a, b)| a.abs_diff(b) < 40)
}

#[test]
fn every_kind_of_picture_becomes_upright_rgb() {
    let rgb = halves(40, 20);
    let grey: Vec<u8> = vec![77; 40 * 20];
    // Left cyan, right yellow.
    let cmyk: Vec<u8> = (0..800).flat_map(|i| if i % 40 < 20 { [255, 0, 0, 0] } else { [0, 0, 255, 0] }).collect();
    for (bytes, left, right) in [
        (jpeg_of(&rgb, 40, 20, ColorType::Rgb), [250, 10, 10], [10, 10, 250]),
        (png_of(rgb.clone().into()), [250, 10, 10], [10, 10, 250]),
        (jpeg_of(&grey, 40, 20, ColorType::Luma), [77; 3], [77; 3]),
        (png_of(DynamicImage::ImageLuma16(DynamicImage::from(rgb.clone()).into_luma16())), [82; 3], [38; 3]),
        (png_of(DynamicImage::from(rgb.clone()).into_rgba8().into()), [250, 10, 10], [10, 10, 250]),
    ] {
        let picture = decoded(&bytes);
        assert_eq!((picture.width, picture.height, picture.channels, picture.pixels.len()), (40, 20, 3, 2400));
        assert!(
            near(&picture, 5, 10, left) && near(&picture, 35, 10, right),
            "{left:?} {right:?}: {:?} {:?}",
            &picture.pixels[15..18],
            &picture.pixels[105..108]
        );
    }
    for color in [ColorType::Cmyk, ColorType::CmykAsYcck] {
        let picture = decoded(&jpeg_of(&cmyk, 40, 20, color));
        assert_eq!(picture.pixels.len(), 2400);
        assert!(
            near(&picture, 5, 10, [0, 255, 255]) && near(&picture, 35, 10, [255, 255, 0]),
            "{color:?}: {:?} {:?}",
            &picture.pixels[15..18],
            &picture.pixels[105..108]
        );
    }
    assert_eq!(decoded(&png_of(RgbImage::from_pixel(2, 2, Rgb([1, 2, 3])).into())).pixels, [1, 2, 3].repeat(4));
}

#[test]
fn exif_orientation_is_respected() {
    let jpeg = jpeg_of(&halves(40, 20), 40, 20, ColorType::Rgb);
    assert_eq!(decoded(&oriented(&jpeg, 1)), decoded(&jpeg));
    let turned = decoded(&oriented(&jpeg, 6));
    assert_eq!((turned.width, turned.height), (20, 40));
    assert!(near(&turned, 10, 5, [250, 10, 10]) && near(&turned, 10, 35, [10, 10, 250]));
    assert_eq!(decoded(&oriented(&jpeg, 99)), decoded(&jpeg), "a nonsensical one is ignored");
}

#[test]
fn damaged_files_are_errors_and_never_panic() {
    let jpeg = jpeg_of(&halves(64, 64), 64, 64, ColorType::Rgb);
    let png = png_of(halves(64, 64).into());
    for cut in [3, jpeg.len() / 4, jpeg.len() / 2, jpeg.len() * 3 / 4] {
        assert!(matches!(decode(SampleFormat::Encoded, &jpeg[..cut]), Err(DecodeError::Jpeg(_))), "cut at {cut}");
    }
    assert!(matches!(decode(SampleFormat::Encoded, &png[..png.len() / 2]), Err(DecodeError::Png(_))));
    let dot = png_of(RgbImage::from_pixel(1, 1, Rgb([1, 2, 3])).into());
    assert!(matches!(decode(SampleFormat::Encoded, &dot), Err(DecodeError::TooSmall { width: 1, height: 1 })));
    assert!(matches!(decode(SampleFormat::Encoded, b"GIF89a"), Err(DecodeError::Other { format: "GIF", .. })));
    assert!(matches!(decode(SampleFormat::Encoded, b"<!DOCTYPE html>"), Err(DecodeError::Unknown)));
    assert!(matches!(decode(SampleFormat::Encoded, b""), Err(DecodeError::Unknown)));
    assert!(matches!(
        decode(SampleFormat::Raw { height: 2, width: 2, channels: 1 }, &[0; 3]),
        Err(DecodeError::Raw { found: 3, expected: 4 })
    ));
    for case in 0..300u64 {
        let mut rng = seed::stream(case, "damage", &[]);
        let mut bytes = if case % 2 == 0 { jpeg.clone() } else { png.clone() };
        for _ in 0..1 + case % 5 {
            let at = seed::below(&mut rng, bytes.len() as u32) as usize;
            bytes[at] = seed::below(&mut rng, 256) as u8;
        }
        let _ = decode(SampleFormat::Encoded, &bytes);
    }
}

/// Numbered PNGs, of which some may be damaged.
struct Folder {
    info: DatasetInfo,
    damaged: Vec<u32>,
    delay: Duration,
}

impl Folder {
    fn with(train: u32, damaged: &[u32]) -> Self {
        let info = DatasetInfo {
            format: SampleFormat::Encoded,
            classes: vec!["a".into(), "b".into()],
            train,
            val: 23,
            fingerprint: Digest::of(&[]),
        };
        Self { info, damaged: damaged.to_vec(), delay: Duration::ZERO }
    }
}

impl SampleSource for Folder {
    fn info(&self) -> &DatasetInfo {
        &self.info
    }
    fn read(&self, _: Split, ids: &[u32]) -> Result<Vec<Sample>, DatasetError> {
        std::thread::sleep(self.delay);
        let one = |&id: &u32| {
            let mut bytes = png_of(RgbImage::from_fn(9 + id % 4, 8, |x, y| Rgb([(x * 20 + id) as u8, (y * 25) as u8, id as u8])).into());
            if self.damaged.contains(&id) {
                bytes.truncate(bytes.len() / 2);
            }
            Sample { id, label: id % 2, bytes: Bytes::from(bytes) }
        };
        Ok(ids.iter().map(one).collect())
    }
    fn name(&self, _: Split, id: u32) -> String {
        format!("folder/{id}.png")
    }
}

fn input(folder: Folder, on_corrupt: CorruptPolicy) -> Input {
    use Augment::{Brightness, Contrast, Crop, Erase, Flip, Grey, Hue, Lighting, Saturation, Temperature};
    let augment = [Crop, Flip, Brightness, Contrast, Saturation, Hue, Grey, Temperature, Lighting, Erase];
    let pixels = Pixels { on_corrupt, ..pixels(8, &augment) };
    Input { source: Arc::new(folder), pixels }
}

const DROPOUT: Dropout = Dropout { values: 3, probability: 0.5 };

fn all(input: &Input, threads: usize) -> Vec<Batch> {
    let plan = Plan::new(3, 37, 5, 10);
    let options = LoaderOptions { threads, prefetch_steps: 2 };
    let mut loader = TrainLoader::start(input.clone(), plan, 1..4, 9, 2..8, options, vec![DROPOUT]).unwrap();
    (2..8)
        .map(|_| {
            let batch = loader.next_batch().unwrap();
            loader.recycle(Batch::default());
            batch
        })
        .collect()
}

#[test]
fn batches_do_not_depend_on_the_number_of_threads() {
    let input = input(Folder::with(37, &[]), CorruptPolicy::Stop);
    let (one, four) = (all(&input, 1), all(&input, 4));
    assert_eq!(one, four);
    let steps: Vec<u64> = one.iter().map(|b| b.step).collect();
    assert_eq!(steps, [2, 3, 4, 5, 6, 7]);
    for batch in &one {
        assert_eq!(batch.inputs.all().len(), batch.labels.len() * 3 * 8 * 8);
        assert_eq!(batch.shards.iter().map(|(s, _)| *s).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(batch.masks.all().samples(), batch.labels.len());
        for (shard, places) in &batch.shards {
            let group = MaskGroup { seed: seed::derive(9, "dropout", &[batch.step, (*shard).into()]), samples: places.len() };
            let own = Masks::drawn(&[DROPOUT], &[group]);
            assert!(batch.masks.rows(places).places().eq(own.all().places()), "the masks of a shard are its own");
        }
        assert!(batch.ids.iter().zip(&batch.labels).all(|(id, label)| (id % 2) as i32 == *label));
    }
}

/// As if each crop were made by itself, and one picture that does not decode leaves out ten.
#[test]
fn evaluation_makes_all_crops_of_a_sample() {
    let mut input = input(Folder::with(37, &[4]), CorruptPolicy::Skip);
    input.pixels.eval_crops = EvalCrops::Ten;
    let options = LoaderOptions { threads: 2, prefetch_steps: 1 };
    let mut loader = EvalLoader::start(input.clone(), Split::Val, 2..9, 3, options).unwrap();
    let mut all = Vec::new();
    while let Some(batch) = loader.next_batch().unwrap() {
        assert_eq!((batch.inputs.all().len(), batch.inputs.pictures()), (batch.labels.len() * 10 * 192, batch.labels.len() * 10));
        for (at, id) in batch.ids.iter().enumerate() {
            let file = input.source.read(Split::Val, &[*id]).unwrap().remove(0).bytes;
            let picture = decoded(&file);
            for (n, recipe) in Recipe::evaluations(&input.pixels, picture.width, picture.height, false).into_iter().enumerate() {
                let mut bytes = vec![0; 192];
                let finish = Renderer::default().render(&picture, &recipe, &input.pixels, &mut bytes).unwrap();
                let expected = Inputs::Pictures(Pictures { bytes: &bytes, finishes: &[finish] });
                let place = at * 10 + n;
                assert_eq!(batch.inputs.all().part(&(place..place + 1), batch.labels.len() * 10), expected, "crop {n} of {id}");
            }
        }
        all.extend(batch.ids.clone());
        loader.recycle(batch);
    }
    assert_eq!(all, [2, 3, 5, 6, 7, 8]);
}

/// What a shard's samples are mixed with is in the same shard.
#[test]
fn mixed_samples_do_not_depend_on_the_worker_that_has_the_shard() {
    let mixing = |augment: &[Augment]| {
        let mut input = input(Folder::with(37, &[]), CorruptPolicy::Stop);
        input.pixels.augment.extend_from_slice(augment);
        input
    };
    let plan = || Plan::new(3, 37, 3, 9);
    let batches = |input: &Input, shards: std::ops::Range<u32>| -> Vec<Batch> {
        let options = LoaderOptions { threads: 2, prefetch_steps: 4 };
        let mut loader = TrainLoader::start(input.clone(), plan(), shards, 9, 0..4, options, Vec::new()).unwrap();
        (0..4).map(|_| loader.next_batch().unwrap()).collect()
    };
    let plain = batches(&mixing(&[]), 0..3);
    assert!(plain.iter().all(|batch| batch.seconds.is_empty()));
    for augment in [&[Augment::Mixup][..], &[Augment::Cutmix], &[Augment::Mixup, Augment::Cutmix]] {
        let input = mixing(augment);
        let whole = batches(&input, 0..3);
        for worker in [0..1, 1..3] {
            for (batch, whole) in batches(&input, worker).iter().zip(&whole) {
                for (shard, places) in &batch.shards {
                    let (_, of_whole) = whole.shards.iter().find(|(other, _)| other == shard).unwrap();
                    assert_eq!(batch.part(places), whole.part(of_whole), "{augment:?}");
                }
            }
        }
        let shares: Vec<f32> = whole.iter().flat_map(|batch| batch.seconds.iter().map(|second| second.share)).collect();
        assert_eq!(shares.len(), whole.iter().map(|batch| batch.labels.len()).sum::<usize>());
        assert!(shares.iter().all(|share| (0.0..=0.5).contains(share)) && shares.iter().any(|share| *share > 0.0));
        assert!(whole.iter().zip(&plain).any(|(mixed, plain)| mixed.inputs != plain.inputs));
    }
}

#[test]
fn a_batch_that_is_made_is_handed_out_early_and_an_error_is_not() {
    let options = LoaderOptions { threads: 2, prefetch_steps: 4 };
    let start = || {
        TrainLoader::start(input(Folder::with(37, &[11]), CorruptPolicy::Stop), Plan::new(3, 37, 5, 10), 0..5, 9, 0..4, options, Vec::new())
    };
    let (mut waiting, mut early) = (start().unwrap(), start().unwrap());
    for step in 0.. {
        let expected = waiting.next_batch();
        let until = Instant::now() + Duration::from_millis(if expected.is_ok() { 10_000 } else { 300 });
        let made = std::iter::from_fn(|| (Instant::now() < until).then(|| early.made_batch())).flatten().next();
        match expected {
            Ok(batch) => assert_eq!((Some(&batch), batch.step), (made.as_ref(), step)),
            Err(error) => {
                assert!(made.is_none());
                assert_eq!(early.next_batch().unwrap_err().to_string(), error.to_string());
                break;
            }
        }
    }
}

#[test]
fn a_damaged_picture_stops_or_is_left_out_and_named() {
    let mut loader = TrainLoader::start(
        input(Folder::with(37, &[11]), CorruptPolicy::Stop),
        Plan::new(3, 37, 5, 10),
        0..5,
        9,
        0..4,
        LoaderOptions { threads: 2, prefetch_steps: 2 },
        Vec::new(),
    )
    .unwrap();
    let error = (0..4).find_map(|_| loader.next_batch().map(|b| loader.recycle(b)).err()).expect("one batch holds it").to_string();
    assert!(error.contains("folder/11.png") && error.contains("damaged PNG"), "{error}");

    let mut loader = EvalLoader::start(
        input(Folder::with(37, &[4, 20]), CorruptPolicy::Skip),
        Split::Val,
        2..23,
        8,
        LoaderOptions { threads: 2, prefetch_steps: 1 },
    )
    .unwrap();
    let (mut ids, mut skipped) = (Vec::new(), Vec::new());
    while let Some(batch) = loader.next_batch().unwrap() {
        assert_eq!(batch.inputs.all().len(), batch.ids.len() * 192);
        ids.extend(batch.ids.clone());
        skipped.extend(batch.skipped.iter().map(|s| s.name.clone()));
        loader.recycle(batch);
    }
    assert_eq!(ids, (2..23).filter(|i| ![4, 20].contains(i)).collect::<Vec<_>>());
    assert_eq!(skipped, ["folder/4.png", "folder/20.png"]);
}

#[test]
fn decoding_threads_are_as_many_as_cores_and_memory_allow() {
    let threads = |cores, batch_bytes| LoaderOptions::new(cores, 3, batch_bytes).threads;
    assert_eq!([1, 2, 64].map(|cores| threads(cores, 10 << 20)), [1, 2, 64]);
    // 2 GiB of batches of 128 MiB: three that wait, and one for each of 13 threads.
    assert_eq!(threads(64, 128 << 20), 13);
    assert_eq!([threads(64, 1 << 40), threads(0, 1), threads(64, 0)], [1, 1, 64]);
}

#[test]
fn dropping_a_loader_in_the_middle_of_a_read_does_not_wait_for_it() {
    let folder = Folder { delay: Duration::from_secs(5), ..Folder::with(37, &[]) };
    let start = Instant::now();
    let loader =
        EvalLoader::start(input(folder, CorruptPolicy::Stop), Split::Val, 0..23, 4, LoaderOptions { threads: 2, prefetch_steps: 1 })
            .unwrap();
    drop(loader);
    assert!(start.elapsed() < Duration::from_secs(1));
}
