//! PNG, WebP, GIF, BMP, TIFF and PNM.

use std::io::Cursor;

use image::{DynamicImage, ImageFormat, RgbImage};
use png::{BitDepth, ColorType};

use super::{Made, scene};

/// Lossy WebP files that Pillow wrote; nothing here writes them.
const WEBP: [(&str, &[u8]); 3] = [
    ("lossy.webp", include_bytes!("lossy.webp")),
    ("lossy-alpha.webp", include_bytes!("lossy-alpha.webp")),
    ("turned-animation.webp", include_bytes!("turned-animation.webp")),
];

pub(super) fn all() -> Vec<Made> {
    let webp = WEBP.map(|(name, bytes)| (name.to_owned(), bytes.to_vec()));
    [pngs(), by_image(), webp.to_vec()].concat()
}

fn pngs() -> Vec<Made> {
    let (width, height) = (37u32, 26u32);
    let mut made = Vec::new();
    for (colour, channels, depths) in [
        (ColorType::Grayscale, 1, &[1, 2, 4, 8, 16][..]),
        (ColorType::Rgb, 3, &[8, 16]),
        (ColorType::Indexed, 1, &[1, 2, 4, 8]),
        (ColorType::GrayscaleAlpha, 2, &[8, 16]),
        (ColorType::Rgba, 4, &[8, 16]),
    ] {
        for &depth in depths {
            for transparent in [false, true] {
                // An alpha channel and a transparent colour exclude each other.
                if transparent && matches!(colour, ColorType::GrayscaleAlpha | ColorType::Rgba) {
                    continue;
                }
                let mut out = Vec::new();
                let mut encoder = png::Encoder::new(&mut out, width, height);
                // Made by the encoder itself: what flate2 makes depends on how it is built.
                encoder.set_compression(png::Compression::Fast);
                encoder.set_color(colour);
                encoder.set_depth(BitDepth::from_u8(depth).unwrap());
                if colour == ColorType::Indexed {
                    encoder.set_palette(scene(1 << depth, 1));
                }
                if transparent {
                    encoder.set_trns(if colour == ColorType::Indexed { vec![0, 128] } else { [0, 1].repeat(channels) });
                }
                let row = (width as usize * channels * usize::from(depth)).div_ceil(8);
                let mut writer = encoder.write_header().unwrap();
                writer.write_image_data(&scene(row, height as usize)[..row * height as usize]).unwrap();
                writer.finish().unwrap();
                let name = format!("{colour:?}-{depth}{}.png", if transparent { "-transparent" } else { "" });
                made.push((name.to_lowercase(), out));
            }
        }
    }
    let (name, plain) = made.iter().find(|(name, _)| name == "rgb-8.png").cloned().unwrap();
    let data = plain.windows(4).position(|w| w == b"IDAT").unwrap();
    let length = u32::from_be_bytes(plain[data - 4..data].try_into().unwrap()) as usize;
    let mut checksum = plain.clone();
    checksum[data + 4 + length] ^= 1;
    made.push((format!("bad-checksum-{name}"), checksum));
    made.push((format!("cut-short-{name}"), plain[..plain.len() / 2].to_vec()));
    made
}

fn by_image() -> Vec<Made> {
    let rgb = RgbImage::from_raw(29, 22, scene(29, 22)).unwrap();
    let picture = DynamicImage::from(rgb);
    let mut made = Vec::new();
    let mut add = |name: &str, picture: &DynamicImage, format: ImageFormat| {
        let mut out = Cursor::new(Vec::new());
        picture.write_to(&mut out, format).unwrap();
        made.push((name.to_owned(), out.into_inner()));
    };
    let (grey, alpha) = (picture.to_luma8().into(), picture.to_rgba8().into());
    add("rgb.bmp", &picture, ImageFormat::Bmp);
    add("grey.bmp", &grey, ImageFormat::Bmp);
    add("alpha.bmp", &alpha, ImageFormat::Bmp);
    add("rgb.gif", &picture, ImageFormat::Gif);
    add("rgb.tif", &picture, ImageFormat::Tiff);
    add("grey.tif", &grey, ImageFormat::Tiff);
    add("alpha.tif", &alpha, ImageFormat::Tiff);
    add("rgb.webp", &picture, ImageFormat::WebP);
    add("alpha.webp", &alpha, ImageFormat::WebP);
    let text: String = (0..60).map(|v| format!("{} ", v * 4)).collect();
    for (name, header, content) in [
        ("rgb.ppm", "P6\n29 22\n255\n", scene(29, 22)),
        ("grey.pgm", "P5\n# a comment\n29 22\n255\n", scene(29, 22)[..29 * 22].to_vec()),
        ("bits.pbm", "P4\n29 22\n", scene(4, 22)[..4 * 22].to_vec()),
        ("text.ppm", "P3\n5 4\n255\n", text.into_bytes()),
    ] {
        made.push((name.to_owned(), [header.as_bytes(), &content].concat()));
    }
    made
}
