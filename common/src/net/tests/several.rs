//! Nodes that have several addresses, and coordinators that are not there yet.

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Instant;

use super::*;

/// An address that nobody answers at, for as long as the socket lives.
fn silent() -> (UdpSocket, String) {
    let socket = UdpSocket::bind(local()).unwrap();
    let address = socket.local_addr().unwrap().to_string();
    (socket, address)
}

fn socket() -> OpenSocket {
    BoundSocket::bind((Ipv4Addr::UNSPECIFIED, 0).into()).unwrap().open().unwrap()
}

/// Admits whoever comes.
fn serving(coordinator: Endpoint, authority: Arc<Authority>) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        while let Some(peer) = coordinator.accept().await {
            if peer.alpn == Alpn::Enrol {
                let _ = enrolment::admit(peer, &authority, async |_| Ok(worker_name(3))).await;
            }
        }
    })
}

#[tokio::test]
async fn the_address_that_answers_with_the_right_certificate_wins_and_one_port_does_all() {
    let ((_dir, ours), (_dir2, theirs)) = (authority(), authority());
    let (_other, other) = bind(&theirs, COORDINATOR, Role::Coordinator);
    let (coordinator, here) = bind(&ours, COORDINATOR, Role::Coordinator);
    let token = token(&ours);
    let serving = serving(coordinator, Arc::new(ours));
    let (_held, silent) = silent();
    let (start, socket) = (Instant::now(), socket());
    let port = socket.quinn.local_addr().unwrap().port();
    let named = [silent, other.to_string(), here.to_string()];
    let enrolled = enrolment::enrol_by(&socket, &named, &token, None).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert_eq!(enrolled.identity.name, "worker-3");
    let worker = Endpoint::serve_on(socket, &enrolled.identity, Role::Worker, None).unwrap();
    assert_eq!(worker.local_addr().unwrap().port(), port);
    let start = Instant::now();
    let connect = || worker.connect_any(&enrolled.coordinator, COORDINATOR, Alpn::Bulk, Duration::from_secs(3));
    assert_eq!(connect().await.unwrap().remote_address().port(), here.port());
    let first = start.elapsed();
    assert_eq!(connect().await.unwrap().remote_address().port(), here.port());
    assert!(start.elapsed() - first < Duration::from_millis(90), "the address that answered is remembered");
    // The same port accepts, too.
    let (other, _) = bind(&Authority::open(_dir.path()).unwrap(), "worker-9", Role::Worker);
    other.connect((Ipv4Addr::LOCALHOST, port).into(), "worker-3", Alpn::Ring).await.unwrap();
    assert_eq!(worker.accept_ring().await.unwrap().name.as_deref(), Some("worker-9"));
    serving.abort();
}

#[tokio::test]
async fn when_no_address_leads_there_each_is_named_with_its_cause() {
    let ((_dir, ours), (_dir2, theirs)) = (authority(), authority());
    let (_other, other) = bind(&theirs, COORDINATOR, Role::Coordinator);
    let (_held, silent) = silent();
    let named = [silent.clone(), other.to_string()];
    let start = Instant::now();
    let error = enrolment::enrol_by(&socket(), &named, &token(&ours), Some(Duration::from_secs(600))).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains(&format!("at {silent}: nothing was heard")) && text.contains(&format!("{other} belongs to another run")),
        "{text}"
    );
    assert!(!error.is_transient() && start.elapsed() < Duration::from_secs(20), "another run's certificate ends it at once");

    let (worker, _) = bind(&ours, "worker-1", Role::Worker);
    let (_foreign, foreign) = bind(&theirs, "worker-2", Role::Worker);
    let addresses = [silent.parse().unwrap(), foreign];
    let error = worker.connect_any(&addresses, "worker-2", Alpn::Ring, Duration::from_secs(3)).await.unwrap_err().to_string();
    assert!(error.contains(&silent) && error.contains("not of this run"), "{error}");
}

#[tokio::test]
async fn a_coordinator_that_is_not_there_yet_is_waited_for_and_a_wrong_token_is_not() {
    let (_dir, authority) = authority();
    let (held, address) = silent();
    let token = token(&authority);
    let (socket, named) = (socket(), [address.clone()]);
    let wait = Some(Duration::from_secs(60));
    let coming = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(600)).await;
        drop(held);
        let identity = authority.identity(COORDINATOR).unwrap();
        serving(Endpoint::bind(address.parse().unwrap(), &identity, Role::Coordinator).unwrap(), Arc::new(authority)).await
    });
    let enrolled = enrolment::enrol_by(&socket, &named, &token, wait).await;
    assert_eq!(enrolled.unwrap().identity.name, "worker-3");
    let (start, wrong) = (Instant::now(), Token { secret: [7; 16], ..token });
    let refused = enrolment::enrol_by(&socket, &named, &wrong, wait).await.unwrap_err();
    assert!(matches!(refused, EnrolmentError::Refused { .. }) && start.elapsed() < Duration::from_secs(5), "{refused}");
    coming.abort();
}

#[tokio::test]
async fn names_are_host_and_port_and_one_without_an_address_is_passed_over() {
    let bad = enrolment::resolve(&["nowhere".to_owned()]).await.unwrap_err();
    assert!(bad.to_string().contains("host:port") && !bad.is_transient(), "{bad}");
    let unknown = "coordinator.invalid:7474".to_owned();
    let error = enrolment::resolve(std::slice::from_ref(&unknown)).await.unwrap_err();
    assert!(matches!(&error, EnrolmentError::Unknown { named, .. } if *named == unknown), "{error}");
    let here: SocketAddr = "[::1]:7".parse().unwrap();
    assert_eq!(enrolment::resolve(&[unknown, here.to_string()]).await.unwrap(), [here]);
}
