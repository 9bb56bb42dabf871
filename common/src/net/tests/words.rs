//! Text from peers is shown to people, and no terminal interprets it.

use quinn::{ConnectionError, VarInt};
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::pki_types::CertificateDer;

use super::*;

const EVIL: &str = "gone\n\x1b[2J\x1b]0;pwned\x07 error: all is lost\u{202e}\u{2028}";

fn is_fit_to_show(text: &str) -> bool {
    text == crate::ui::visible_within(text, 1000)
}

#[tokio::test]
async fn the_reason_for_which_a_peer_closes_is_escaped() {
    let (_dir, authority) = authority();
    let (worker, address) = bind(&authority, "worker-1", Role::Worker);
    let (other, _) = bind(&authority, "worker-2", Role::Worker);
    let connection = other.connect(address, "worker-1", Alpn::Ring).await.unwrap();
    let peer = worker.accept_ring().await.unwrap();
    connection.close(VarInt::from_u32(0), EVIL.as_bytes());
    let shown = closing::explain(&peer.connection.closed().await);
    assert!(is_fit_to_show(&shown) && shown.contains("gone\\n\\u{1b}[2J"), "{shown:?}");
    let long = other.connect(address, "worker-1", Alpn::Ring).await.unwrap();
    let peer = worker.accept_ring().await.unwrap();
    long.close(VarInt::from_u32(0), &[b'x'; 1000]);
    let shown = closing::explain(&peer.connection.closed().await);
    assert!(shown.chars().count() <= 300 && shown.ends_with('…'), "{shown}");
}

#[tokio::test]
async fn a_refusal_of_the_coordinator_is_escaped() {
    let (_dir, authority) = authority();
    let (coordinator, address) = bind(&authority, COORDINATOR, Role::Coordinator);
    let admitting = async {
        let peer = coordinator.accept().await.unwrap();
        enrolment::admit(peer, &authority, async |_| Err(EVIL.to_owned())).await
    };
    let token = token(&authority);
    let (identity, admitted) = tokio::join!(enrolment::enrol(address, &token), admitting);
    for shown in [identity.unwrap_err().to_string(), admitted.unwrap_err().to_string()] {
        assert!(is_fit_to_show(&shown) && shown.contains("all is lost"), "{shown:?}");
    }
}

#[test]
fn a_certificate_cannot_name_anybody_in_other_than_plain_letters() {
    let key = KeyPair::generate().unwrap();
    let named = |name: &str| {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::DnsName(name.try_into().unwrap())];
        let certificate = params.self_signed(&key).unwrap();
        tls::name_in(&CertificateDer::from(certificate.der().to_vec()))
    };
    assert_eq!(named("worker-3").as_deref(), Some("worker-3"));
    for name in ["worker\n3", "\x1b[2Jworker-3", "worker 3", "worker-3\x7f", "`worker-3`"] {
        assert_eq!(named(name), None, "{name:?}");
    }
}

#[tokio::test]
async fn only_a_peer_that_closes_on_purpose_is_taken_to_be_gone() {
    let (_dir, authority) = authority();
    let (worker, address) = bind(&authority, "worker-1", Role::Worker);
    let (other, _) = bind(&authority, "worker-2", Role::Worker);
    let connection = other.connect(address, "worker-1", Alpn::Ring).await.unwrap();
    let peer = worker.accept_ring().await.unwrap();
    drop(connection);
    assert!(!closed_by_peer(&peer.connection.closed().await), "it may have made another one");
    for lost in [ConnectionError::TimedOut, ConnectionError::Reset, ConnectionError::LocallyClosed] {
        assert!(!closed_by_peer(&lost), "{lost}");
    }
    let ended = other.connect(address, "worker-1", Alpn::Ring).await.unwrap();
    let peer = worker.accept_ring().await.unwrap();
    other.close().await;
    assert!(closed_by_peer(&peer.connection.closed().await), "its program has ended");
    assert!(!closed_by_peer(&ended.closed().await), "this side has closed it itself");
}
