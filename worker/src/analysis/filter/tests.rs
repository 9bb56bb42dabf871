//! Filters against a direct sum, on every device of this build, and from file to file.
#![allow(clippy::unwrap_used)]

use common::seed;

use super::*;
use crate::data::write_png;
use crate::engine::device::ComputeDevice;

fn devices() -> Vec<Device> {
    ["cpu", "flex"].iter().filter_map(|name| ComputeDevice::parse(name).ok()).map(ComputeDevice::burn).collect()
}

fn random(shape: &[usize], channels: usize, place: u64) -> Vec<f32> {
    let mut rng = seed::stream(5, "filter test", &[place]);
    (0..channels * shape.iter().product::<usize>()).map(|_| seed::unit(&mut rng) - 0.5).collect()
}

/// The definition, in three dimensions; missing dimensions have a side of 1.
fn direct(signal: &Signal, kernel: &Kernel, padding: &[usize], stride: usize) -> Vec<f32> {
    let three = |shape: &[usize], fill: usize| -> [usize; 3] {
        let mut all = vec![fill; 3 - shape.len()];
        all.extend(shape);
        all.try_into().unwrap()
    };
    let (n, k, p) = (three(&signal.shape, 1), three(&kernel.shape, 1), three(padding, 0));
    let step = three(&vec![stride; signal.shape.len()], 1);
    let out: Vec<usize> = (0..3).map(|d| (n[d] + 2 * p[d] - k[d]) / step[d] + 1).collect();
    let mut result = Vec::new();
    for channel in signal.values.chunks(n.iter().product()) {
        for at in (0..out[0]).flat_map(|z| (0..out[1]).map(move |y| (z, y))).flat_map(|(z, y)| (0..out[2]).map(move |x| [z, y, x])) {
            let mut sum = 0.0;
            for (i, weight) in kernel.values.iter().enumerate() {
                let offset = [i / (k[1] * k[2]), i / k[2] % k[1], i % k[2]];
                let place: Vec<i64> = (0..3).map(|d| (step[d] * at[d] + offset[d]) as i64 - p[d] as i64).collect();
                if (0..3).all(|d| place[d] >= 0 && place[d] < n[d] as i64) {
                    sum += weight * channel[((place[0] * n[1] as i64 + place[1]) * n[2] as i64 + place[2]) as usize];
                }
            }
            result.push(sum);
        }
    }
    result
}

#[test]
fn every_dimension_stride_and_padding_matches_the_definition() {
    let cases: [(&[usize], &[usize]); 5] =
        [(&[20], &[5]), (&[9, 7], &[3, 3]), (&[9, 12], &[1, 5]), (&[5, 6, 7], &[3, 3, 3]), (&[4, 8, 5], &[1, 3, 5])];
    for (device, (n, (shape, window))) in devices().iter().flat_map(|d| cases.iter().enumerate().map(move |c| (d, c))) {
        let signal = Signal { shape: shape.to_vec(), channels: 3, values: random(shape, 3, n as u64) };
        let kernel = Kernel { shape: window.to_vec(), values: random(window, 1, 100 + n as u64) };
        for (padding, stride) in [(None, 1), (Some(0), 1), (Some(2), 2), (None, 3)] {
            let result = correlate(&signal, &kernel, padding, stride, device).unwrap();
            let pads: Vec<usize> = window.iter().map(|k| padding.unwrap_or(k / 2)).collect();
            let expected = direct(&signal, &kernel, &pads, stride);
            assert_eq!(result.values.len(), expected.len());
            assert_eq!(result.shape.iter().product::<usize>() * 3, expected.len());
            assert!(result.values.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5), "{shape:?} {window:?} {padding:?} {stride}");
        }
    }
}

#[test]
fn a_flipped_kernel_makes_it_a_convolution() {
    // A single 1: cross-correlation mirrors the kernel there, convolution copies it.
    let signal = Signal { shape: vec![5], channels: 1, values: vec![0.0, 0.0, 1.0, 0.0, 0.0] };
    let kernel = Kernel { shape: vec![3], values: vec![1.0, 2.0, 3.0] };
    let device = &devices()[0];
    let values = |kernel: &Kernel| correlate(&signal, kernel, None, 1, device).unwrap().values;
    assert_eq!(values(&kernel), [0.0, 3.0, 2.0, 1.0, 0.0]);
    assert_eq!(values(&kernel.clone().flip()), [0.0, 1.0, 2.0, 3.0, 0.0]);
}

#[test]
fn pictures_columns_and_films_go_through_files() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let device = &devices()[0];
    let options = |kernel: &str| Options { kernel: kernel.to_owned(), flip: false, padding: None, stride: 1, column: None };

    // Constant pictures: an edge filter finds nothing inside, a blur changes nothing inside.
    write_png(&at("in.png"), 6, 5, 3, &[10, 20, 30].repeat(30)).unwrap();
    run(&at("in.png"), &at("blur.png"), &options("gaussian"), device).unwrap();
    let blur = decode_file(&at("blur.png"));
    assert_eq!((blur.width, blur.height, &blur.pixels[(6 + 1) * 3..][..3]), (6, 5, &[10, 20, 30][..]));
    run(&at("in.png"), &at("edge.png"), &Options { padding: Some(0), ..options("edge") }, device).unwrap();
    let edge = decode_file(&at("edge.png"));
    assert_eq!((edge.width, edge.height), (4, 3));
    assert!(edge.pixels.iter().all(|&p| p == 0));

    std::fs::write(at("t.csv"), "time,value\n0,1\n1,2\n2,4\n3,8\n").unwrap();
    let named = Options { column: Some("value".to_owned()), padding: Some(0), ..options("edge") };
    run(&at("t.csv"), &at("out.csv"), &named, device).unwrap();
    assert_eq!(std::fs::read_to_string(at("out.csv")).unwrap(), "value\n-1\n-2\n");
    let unnamed = format!("{:#}", run(&at("t.csv"), &at("out.csv"), &options("edge"), device).unwrap_err());
    assert!(unnamed.contains("`time`, `value`") && unnamed.contains("--column"), "{unnamed}");

    std::fs::create_dir(at("film")).unwrap();
    for n in 0..4u8 {
        write_png(&at("film").join(format!("{n}.png")), 4, 4, 3, &[40 * n; 48]).unwrap();
    }
    run(&at("film"), &at("smooth"), &Options { padding: Some(0), ..options("gaussian") }, device).unwrap();
    // Each output frame needs three input frames, whose brightness rises evenly.
    let frames: Vec<u8> = (0..2).map(|n| decode_file(&at("smooth").join(format!("frame-0000{n}.png"))).pixels[0]).collect();
    assert_eq!(frames, [40, 80]);

    write_png(&at("dot.png"), 1, 1, 3, &[1, 2, 3]).unwrap();
    let dot = format!("{:#}", run(&at("dot.png"), &at("o.png"), &options("edge"), device).unwrap_err());
    assert!(dot.contains("dot.png") && dot.contains("1x1"), "{dot}");
    write_png(&at("small.png"), 2, 2, 3, &[9; 12]).unwrap();
    let small = Options { padding: Some(0), ..options("edge") };
    let small = format!("{:#}", run(&at("small.png"), &at("o.png"), &small, device).unwrap_err());
    assert!(small.contains("small.png") && small.contains("too small for a kernel of 3x3"), "{small}");
    let jpeg = format!("{:#}", run(&at("in.png"), &at("o.jpg"), &options("edge"), device).unwrap_err());
    assert!(jpeg.contains(".png"), "{jpeg}");
}

fn decode_file(path: &Path) -> crate::data::Picture {
    crate::data::decode(common::dataset::SampleFormat::Encoded, &std::fs::read(path).unwrap()).unwrap()
}
