#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use super::messages::{Answer, MESSAGE_MAX, Question};
use super::visitor::{self, Direction};
use super::*;
use crate::net::visit::Visitor;
use crate::net::{Alpn, Authority, COORDINATOR, Endpoint, Role, Token};
use crate::ui::{Finding, Verdict};
use crate::wire::{read_message, write_message};

const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

struct Served {
    _keys: tempfile::TempDir,
    address: SocketAddr,
    token: Token,
    /// Peers that came for anything but a diagnosis.
    others: Arc<AtomicUsize>,
}

/// A coordinator that answers diagnoses.
fn serve(trains: bool) -> Served {
    let keys = tempfile::tempdir().unwrap();
    let authority = Arc::new(Authority::open(keys.path()).unwrap());
    let token = authority.tokens().standing(SystemTime::now()).unwrap();
    let endpoint = Endpoint::bind(LOCAL, &authority.identity(COORDINATOR).unwrap(), Role::Coordinator).unwrap();
    let address = endpoint.local_addr().unwrap();
    let (diagnoses, others) = (Arc::new(Diagnoses::default()), Arc::<AtomicUsize>::default());
    let counted = Arc::clone(&others);
    tokio::spawn(async move {
        while let Some(peer) = endpoint.accept().await {
            let (diagnoses, authority) = (Arc::clone(&diagnoses), Arc::clone(&authority));
            if peer.alpn == Alpn::Doctor {
                tokio::spawn(async move { diagnoses.serve(peer, &authority, trains).await });
            } else {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    Served { _keys: keys, address, token, others }
}

fn examination(served: &Served, token: Option<Token>) -> Examination {
    Examination { coordinator: served.address.to_string(), token, listen: LOCAL }
}

fn finding<'a>(findings: &'a [Finding], name: &str) -> &'a Finding {
    findings.iter().find(|finding| finding.name == name).unwrap_or_else(|| panic!("no {name} in {findings:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_of_a_network_is_measured_and_nobody_enrols() {
    let served = serve(true);
    let findings = examine(&examination(&served, Some(served.token.clone()))).await;
    let names: Vec<&str> = findings.iter().map(|finding| finding.name.as_str()).collect();
    let expected = [
        "name",
        "route",
        "UDP",
        "coordinator",
        "seen as",
        "UDP from others",
        "round trip",
        "clock",
        "to coordinator",
        "from coordinator",
        "packet size",
        "lost",
    ];
    assert_eq!(names, expected);
    assert!(findings.iter().all(|finding| finding.verdict != Verdict::Fail), "{findings:#?}");
    for name in ["name", "route", "UDP", "coordinator", "seen as", "UDP from others", "clock", "packet size"] {
        assert_eq!(finding(&findings, name).verdict, Verdict::Ok, "{findings:#?}");
    }
    assert!(finding(&findings, "coordinator").value.contains("a ring trains"));
    assert_eq!(served.others.load(Ordering::Relaxed), 0);
    // While a ring trains, the next one has to wait.
    let again = examine(&examination(&served, Some(served.token.clone()))).await;
    let refused = finding(&again, "coordinator");
    assert!(refused.verdict == Verdict::Fail && refused.value.contains("try again in"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_token_a_coordinator_shows_that_it_is_there_and_no_more() {
    let served = serve(false);
    let findings = examine(&examination(&served, None)).await;
    assert_eq!(findings.len(), 4, "{findings:#?}");
    assert!(finding(&findings, "coordinator").advice.as_ref().unwrap().contains("--token"));
    assert_eq!(finding(&findings, "UDP").verdict, Verdict::Ok);

    let secret = [7; 16];
    for (token, said) in [
        (Token { secret, ..served.token.clone() }, "secret is wrong"),
        (Token { fingerprint: [7; 32], ..served.token.clone() }, "another run"),
    ] {
        let findings = examine(&examination(&served, Some(token))).await;
        let refused = findings.last().unwrap();
        assert!(findings.len() == 4 && refused.verdict == Verdict::Fail && refused.value.contains(said), "{findings:#?}");
    }
    let nowhere = Examination { coordinator: "nowhere.invalid:7474".to_owned(), ..examination(&served, None) };
    let findings = examine(&nowhere).await;
    assert_eq!((findings.len(), findings[0].verdict), (1, Verdict::Fail));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_visitor_gets_no_more_than_its_share_and_a_second_one_waits() {
    let served = serve(true);
    let visitor = Visitor::new(served.address, &served.token).unwrap();
    let connection = visitor.connect().await.unwrap();
    let other = Visitor::new(served.address, &served.token).unwrap();
    assert!(other.connect().await.unwrap_err().to_string().contains("another machine measures"));
    let bytes = visitor::terms(&connection).await.unwrap().bytes;
    let mut moved = 0;
    let connections = [connection];
    for round in 0..8 {
        let direction = if round % 2 == 0 { Direction::Up } else { Direction::Down };
        moved += visitor::transfer(&connections, direction, bytes).await.unwrap().bytes;
    }
    assert!(moved > bytes && moved <= 4 * bytes, "{moved} of {bytes} a time");
    // Datagrams go to the visitor's own address alone, a few times.
    let listening: Vec<_> = [(); 6].iter().map(|()| visitor::knock(&connections[0], LOCAL)).collect();
    let mut arrived = Vec::new();
    for knocked in listening {
        arrived.push(knocked.await.is_ok_and(|(_, arrived)| arrived));
    }
    assert_eq!(arrived, [true, true, true, true, false, false]);
    // The visit ends with its connection, and while a ring trains there is a pause.
    connections[0].close(0u32.into(), b"");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(other.connect().await.unwrap_err().to_string().contains("try again in"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn senseless_questions_end_nothing_but_themselves() {
    let served = serve(false);
    let connection = Visitor::new(served.address, &served.token).unwrap().connect().await.unwrap();
    for bytes in [&[0xff; 400][..], &[0, 0, 0, 1], &[]] {
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        send.write_all(bytes).await.unwrap();
        let _ = send.finish();
        assert!(!matches!(receive.read_to_end(100).await, Ok(answer) if !answer.is_empty()));
    }
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    write_message(&mut send, &Question::Clock).await.unwrap();
    assert!(matches!(read_message::<Answer>(&mut receive, MESSAGE_MAX).await.unwrap(), Some(Answer::Clock { .. })));
}
