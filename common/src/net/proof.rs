//! How a node without a certificate shows that it knows a token's secret: by a keyed hash over
//! this TLS session and what it asks for. The secret does not cross the wire, and what does is
//! of no use in another session or for another purpose.

use std::time::SystemTime;

use super::authority::Authority;
use super::token::SECRET;

/// The proof that goes with `request`. None where TLS gives no session key.
pub(super) fn make(connection: &quinn::Connection, purpose: &str, secret: &[u8; SECRET], request: &[u8]) -> Option<blake3::Hash> {
    let mut session = [0; 32];
    connection.export_keying_material(&mut session, b"EXPORTER-ringleader-enrolment", b"").ok()?;
    Some(blake3::keyed_hash(&blake3::derive_key(purpose, secret), &[&session, request].concat()))
}

/// The coordinator's side: whether `proof` is that of the token with the id `token`, and the
/// token is valid now.
///
/// # Errors
/// The reason, in words for the stranger.
pub(super) fn check(
    connection: &quinn::Connection,
    authority: &Authority,
    purpose: &str,
    token: &str,
    request: &[u8],
    proof: [u8; 32],
) -> Result<(), String> {
    let found = authority.tokens().find(token, SystemTime::now()).map_err(|e| {
        tracing::error!("{e}");
        "the coordinator cannot read its tokens".to_owned()
    })?;
    // A stranger cannot tell an unknown token from a wrong secret: both get the same
    // answer. Comparing hashes takes the same time wherever they differ.
    let secret = found.as_ref().map_or([0; SECRET], |f| f.secret);
    let expected = make(connection, purpose, &secret, request).ok_or("TLS gave no session key")?;
    let proved = expected == blake3::Hash::from_bytes(proof);
    match found.filter(|_| proved) {
        None => Err("the token's secret is wrong: copy the token that the coordinator prints now".to_owned()),
        Some(found) => found.refused.map_or(Ok(()), |reason| Err(format!("{reason}: make another with `coordinator token new RUN`"))),
    }
}
