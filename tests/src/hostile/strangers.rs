//! Strangers without a certificate that connect as if to enrol, and send nothing.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::net::{Alpn, COORDINATOR};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Endpoint, EndpointConfig, TokioRuntime};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::watch;

/// How soon a stranger that was turned away connects again. Most wait for a while,
/// and the first `EAGER` ones hardly at all, so that no place stays free.
const AGAIN: Duration = Duration::from_secs(10);
const AGAIN_EAGER: Duration = Duration::from_millis(300);
const EAGER: usize = 100;

/// The time within which all strangers connect.
const ARRIVE_WITHIN: Duration = Duration::from_secs(10);

/// What has happened to idle strangers so far.
#[derive(Debug, Default)]
pub struct Counts {
    pub tried: AtomicUsize,
    /// Connections that are open now.
    pub open: AtomicUsize,
    /// Connections that were made and ended by the other side.
    pub ended: AtomicUsize,
}

/// What a test wants of its strangers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    ComeBack,
    /// Whoever is turned away stays away.
    StayAway,
    Stop,
}

/// Connects `count` strangers within ten seconds, half of them from one address and
/// the others from many. Each sends nothing, and connects again some time after it
/// was turned away, as `orders` say. They compute nothing while they wait.
pub async fn idle(run: &Path, coordinator: SocketAddr, count: usize, counts: Arc<Counts>, orders: watch::Receiver<Order>) {
    let config = client(run);
    let mut here = tokio::task::JoinSet::new();
    for n in 0..count {
        let again = if n < EAGER { AGAIN_EAGER } else { AGAIN };
        let from = if n % 2 == 0 { 2 } else { 3 + (n / 2 % 50) as u8 };
        let (config, counts, mut orders) = (config.clone(), Arc::clone(&counts), orders.clone());
        let mut stop = orders.clone();
        here.spawn(async move {
            let coming = async {
                loop {
                    counts.tried.fetch_add(1, Ordering::Relaxed);
                    stay(from, &config, coordinator, &counts).await;
                    tokio::time::sleep(again).await;
                    let _ = orders.wait_for(|order| *order == Order::ComeBack).await;
                }
            };
            tokio::select! {
                () = coming => {}
                _ = stop.wait_for(|order| *order == Order::Stop) => {}
            }
        });
        tokio::time::sleep(ARRIVE_WITHIN / count as u32).await;
    }
    while here.join_next().await.is_some() {}
}

/// One connection, from its attempt to its end.
async fn stay(from: u8, config: &ClientConfig, coordinator: SocketAddr, counts: &Counts) {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::new(127, 0, 0, from), 0)).unwrap_or_else(|e| panic!("127.0.0.{from}: {e}"));
    let mut large = EndpointConfig::default();
    // Loopback's first packets are larger than those of a network.
    large.max_udp_payload_size(65_000).unwrap_or_else(|e| panic!("{e}"));
    let endpoint = Endpoint::new(large, None, socket, Arc::new(TokioRuntime)).unwrap_or_else(|e| panic!("{e}"));
    let connecting = endpoint.connect_with(config.clone(), coordinator, COORDINATOR).unwrap_or_else(|e| panic!("{e}"));
    let Ok(connection) = connecting.await else { return };
    counts.open.fetch_add(1, Ordering::Relaxed);
    connection.closed().await;
    counts.open.fetch_sub(1, Ordering::Relaxed);
    counts.ended.fetch_add(1, Ordering::Relaxed);
}

/// A stranger needs no certificate; it knows the run's authority, so that the
/// handshake does not fail on its side.
fn client(run: &Path) -> ClientConfig {
    let path = run.join("keys/ca.pem");
    let authority = CertificateDer::from_pem_file(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut roots = RootCertStore::empty();
    roots.add(authority).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
    let mut config = config.unwrap_or_else(|e| panic!("{e}")).with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![Alpn::Enrol.as_bytes().to_vec()];
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap_or_else(|e| panic!("{e}"))));
    let mut transport = quinn::TransportConfig::default();
    // The strangers do not go away by themselves.
    transport.keep_alive_interval(Some(Duration::from_secs(2)));
    config.transport_config(Arc::new(transport));
    config
}
