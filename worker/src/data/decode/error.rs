//! Why a sample is not decoded.

/// The most pixels that a picture may have: larger ones are taken for damage or
/// for an attempt to fill the memory.
pub(super) const MAX_PIXELS: u64 = 100_000_000;

/// The shortest side that a picture file may have: a single pixel is a web
/// page's spacer or damage, and has no content to learn.
pub(super) const MIN_SIDE: u32 = 2;

#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("is no picture that is read: those are JPEG, PNG, WebP, GIF, BMP, TIFF and PNM")]
    Unknown,
    #[error("is a JPEG that cannot be read: {0}")]
    Jpeg(String),
    #[error("is a damaged PNG: {0}")]
    Png(String),
    #[error("is a damaged {format}: {problem}")]
    Other { format: &'static str, problem: String },
    #[error("makes its decoder fail: {0}")]
    Panicked(String),
    #[error("has {width}x{height} pixels; {MAX_PIXELS} are the most that are read")]
    TooLarge { width: u64, height: u64 },
    #[error("has {width}x{height} pixels: too small to be a picture, which has at least {MIN_SIDE} on each side")]
    TooSmall { width: u64, height: u64 },
    #[error("has {found} bytes where a picture of {expected} bytes was announced")]
    Raw { found: usize, expected: usize },
}

/// Refuses a picture that is too large or too small, before it is decoded.
pub(super) fn check_size(width: u64, height: u64) -> Result<(), DecodeError> {
    if width * height > MAX_PIXELS {
        Err(DecodeError::TooLarge { width, height })
    } else if width.min(height) < MIN_SIDE.into() {
        Err(DecodeError::TooSmall { width, height })
    } else {
        Ok(())
    }
}
