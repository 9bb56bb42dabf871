//! JPEGs of every kind that cameras, browsers and old programs write.

use std::ffi::c_int;

use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use turbojpeg_sys as tj;

use super::{Made, scene};

pub(super) fn all() -> Vec<Made> {
    [samplings(), colours(), arithmetic_and_lossless(), with_other_segments()].concat()
}

/// How an encoder writes the scans.
#[derive(Clone, Copy)]
struct Scans {
    name: &'static str,
    /// Of its own for each channel, where the pictures are not progressive.
    optimized: bool,
    progressive: bool,
    /// In MCUs.
    restart: u16,
}

const SCANS: [Scans; 6] = [
    Scans { name: "plain", optimized: false, progressive: false, restart: 0 },
    Scans { name: "optimized", optimized: true, progressive: false, restart: 0 },
    Scans { name: "progressive", optimized: false, progressive: true, restart: 0 },
    Scans { name: "restarts", optimized: false, progressive: false, restart: 1 },
    Scans { name: "optimized-restarts", optimized: true, progressive: false, restart: 5 },
    Scans { name: "progressive-restarts", optimized: false, progressive: true, restart: 5 },
];

fn encode(pixels: &[u8], (width, height): (usize, usize), colour: ColorType, sampling: SamplingFactor, scans: Scans) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = Encoder::new(&mut out, 90);
    encoder.set_sampling_factor(sampling);
    encoder.set_optimized_huffman_tables(scans.optimized);
    encoder.set_progressive(scans.progressive);
    if scans.restart > 0 {
        encoder.set_restart_interval(scans.restart);
    }
    encoder.encode(pixels, width as u16, height as u16, colour).unwrap();
    out
}

fn samplings() -> Vec<Made> {
    of_sizes(&[(16, 16), (33, 17), (64, 48), (7, 50)])
}

/// Every sampling with every kind of scans.
pub(super) fn of_sizes(sizes: &[(usize, usize)]) -> Vec<Made> {
    use SamplingFactor::{F_1_1, F_1_2, F_1_4, F_2_1, F_2_2, F_2_4, F_4_1, F_4_2};
    let mut made = Vec::new();
    for &(width, height) in sizes {
        for sampling in [F_1_1, F_2_1, F_1_2, F_2_2, F_4_1, F_4_2, F_1_4, F_2_4] {
            for scans in SCANS {
                let name = format!("{sampling:?}-{}-{width}x{height}.jpg", scans.name);
                made.push((name, encode(&scene(width, height), (width, height), ColorType::Rgb, sampling, scans)));
            }
        }
    }
    made
}

fn colours() -> Vec<Made> {
    use SamplingFactor::{F_1_1, F_2_2};
    let mut made = Vec::new();
    for (width, height) in [(24, 16), (35, 29)] {
        let rgb = scene(width, height);
        let grey: Vec<u8> = rgb.iter().step_by(3).copied().collect();
        let inks: Vec<u8> = rgb.as_chunks::<3>().0.iter().flat_map(|[r, g, b]| [*r, *g, *b, r / 3]).collect();
        for scans in SCANS {
            for (name, colour, pixels, sampling) in [
                ("grey", ColorType::Luma, &grey, F_1_1),
                ("grey-2x2", ColorType::Luma, &grey, F_2_2),
                ("cmyk", ColorType::Cmyk, &inks, F_1_1),
                ("cmyk-2x2", ColorType::Cmyk, &inks, F_2_2),
                ("ycck", ColorType::CmykAsYcck, &inks, F_1_1),
                ("ycck-2x2", ColorType::CmykAsYcck, &inks, F_2_2),
            ] {
                let name = format!("{name}-{}-{width}x{height}.jpg", scans.name);
                made.push((name, encode(pixels, (width, height), colour, sampling, scans)));
            }
        }
    }
    made
}

/// Compresses by libjpeg-turbo.
fn compress((width, height): (usize, usize), parameters: &[(tj::TJPARAM, c_int)]) -> Vec<u8> {
    let pixels = scene(width, height);
    // SAFETY: the handle is used between its start and its end only, the pixels are as
    // many as width and height say, and what the library allocates is copied and freed.
    unsafe {
        let handle = tj::tj3Init(tj::TJINIT_TJINIT_COMPRESS as c_int);
        assert!(!handle.is_null());
        for (parameter, value) in [(tj::TJPARAM_TJPARAM_QUALITY, 85)].iter().chain(parameters) {
            assert_eq!(tj::tj3Set(handle, *parameter as c_int, *value), 0, "parameter {parameter}");
        }
        let (mut out, mut size) = (std::ptr::null_mut(), 0);
        let rgb = tj::TJPF_TJPF_RGB as c_int;
        assert_eq!(tj::tj3Compress8(handle, pixels.as_ptr(), width as c_int, 0, height as c_int, rgb, &raw mut out, &raw mut size), 0);
        let bytes = std::slice::from_raw_parts(out, size as usize).to_vec();
        tj::tj3Free(out.cast());
        tj::tj3Destroy(handle);
        bytes
    }
}

fn arithmetic_and_lossless() -> Vec<Made> {
    use tj::{TJPARAM_TJPARAM_ARITHMETIC as ARITHMETIC, TJPARAM_TJPARAM_PROGRESSIVE as PROGRESSIVE, TJPARAM_TJPARAM_SUBSAMP as SAMPLING};
    let mut made = Vec::new();
    let samplings = [
        ("444", tj::TJSAMP_TJSAMP_444),
        ("422", tj::TJSAMP_TJSAMP_422),
        ("420", tj::TJSAMP_TJSAMP_420),
        ("grey", tj::TJSAMP_TJSAMP_GRAY),
        ("440", tj::TJSAMP_TJSAMP_440),
        ("411", tj::TJSAMP_TJSAMP_411),
        ("441", tj::TJSAMP_TJSAMP_441),
    ];
    for size in [(40, 24), (19, 37)] {
        for (name, sampling) in samplings {
            let sampling = (SAMPLING, sampling as c_int);
            for (kind, more) in [
                ("arithmetic", &[(ARITHMETIC, 1)][..]),
                ("arithmetic-progressive", &[(ARITHMETIC, 1), (PROGRESSIVE, 1)]),
                ("restart-rows", &[(tj::TJPARAM_TJPARAM_RESTARTROWS, 1)]),
            ] {
                made.push((format!("{kind}-{name}-{}x{}.jpg", size.0, size.1), compress(size, &[&[sampling], more].concat())));
            }
        }
        let in_rgb = [(SAMPLING, tj::TJSAMP_TJSAMP_444 as c_int), (tj::TJPARAM_TJPARAM_COLORSPACE, tj::TJCS_TJCS_RGB as c_int)];
        made.push((format!("in-rgb-{}x{}.jpg", size.0, size.1), compress(size, &in_rgb)));
    }
    for predictor in 1..=7 {
        let parameters = [(tj::TJPARAM_TJPARAM_LOSSLESS, 1), (tj::TJPARAM_TJPARAM_LOSSLESSPSV, predictor)];
        made.push((format!("lossless-{predictor}.jpg"), compress((31, 18), &parameters)));
    }
    made
}

/// The places of the markers before the first scan, and that of the scan last.
fn segments(jpeg: &[u8]) -> Vec<(u8, usize)> {
    let (mut at, mut found) = (2, Vec::new());
    loop {
        let marker = jpeg[at + 1];
        found.push((marker, at));
        if marker == 0xda {
            return found;
        }
        at += 2 + usize::from(u16::from_be_bytes([jpeg[at + 2], jpeg[at + 3]]));
    }
}

fn segment(marker: u8, content: &[u8]) -> Vec<u8> {
    [&[0xff, marker], &(content.len() as u16 + 2).to_be_bytes()[..], content].concat()
}

fn insert(jpeg: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    [&jpeg[..at], bytes, &jpeg[at..]].concat()
}

/// Without the segments of this marker.
fn without(jpeg: &[u8], marker: u8) -> Vec<u8> {
    let mut out = jpeg[..2].to_vec();
    let found = segments(jpeg);
    for pair in found.windows(2) {
        if pair[0].0 != marker {
            out.extend(&jpeg[pair[0].1..pair[1].1]);
        }
    }
    out.extend(&jpeg[found[found.len() - 1].1..]);
    out
}

fn adobe(transform: u8) -> Vec<u8> {
    segment(0xee, &[b"Adobe\0\x64\0\0\0\0", &[transform][..]].concat())
}

/// An EXIF segment: entries of tag, type, count and value, then what follows them.
fn exif(entries: &[(u16, u16, u32, u32)], next: &[u8]) -> Vec<u8> {
    let mut block = b"Exif\0\0MM\0\x2a\0\0\0\x08".to_vec();
    block.extend((entries.len() as u16).to_be_bytes());
    for (tag, kind, count, value) in entries {
        // A number of two bytes stands in the first half of its four.
        let value = if *kind == 3 { value << 16 } else { *value };
        block.extend([&tag.to_be_bytes()[..], &kind.to_be_bytes(), &count.to_be_bytes(), &value.to_be_bytes()].concat());
    }
    block.extend(next);
    segment(0xe1, &block)
}

/// With a note that the picture lies on its side.
pub(super) fn turned(jpeg: &[u8]) -> Vec<u8> {
    insert(jpeg, 2, &exif(&[(0x0112, 3, 1, 6)], &[0; 4]))
}

fn with_other_segments() -> Vec<Made> {
    use SamplingFactor::{F_1_1, F_2_2};
    let size = (36, 28);
    let rgb = scene(size.0, size.1);
    let grey: Vec<u8> = rgb.iter().step_by(3).copied().collect();
    let mut made = Vec::new();
    for (base, jpeg) in [
        ("plain", encode(&rgb, size, ColorType::Rgb, F_2_2, SCANS[0])),
        ("progressive", encode(&rgb, size, ColorType::Rgb, F_1_1, SCANS[2])),
        ("grey", encode(&grey, size, ColorType::Luma, F_1_1, SCANS[0])),
    ] {
        let mut add = |name: &str, bytes: Vec<u8>| made.push((format!("{base}-{name}.jpg"), bytes));
        let at = |marker: u8| segments(&jpeg).into_iter().find(|(m, _)| *m == marker).unwrap().1;
        let (tables, frame, scan) = (at(0xdb), at(if base == "progressive" { 0xc2 } else { 0xc0 }), at(0xda));
        let bare = without(&jpeg, 0xe0);
        for transform in 0..3 {
            add(&format!("jfif-adobe{transform}"), insert(&jpeg, tables, &adobe(transform)));
            if base != "grey" {
                add(&format!("adobe{transform}"), insert(&bare, 2, &adobe(transform)));
            }
        }
        add("adobe-cut-short", insert(&jpeg, tables, &segment(0xee, b"Adobe\0\x64\0")));
        add("bare", bare);
        add("no-tables", without(&jpeg, 0xc4));
        add("comment", insert(&jpeg, 2, &segment(0xfe, b"a comment \xff\xd9 with markers \xff\xda")));
        for (place, at) in [("tables", tables), ("frame", frame), ("scan", scan)] {
            add(&format!("stray-bytes-before-{place}"), insert(&jpeg, at, &[0x12, 0x34]));
            add(&format!("fill-bytes-before-{place}"), insert(&jpeg, at, &[0xff, 0xff, 0xff]));
        }
        add("icc-damaged", insert(&jpeg, tables, &segment(0xe2, b"ICC_PROFILE\0\x02\x01")));
        add("trailing-zeros", [&jpeg[..], &[0; 600]].concat());
        add("trailing-picture", [&jpeg[..], &jpeg].concat());
        add("line-count-behind", insert(&jpeg, jpeg.len() - 2, &segment(0xdc, &(size.1 as u16).to_be_bytes())));
        let mut unknown_lines = insert(&jpeg, jpeg.len() - 2, &segment(0xdc, &(size.1 as u16).to_be_bytes()));
        unknown_lines[frame + 5..frame + 7].fill(0);
        add("line-count-only-behind", unknown_lines);
        add("no-end", jpeg[..jpeg.len() - 2].to_vec());
        add("cut-short", jpeg[..scan + (jpeg.len() - scan) / 2].to_vec());
        let mut hole = jpeg.clone();
        let middle = scan + (jpeg.len() - scan) / 2;
        hole[middle..middle + 12].fill(0);
        add("hole", hole);
        for orientation in 1..=8 {
            add(&format!("turned-{orientation}"), insert(&jpeg, 2, &exif(&[(0x0112, 3, 1, orientation)], &[0; 4])));
        }
        let upright = (0x0112, 3, 1, 6);
        for (name, entries, next) in [
            ("no-next", &[upright][..], &[][..]),
            ("bad-next", &[upright], &[0x7f, 0xff, 0xff, 0xff]),
            ("bad-camera", &[upright, (0x8769, 4, 1, 0x7fff_ffff)], &[0; 4]),
            ("long-entry-before", &[(0x010f, 2, 9000, 60), upright], &[0; 4]),
            ("long-entry-behind", &[upright, (0x0110, 2, 9000, 60)], &[0; 4]),
            ("as-long", &[(0x0112, 4, 1, 8)], &[0; 4]),
            ("nonsense", &[(0x0112, 3, 1, 12)], &[0; 4]),
        ] {
            add(&format!("exif-{name}"), insert(&jpeg, 2, &exif(entries, next)));
        }
    }
    made
}
