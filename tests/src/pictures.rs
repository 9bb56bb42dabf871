//! Small picture folders for tests.

use std::path::Path;

use image::{Rgb, RgbImage};

/// Writes `train/` and `val/` with `classes` folders of PNG and JPEG pictures,
/// each class with a stripe pattern of its own.
pub fn class_folders(root: &Path, classes: u32, train: u32, val: u32) {
    for (split, count) in [("train", train), ("val", val)] {
        for class in 0..classes {
            let folder = root.join(split).join(format!("class {class}"));
            std::fs::create_dir_all(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
            for i in 0..count {
                let name = if i % 2 == 0 { format!("{i}.png") } else { format!("{i}.JPEG") };
                picture(class, i).save(folder.join(&name)).unwrap_or_else(|e| panic!("{name}: {e}"));
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
