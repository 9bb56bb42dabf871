//! Strangers without a certificate that connect as if to enrol, and send nothing.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use common::net::{Alpn, COORDINATOR};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Endpoint, EndpointConfig, TokioRuntime};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// How soon a stranger that was turned away connects again. Most wait for a while,
/// and the first `EAGER` ones hardly at all, so that no place stays free.
const AGAIN: Duration = Duration::from_secs(10);
const AGAIN_EAGER: Duration = Duration::from_millis(300);
const EAGER: usize = 100;

/// How often a connection is checked, and the time within which all strangers connect.
const LOOK: Duration = Duration::from_millis(100);
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

/// What a test tells its strangers.
#[derive(Debug, Default)]
pub struct Orders {
    /// Whoever is turned away stays away.
    pub stay_away: AtomicBool,
    pub stop: AtomicBool,
}

/// Connects `count` strangers within ten seconds, half of them from one address and
/// the others from many. Each sends nothing, and connects again some time after it
/// was turned away, until told to stay away or to stop.
pub async fn idle(run: &Path, coordinator: SocketAddr, count: usize, counts: Arc<Counts>, orders: Arc<Orders>) {
    let config = client(run);
    let mut here = tokio::task::JoinSet::new();
    for n in 0..count {
        let again = if n < EAGER { AGAIN_EAGER } else { AGAIN };
        let from = if n % 2 == 0 { 2 } else { 3 + (n / 2 % 50) as u8 };
        let (config, counts, orders) = (config.clone(), Arc::clone(&counts), Arc::clone(&orders));
        here.spawn(async move {
            let stop = &orders.stop;
            while !stop.load(Ordering::Relaxed) {
                counts.tried.fetch_add(1, Ordering::Relaxed);
                stay(from, &config, coordinator, &counts, stop).await;
                let mut waited = Duration::ZERO;
                while (waited < again || orders.stay_away.load(Ordering::Relaxed)) && !stop.load(Ordering::Relaxed) {
                    tokio::time::sleep(LOOK).await;
                    waited += LOOK;
                }
            }
        });
        tokio::time::sleep(ARRIVE_WITHIN / count as u32).await;
    }
    while here.join_next().await.is_some() {}
}

/// One connection, from its attempt to its end.
async fn stay(from: u8, config: &ClientConfig, coordinator: SocketAddr, counts: &Counts, stop: &AtomicBool) {
    let socket = std::net::UdpSocket::bind((Ipv4Addr::new(127, 0, 0, from), 0)).unwrap_or_else(|e| panic!("127.0.0.{from}: {e}"));
    let mut large = EndpointConfig::default();
    // Loopback's first packets are larger than those of a network.
    large.max_udp_payload_size(65_000).unwrap_or_else(|e| panic!("{e}"));
    let endpoint = Endpoint::new(large, None, socket, Arc::new(TokioRuntime)).unwrap_or_else(|e| panic!("{e}"));
    let connecting = endpoint.connect_with(config.clone(), coordinator, COORDINATOR).unwrap_or_else(|e| panic!("{e}"));
    let Ok(connection) = connecting.await else { return };
    counts.open.fetch_add(1, Ordering::Relaxed);
    while !stop.load(Ordering::Relaxed) && connection.close_reason().is_none() {
        tokio::time::sleep(LOOK).await;
    }
    counts.open.fetch_sub(1, Ordering::Relaxed);
    if connection.close_reason().is_some() {
        counts.ended.fetch_add(1, Ordering::Relaxed);
    }
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
