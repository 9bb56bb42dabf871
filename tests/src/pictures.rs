//! Small picture folders for tests.

use std::path::Path;

use image::{Rgb, RgbImage};
use jpeg_encoder::{ColorType, Encoder};

/// Writes `train/` and `val/` with `classes` folders of PNG and JPEG pictures,
/// each class with a stripe pattern of its own.
pub fn class_folders(root: &Path, classes: u32, train: u32, val: u32) {
    for (split, count) in [("train", train), ("val", val)] {
        for class in 0..classes {
            let folder = root.join(split).join(format!("class {class}"));
            std::fs::create_dir_all(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
            for i in 0..count {
                let picture = picture(class, i);
                if i % 2 == 0 {
                    picture.save(folder.join(format!("{i}.png"))).unwrap_or_else(|e| panic!("{i}.png: {e}"));
                } else {
                    let (width, height) = (picture.width() as u16, picture.height() as u16);
                    let encoder = Encoder::new_file(folder.join(format!("{i}.JPEG")), 75).unwrap_or_else(|e| panic!("{i}.JPEG: {e}"));
                    encoder.encode(&picture, width, height, ColorType::Rgb).unwrap_or_else(|e| panic!("{i}.JPEG: {e}"));
                }
            }
        }
    }
}

fn picture(class: u32, i: u32) -> RgbImage {
    RgbImage::from_fn(72 + i % 5, 70, |x, y| {
        let wave = (x * (class + 1) + y * (class % 2) + i) % 16 * 16;
        Rgb([wave as u8, (y * 3) as u8, (class * 60 + i) as u8])
    })
}

/// Writes ten classes of 28x28 pictures in MNIST's format, each with a bright bar at the place of
/// its class, and the names of the classes.
pub fn digits(root: &Path, train: u32, val: u32) {
    std::fs::create_dir_all(root).unwrap_or_else(|e| panic!("{}: {e}", root.display()));
    let write = |name: &str, bytes: &[u8]| std::fs::write(root.join(name), bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
    for (prefix, count) in [("train", train), ("t10k", val)] {
        let side = 28u32;
        let mut pictures = [[0, 0, 8, 3], count.to_be_bytes(), side.to_be_bytes(), side.to_be_bytes()].concat();
        let mut labels = [[0, 0, 8, 1], count.to_be_bytes()].concat();
        for id in 0..count {
            let label = id % 10;
            labels.push(label as u8);
            pictures.extend((0..side * side).map(|at| {
                let bar = if at / side * 10 / side == label { 150 } else { 0 };
                (bar + (at * 31 + id * 17 + at * id) % 80) as u8
            }));
        }
        write(&format!("{prefix}-images-idx3-ubyte"), &pictures);
        write(&format!("{prefix}-labels-idx1-ubyte"), &labels);
    }
    write("classes.txt", "zero\none\ntwo\nthree\nfour\nfive\nsix\nseven\neight\nnine\n".as_bytes());
}
