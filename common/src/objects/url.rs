//! Addresses of objects.

use std::path::Path;

use super::error::ObjectError;

/// The protocol of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    S3,
    Gcs,
    Https,
    /// Without encryption: on this machine only.
    Http,
}

/// The scheme of an address; none for other paths.
pub(super) fn scheme(path: &Path) -> Option<Scheme> {
    let (scheme, _) = path.to_str()?.split_once("://")?;
    match scheme {
        "s3" => Some(Scheme::S3),
        "gs" => Some(Scheme::Gcs),
        "https" => Some(Scheme::Https),
        "http" => Some(Scheme::Http),
        _ => None,
    }
}

/// An address in its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) scheme: Scheme,
    /// A bucket, or a server with its port.
    pub(super) host: String,
    /// Without slashes at its ends; empty for a whole bucket.
    pub(super) key: String,
}

impl Address {
    pub(super) fn parse(url: &str) -> Result<Self, ObjectError> {
        let bad = |problem: &str| ObjectError::Address { url: url.to_owned(), problem: problem.to_owned() };
        let scheme =
            scheme(Path::new(url)).ok_or_else(|| bad("is no address such as s3://BUCKET/KEY, gs://BUCKET/KEY or https://HOST/PATH"))?;
        let rest = url.split_once("://").map_or("", |(_, rest)| rest);
        let (host, key) = rest.split_once('/').unwrap_or((rest, ""));
        if host.is_empty() {
            return Err(bad("names no bucket or server"));
        }
        if host.contains('@') {
            return Err(bad("holds credentials: they belong into the environment, since an address is written into the run's files"));
        }
        let web = matches!(scheme, Scheme::Https | Scheme::Http);
        if web && key.contains(['?', '#']) {
            return Err(bad("has a query (`?...`), and only plain addresses can be read"));
        }
        if scheme == Scheme::Http && !is_loopback(host) {
            return Err(bad("is not encrypted: use https://"));
        }
        Ok(Self { scheme, host: host.to_owned(), key: key.trim_matches('/').to_owned() })
    }

    /// The address of the bucket or server.
    pub(super) fn root(&self) -> String {
        let scheme = match self.scheme {
            Scheme::S3 => "s3",
            Scheme::Gcs => "gs",
            Scheme::Https => "https",
            Scheme::Http => "http",
        };
        format!("{scheme}://{}", self.host)
    }
}

/// Whether a host, with a port or without, is this machine.
pub(super) fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())).map_or(host, |(name, _)| name);
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
