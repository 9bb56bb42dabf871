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
