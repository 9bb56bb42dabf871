//! How a worker without a certificate gets one. Over TLS it checks that the
//! coordinator belongs to the authority that its token pins, and proves that it
//! knows the token's secret by a keyed hash over this TLS session and its own
//! request; neither the secret nor anything that another session could use
//! crosses the wire.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use quinn::TokioRuntime;
use rcgen::{CertificateParams, KeyPair};
use rkyv::{Archive, Deserialize, Serialize};
use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::authority::{Authority, AuthorityError};
use super::endpoint::{self, Alpn, NetError, Peer};
use super::identity::{COORDINATOR, Identity};
use super::token::{SECRET, Token};
use super::transport::{self, Route};
use super::{tls, tokens};
use crate::wire::PROTOCOL;
use crate::wire::frame::{WireError, read_message, write_message};

/// An exchange takes two round trips and a signature.
const TIMEOUT: Duration = Duration::from_secs(10);
const MESSAGE_MAX: usize = 8 << 10;

#[derive(Debug, thiserror::Error)]
pub enum EnrolmentError {
    #[error("the coordinator at {address} belongs to another run than the token: check the address, or copy the token that it prints now")]
    OtherRun { address: SocketAddr },
    #[error("the coordinator at {address} refused this worker: {reason}")]
    Refused { address: SocketAddr, reason: String },
    #[error("refused a worker at {address}: {reason}")]
    Refuse { address: SocketAddr, reason: String },
    #[error(transparent)]
    Net(#[from] NetError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error("the enrolment with {address} broke off: {cause}")]
    Broken { address: SocketAddr, cause: String },
}

#[derive(Archive, Serialize, Deserialize)]
struct Request {
    protocol: u32,
    /// A PKCS#10 request: the worker's public key, signed by itself.
    certificate_request: Vec<u8>,
    /// Of the token whose secret is proved.
    token: String,
    proof: [u8; 32],
}

#[derive(Archive, Serialize, Deserialize)]
enum Reply {
    Welcome { certificate: Vec<u8> },
    Refused { reason: String },
}

/// What shows knowledge of the secret, in this TLS session and for this request.
fn proof(connection: &quinn::Connection, secret: &[u8; SECRET], request: &[u8]) -> Option<blake3::Hash> {
    let mut session = [0; 32];
    connection.export_keying_material(&mut session, b"EXPORTER-ringleader-enrolment", b"").ok()?;
    let key = blake3::derive_key("ringleader 1 enrolment proof", secret);
    Some(blake3::keyed_hash(&key, &[&session, request].concat()))
}

/// Worker side: gets a fresh certificate from the coordinator at `address`.
pub async fn enrol(address: SocketAddr, token: &Token) -> Result<Identity, EnrolmentError> {
    let broken = |cause: String| EnrolmentError::Broken { address, cause };
    let key = KeyPair::generate().map_err(AuthorityError::from)?;
    let request = CertificateParams::default().serialize_request(&key).map_err(AuthorityError::from)?;
    let request = request.der().to_vec();

    let pinned = tls::PinnedAuthority::new(token.fingerprint);
    let mut config = rustls::ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(NetError::from)?
        .dangerous()
        .with_custom_certificate_verifier(pinned.clone())
        .with_no_client_auth();
    config.alpn_protocols = vec![Alpn::Enrol.as_bytes().to_vec()];
    config.resumption = Resumption::disabled();
    let mut config = tls::quic_client(config)?;

    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let bound = |source| NetError::Bind { address: SocketAddr::new(any, 0), source };
    let (socket, socket_buffer) = transport::bind(SocketAddr::new(any, 0)).map_err(bound)?;
    config.transport_config(Arc::new(transport::outgoing(Alpn::Enrol, Route::to(address), socket_buffer, TIMEOUT)));
    let endpoint = quinn::Endpoint::new(transport::endpoint(), None, socket, Arc::new(TokioRuntime)).map_err(bound)?;
    let connection = match endpoint::connect(&endpoint, config, address, COORDINATOR).await {
        Err(_) if pinned.met_another() => return Err(EnrolmentError::OtherRun { address }),
        other => other?,
    };

    let exchange = async {
        let (mut send, mut receive) = connection.open_bi().await.map_err(|e| broken(endpoint::explain(&e)))?;
        let proof = proof(&connection, &token.secret, &request).ok_or_else(|| broken("TLS gave no session key".to_owned()))?;
        let message =
            Request { protocol: PROTOCOL, certificate_request: request, token: tokens::id(&token.secret), proof: *proof.as_bytes() };
        write_message(&mut send, &message).await.map_err(|e| broken(e.to_string()))?;
        let _ = send.finish();
        read_message::<Reply>(&mut receive, MESSAGE_MAX).await.map_err(|e| broken(e.to_string()))
    };
    let reply = tokio::time::timeout(TIMEOUT, exchange).await.map_err(|_| broken("no answer came".to_owned()))??;
    connection.close(0u32.into(), b"");
    let certificate = match reply {
        Some(Reply::Welcome { certificate }) => CertificateDer::from(certificate),
        Some(Reply::Refused { reason }) => return Err(EnrolmentError::Refused { address, reason }),
        None => return Err(broken("it ended without an answer".to_owned())),
    };
    let name = tls::name_in(&certificate).ok_or_else(|| broken("the certificate holds no name".to_owned()))?;
    let authority = pinned.found().cloned().ok_or_else(|| broken("the authority was not shown".to_owned()))?;
    Ok(Identity::new(name, certificate, authority, PrivateKeyDer::Pkcs8(key.serialize_der().into())))
}

/// Coordinator side: answers a peer that came for [`Alpn::Enrol`]. `name` is
/// asked for the worker's name once it has proved the secret of the token of
/// that id; what it says is returned.
pub async fn admit<N>(peer: Peer, authority: &Authority, name: impl FnOnce(String) -> N) -> Result<String, EnrolmentError>
where
    N: Future<Output = Result<String, String>>,
{
    let connection = &peer.connection;
    let address = connection.remote_address();
    let broken = |cause: String| EnrolmentError::Broken { address, cause };
    let exchange = async {
        let (mut send, mut receive) = connection.accept_bi().await.map_err(|e| broken(endpoint::explain(&e)))?;
        let request = read_message::<Request>(&mut receive, MESSAGE_MAX).await;
        let decided = match request {
            Ok(Some(request)) => decide(connection, authority, &request, name).await,
            Ok(None) => Err("no request came".to_owned()),
            // What the bytes were is for the log here, not for a stranger.
            Err(problem @ WireError::Io(_)) => return Err(broken(problem.to_string())),
            Err(_) => Err("the request is not valid: the worker may be of another version".to_owned()),
        };
        let reply = match &decided {
            Ok((_, certificate)) => Reply::Welcome { certificate: certificate.to_vec() },
            Err(reason) => Reply::Refused { reason: reason.clone() },
        };
        write_message(&mut send, &reply).await.map_err(|e| broken(e.to_string()))?;
        let _ = send.finish();
        // The worker closes once it has read the answer.
        connection.closed().await;
        decided.map(|(name, _)| name).map_err(|reason| EnrolmentError::Refuse { address, reason })
    };
    tokio::time::timeout(TIMEOUT, exchange).await.map_err(|_| broken("it took too long".to_owned()))?
}

async fn decide<N>(
    connection: &quinn::Connection,
    authority: &Authority,
    request: &Request,
    name: impl FnOnce(String) -> N,
) -> Result<(String, CertificateDer<'static>), String>
where
    N: Future<Output = Result<String, String>>,
{
    if request.protocol != PROTOCOL {
        return Err(format!("it speaks protocol {}, the coordinator {PROTOCOL}: use the same version of both", request.protocol));
    }
    let found = authority.tokens().find(&request.token, SystemTime::now()).map_err(|e| {
        tracing::error!("{e}");
        "the coordinator cannot read its tokens".to_owned()
    })?;
    // A token that is not there, and a secret that is not its own, are one to a
    // stranger. Comparing hashes takes the same time wherever they differ.
    let secret = found.as_ref().map_or([0; SECRET], |f| f.secret);
    let expected = proof(connection, &secret, &request.certificate_request).ok_or("TLS gave no session key")?;
    let proved = expected == blake3::Hash::from_bytes(request.proof);
    let Some(found) = found.filter(|_| proved) else {
        return Err("the token's secret is wrong: copy the token that the coordinator prints now".to_owned());
    };
    if let Some(reason) = found.refused {
        return Err(format!("{reason}: make another with `coordinator token new RUN`"));
    }
    let name = name(request.token.clone()).await?;
    let certificate = authority.issue(&name, &request.certificate_request).map_err(|e| e.to_string())?;
    Ok((name, certificate))
}

#[cfg(fuzzing)]
pub(crate) async fn read_any(bytes: &[u8]) {
    let _ = read_message::<Request>(&mut &*bytes, MESSAGE_MAX).await;
    let _ = read_message::<Reply>(&mut &*bytes, MESSAGE_MAX).await;
}
