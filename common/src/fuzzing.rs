//! Private decoders, opened to the fuzz targets and to nothing else: only
//! `cargo fuzz` builds this.

use rustls::pki_types::CertificateDer;

/// The first message on a ring connection, and the answer to it.
pub async fn ring_introduction(bytes: &[u8]) {
    crate::ring::form::read_any(bytes).await;
}

/// A newcomer's request and the coordinator's answer to it.
pub async fn enrolment(bytes: &[u8]) {
    crate::net::enrolment::read_any(bytes).await;
}

/// The packets on a relay's stream.
pub fn relay(bytes: &[u8]) {
    crate::net::relay::read_any(bytes);
}

/// A visitor's introduction and the coordinator's answer to it.
pub async fn visit(bytes: &[u8]) {
    crate::net::visit::read_any(bytes).await;
}

/// The name in a certificate.
pub fn certificate(bytes: &[u8]) {
    let _ = crate::net::tls::name_in(&CertificateDer::from(bytes));
}

/// The list of a dataset, as the cache keeps it.
pub fn index(bytes: &[u8]) {
    let _ = crate::dataset::index_cache::parse(bytes);
}
