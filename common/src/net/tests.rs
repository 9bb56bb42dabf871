#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, SystemTime};

use super::enrolment::{self, EnrolmentError};
use super::*;
use crate::wire::frame::{read_message, write_message};

mod allow_list;
mod several;
mod strangers;
mod words;

fn local() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

fn authority() -> (tempfile::TempDir, Authority) {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::open(dir.path()).unwrap();
    (dir, authority)
}

fn token(authority: &Authority) -> Token {
    authority.tokens().standing(SystemTime::now()).unwrap()
}

fn bind(authority: &Authority, name: &str, role: Role) -> (Endpoint, SocketAddr) {
    let endpoint = Endpoint::bind(local(), &authority.identity(name).unwrap(), role).unwrap();
    let address = endpoint.local_addr().unwrap();
    (endpoint, address)
}

/// A coordinator that admits one newcomer, and that newcomer's enrolment.
async fn enrol_with(token: &Token, authority: &Authority) -> (Result<Identity, EnrolmentError>, Option<Result<String, EnrolmentError>>) {
    let (coordinator, address) = bind(authority, COORDINATOR, Role::Coordinator);
    let admitting = async {
        let peer = coordinator.accept().await?;
        assert_eq!((&peer.name, peer.alpn), (&None, Alpn::Enrol));
        Some(enrolment::admit(peer, authority, async |_| Ok(worker_name(3))).await)
    };
    let enrolling = enrolment::enrol(address, token);
    tokio::pin!(admitting);
    tokio::pin!(enrolling);
    tokio::select! {
        got = &mut enrolling => {
            let admitted = tokio::time::timeout(Duration::from_millis(500), admitting).await;
            (got, admitted.ok().flatten())
        }
        admitted = &mut admitting => (enrolling.await, admitted),
    }
}

#[tokio::test]
async fn a_worker_with_the_token_gets_a_certificate_that_the_run_accepts() {
    let (_dir, authority) = authority();
    let (identity, admitted) = enrol_with(&token(&authority).to_string().parse().unwrap(), &authority).await;
    assert_eq!(admitted.unwrap().unwrap(), "worker-3");
    let identity = identity.unwrap();
    assert_eq!(identity.name, "worker-3");

    let (coordinator, address) = bind(&authority, COORDINATOR, Role::Coordinator);
    let worker = Endpoint::bind(local(), &identity, Role::Worker).unwrap();
    for alpn in [Alpn::Control, Alpn::Bulk] {
        let connection = worker.connect(address, COORDINATOR, alpn).await.unwrap();
        let peer = coordinator.accept().await.unwrap();
        assert_eq!((peer.name.as_deref(), peer.alpn), (Some("worker-3"), alpn));
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        // More than a stream's window: it must be read while it is written.
        let long = "x".repeat(300_000);
        let (written, (mut reply, read)) = tokio::join!(write_message(&mut send, &long), async {
            let (reply, mut got) = peer.connection.accept_bi().await.unwrap();
            (reply, read_message::<String>(&mut got, 1 << 20).await)
        });
        written.unwrap();
        assert_eq!(read.unwrap().unwrap().len(), 300_000);
        write_message(&mut reply, &7u64).await.unwrap();
        assert_eq!(read_message::<u64>(&mut receive, 64).await.unwrap(), Some(7));
    }
    // A worker accepts connections of another worker too.
    let (_other, other_address) = bind(&authority, "worker-9", Role::Worker);
    let connection = worker.connect(other_address, "worker-9", Alpn::Ring).await.unwrap();
    assert_eq!(_other.accept_ring().await.unwrap().name.as_deref(), Some("worker-3"));
    drop(connection);
}

#[tokio::test]
async fn a_wrong_secret_is_refused_with_a_reason() {
    let (_dir, authority) = authority();
    let mut token = token(&authority);
    token.secret[0] ^= 1;
    let (identity, admitted) = enrol_with(&token, &authority).await;
    let error = identity.unwrap_err();
    assert!(matches!(&error, EnrolmentError::Refused { reason, .. } if reason.contains("secret is wrong")), "{error}");
    assert!(matches!(admitted, Some(Err(EnrolmentError::Refuse { .. }))));
}

#[tokio::test]
async fn a_token_that_expired_or_was_revoked_is_refused_with_a_reason() {
    let (_dir, authority) = authority();
    let tokens = authority.tokens();
    let expired = tokens.create(Duration::ZERO, SystemTime::now()).unwrap();
    let revoked = tokens.create(Duration::from_secs(60), SystemTime::now()).unwrap();
    tokens.revoke(&tokens::id(&revoked.secret)).unwrap();
    for (token, word) in [(expired, "has expired"), (revoked, "was revoked")] {
        let (identity, _) = enrol_with(&token, &authority).await;
        let error = identity.unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("token new"), "{error}");
    }
    // A valid token beside them still works.
    assert!(enrol_with(&token(&authority), &authority).await.0.is_ok());
}

#[tokio::test]
async fn a_coordinator_of_another_run_is_told_apart() {
    let ((_dir, ours), (_dir2, theirs)) = (authority(), authority());
    let (identity, admitted) = enrol_with(&token(&ours), &theirs).await;
    assert!(matches!(identity, Err(EnrolmentError::OtherRun { .. })), "{identity:?}");
    assert!(admitted.is_none(), "the handshake must not complete");
}

#[tokio::test]
async fn a_worker_cannot_pass_for_the_coordinator() {
    let (_dir, authority) = authority();
    let (_impostor, address) = bind(&authority, "worker-1", Role::Coordinator);
    let error = enrolment::enrol(address, &token(&authority)).await.unwrap_err().to_string();
    assert!(error.contains("another node"), "{error}");
    let (worker, _) = bind(&authority, "worker-2", Role::Worker);
    let error = worker.connect(address, COORDINATOR, Alpn::Control).await.unwrap_err().to_string();
    assert!(error.contains("another node"), "{error}");
}

/// The client config of a stranger: it has no certificate.
fn stranger(authority: &Authority, alpn: Alpn) -> quinn::ClientConfig {
    let roots = tls::roots(authority.certificate()).unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    tls::quic_client(config).unwrap()
}

/// Connects without a client certificate and reports whether the connection
/// could be used.
async fn stranger_can_talk(authority: &Authority, address: SocketAddr, name: &str, alpn: Alpn) -> bool {
    let endpoint = quinn::Endpoint::client(local()).unwrap();
    let Ok(connection) = endpoint::connect(&endpoint, stranger(authority, alpn), address, name).await else { return false };
    // The server's verdict comes after the client's side of the handshake.
    tokio::time::timeout(Duration::from_secs(1), connection.closed()).await.is_err()
}

#[tokio::test]
async fn without_a_certificate_only_enrolment_is_possible() {
    let (_dir, authority) = authority();
    let (coordinator, at_coordinator) = bind(&authority, COORDINATOR, Role::Coordinator);
    let (worker, at_worker) = bind(&authority, "worker-1", Role::Worker);
    assert!(!stranger_can_talk(&authority, at_coordinator, COORDINATOR, Alpn::Control).await);
    assert!(!stranger_can_talk(&authority, at_coordinator, COORDINATOR, Alpn::Bulk).await);
    assert!(!stranger_can_talk(&authority, at_worker, "worker-1", Alpn::Ring).await);
    assert!(!stranger_can_talk(&authority, at_worker, "worker-1", Alpn::Bulk).await);
    assert!(stranger_can_talk(&authority, at_coordinator, COORDINATOR, Alpn::Enrol).await);
    // Only the enrolment reached the coordinator.
    assert_eq!(coordinator.accept().await.unwrap().alpn, Alpn::Enrol);
    let soon = Duration::from_millis(100);
    assert!(tokio::time::timeout(soon, coordinator.accept()).await.is_err());
    assert!(tokio::time::timeout(soon, worker.accept()).await.is_err());
    assert!(tokio::time::timeout(soon, worker.accept_ring()).await.is_err());
}

#[tokio::test]
async fn a_certificate_of_another_run_is_refused_by_both_sides() {
    let ((_dir, ours), (_dir2, theirs)) = (authority(), authority());
    let (worker, address) = bind(&ours, "worker-1", Role::Worker);
    let (foreign, foreign_address) = bind(&theirs, "worker-1", Role::Worker);
    let error = worker.connect(foreign_address, "worker-1", Alpn::Ring).await.unwrap_err().to_string();
    assert!(error.contains("not of this run"), "{error}");

    // A foreign worker that does not check our certificate, but shows its own.
    let mut config = theirs.identity("worker-2").unwrap().client_config(Alpn::Ring).unwrap();
    let pinned = tls::PinnedAuthority::new(token(&ours).fingerprint);
    config.dangerous().set_certificate_verifier(pinned);
    let endpoint = quinn::Endpoint::client(local()).unwrap();
    if let Ok(connection) = endpoint::connect(&endpoint, tls::quic_client(config).unwrap(), address, "worker-1").await {
        tokio::time::timeout(Duration::from_secs(2), connection.closed()).await.expect("it must be closed");
    }
    assert!(tokio::time::timeout(Duration::from_millis(100), worker.accept_ring()).await.is_err());
    drop(foreign);
}
