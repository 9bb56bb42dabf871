//! Objects in stores, as `data.path` and `run.mirror` name them: `s3://BUCKET/KEY` for
//! Amazon S3 and servers that speak its protocol, `gs://BUCKET/KEY` for Google Cloud
//! Storage, `https://HOST/PATH` for any server that answers range requests.
//!
//! Callers block: requests run on threads of this module. Those that fail in a way that
//! may pass are repeated with back-off.

mod blocks;
mod client;
mod credentials;
mod error;
mod object;
#[cfg(test)]
mod tests;
mod url;

use std::path::Path;

pub use blocks::keep_blocks;
pub use client::{get, get_all, get_file, list, put, put_file, remove};
pub use error::ObjectError;
pub use object::{Object, open, read, read_ahead};

/// Whether a path is the address of an object, or of several.
pub fn is_address(path: &Path) -> bool {
    url::scheme(path).is_some()
}

/// Refuses what is no address below which objects can be written and listed.
pub fn check_writable(url: &str) -> Result<(), ObjectError> {
    let address = url::Address::parse(url)?;
    if matches!(address.scheme, url::Scheme::Https | url::Scheme::Http) {
        let problem = "is on a web server, to which nothing can be written: name an s3:// or gs:// address".to_owned();
        return Err(ObjectError::Address { url: url.to_owned(), problem });
    }
    if address.key.is_empty() {
        let problem = "is a whole bucket: name a place in it, such as s3://BUCKET/runs/NAME".to_owned();
        return Err(ObjectError::Address { url: url.to_owned(), problem });
    }
    Ok(())
}
