//! How a worker without a certificate gets one. Over TLS it checks that the
//! coordinator belongs to the authority that its token pins, and proves that it
//! knows the token's secret by a keyed hash over this TLS session and its own
//! request; neither the secret nor anything that another session could use
//! crosses the wire.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rcgen::{CertificateParams, KeyPair};
use rkyv::{Archive, Deserialize, Serialize};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::authority::Authority;
use super::closing::BUSY;
use super::error::{AuthorityError, NetError};
use super::identity::Identity;
use super::peer::Peer;
use super::pinned::PinnedClient;
use super::protocol::Alpn;
use super::socket::OpenSocket;
use super::token::Token;
use super::{closing, proof, race, tls, tokens};
use crate::ui::visible_within;
use crate::wire::PROTOCOL;
use crate::wire::frame::{WireError, read_message, write_message};

const PURPOSE: &str = "ringleader 1 enrolment proof";
/// An exchange takes two round trips and a signature.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a newcomer may take to send its request, once it has connected.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
const MESSAGE_MAX: usize = 8 << 10;
/// The most characters that are shown of the other side's reason.
const MAX_REASON_CHARS: usize = 400;

/// How long [`enrol_by`] tries if it is not told.
const RETRY_FOR: Duration = Duration::from_secs(30);
/// The longest wait between two attempts, and the one after the first.
const LONGEST_WAIT: Duration = Duration::from_secs(2);
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// An error may pass if [`EnrolmentError::is_transient`]; after any other, a new
/// attempt would end in the same way.
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
    /// The connection was lost, or was closed in favour of others.
    #[error("the enrolment with {address} broke off: {cause}")]
    Broken { address: SocketAddr, cause: String },
    #[error("the enrolment with {address} failed: {cause}")]
    Failed { address: SocketAddr, cause: String },
    #[error("`{named}` is not the host:port of a coordinator")]
    Address { named: String },
    #[error("no address of `{named}` is known: {source}")]
    Unknown { named: String, source: std::io::Error },
    /// None of several addresses led to the coordinator.
    #[error("the coordinator was found at none of its {} addresses: {}", tried.len(), causes(tried))]
    Nowhere { tried: Vec<EnrolmentError> },
}

fn causes(tried: &[EnrolmentError]) -> String {
    tried.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl EnrolmentError {
    /// Whether another attempt may succeed: the coordinator did not answer, had no
    /// place, or the connection was lost. A refusal is final.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Net(NetError::Connect { transient, .. }) => *transient,
            Self::Broken { .. } => true,
            // A coordinator that is not there yet may be at any of them.
            Self::Nowhere { tried } => tried.iter().all(Self::is_transient),
            Self::OtherRun { .. }
            | Self::Refused { .. }
            | Self::Refuse { .. }
            | Self::Net(_)
            | Self::Authority(_)
            | Self::Address { .. }
            | Self::Unknown { .. }
            | Self::Failed { .. } => false,
        }
    }
}

#[derive(Archive, Serialize, Deserialize)]
struct Request {
    protocol: u32,
    /// A PKCS#10 request: the worker's public key, signed by itself.
    certificate_request: Vec<u8>,
    /// The id of the token whose secret is proved.
    token: String,
    proof: [u8; 32],
}

#[derive(Archive, Serialize, Deserialize)]
enum Reply {
    Welcome { certificate: Vec<u8> },
    Refused { reason: String },
}

/// A worker that was let in.
#[derive(Debug)]
pub struct Enrolled {
    pub identity: Identity,
    /// The coordinator's addresses.
    pub coordinator: Vec<SocketAddr>,
}

/// Worker side: gets a fresh certificate from a coordinator that has these addresses
/// (host:port each, best first), of which the first that answers as the coordinator of
/// the token's run is used. Tries for half a minute while the coordinator does not answer
/// or has no place for newcomers; or, where it may not be there yet, for as long as `wait`
/// says. What is refused is not tried again.
pub async fn enrol_by(socket: &OpenSocket, named: &[String], token: &Token, wait: Option<Duration>) -> Result<Enrolled, EnrolmentError> {
    let (start, mut attempts) = (Instant::now(), 0u32);
    let patience = wait.unwrap_or(RETRY_FOR);
    loop {
        let outcome = match resolve(named).await {
            Ok(mut coordinator) => {
                // A machine without IPv6 is no reason to give up the other addresses.
                if coordinator.iter().any(|address| socket.has_family_of(*address)) {
                    coordinator.retain(|address| socket.has_family_of(*address));
                }
                attempt(socket, &coordinator, token).await.map(|identity| Enrolled { identity, coordinator })
            }
            Err(error) => Err(error),
        };
        let error = match outcome {
            Ok(enrolled) => return Ok(enrolled),
            Err(error) => error,
        };
        attempts = attempts.saturating_add(1);
        let mut random = [0; 4];
        let pause = back_off(attempts, tls::random(&mut random).map_or(0, |()| u32::from_le_bytes(random)));
        let passes = error.is_transient() || (wait.is_some() && matches!(error, EnrolmentError::Unknown { .. }));
        if !passes || start.elapsed() + pause > patience {
            return Err(error);
        }
        match wait {
            None => tracing::warn!("{error}; trying again"),
            Some(wait) if attempts == 1 => {
                tracing::info!(
                    "no coordinator answers at {} yet: waiting {} at most for it",
                    named.join(", "),
                    humantime::format_duration(wait)
                );
            }
            Some(_) => tracing::debug!("{error}; trying again"),
        }
        tokio::time::sleep(pause).await;
    }
}

/// [`enrol_by`] one address, over a socket of its own.
pub async fn enrol(address: SocketAddr, token: &Token) -> Result<Identity, EnrolmentError> {
    let socket = OpenSocket::towards(address)?;
    Ok(enrol_by(&socket, &[address.to_string()], token, None).await?.identity)
}

/// The addresses of a node that is named by these (host:port each), in their order. A name
/// that has no address is left out, as long as another has one.
pub async fn resolve(named: &[String]) -> Result<Vec<SocketAddr>, EnrolmentError> {
    let (mut addresses, mut problem) = (Vec::new(), None);
    for name in named {
        match tokio::net::lookup_host(name).await {
            Ok(found) => found.for_each(|address| {
                if !addresses.contains(&address) {
                    addresses.push(address)
                }
            }),
            Err(e) if e.kind() == std::io::ErrorKind::InvalidInput => return Err(EnrolmentError::Address { named: name.clone() }),
            Err(source) => problem = Some(EnrolmentError::Unknown { named: name.clone(), source }),
        }
    }
    match problem {
        Some(problem) if addresses.is_empty() => Err(problem),
        _ => Ok(addresses),
    }
}

/// How long to wait after `attempts` failed attempts: twice as long each time up to a
/// bound, and shortened by up to a half at random, so that workers that were refused
/// together do not all come back together.
fn back_off(attempts: u32, random: u32) -> Duration {
    let doublings = attempts.saturating_sub(1).min(16);
    let longest = FIRST_WAIT.saturating_mul(1 << doublings).min(LONGEST_WAIT);
    longest - longest.mul_f64(f64::from(random) / f64::from(u32::MAX) / 2.0)
}

/// Connects to the first of these addresses at which the token's coordinator answers.
async fn reach(
    socket: &OpenSocket,
    addresses: &[SocketAddr],
    token: &Token,
) -> Result<(SocketAddr, quinn::Connection, PinnedClient), EnrolmentError> {
    let connect = async |address: SocketAddr| {
        let pinned = PinnedClient::new(socket, address, token, Alpn::Enrol, TIMEOUT)?;
        match pinned.connect().await {
            Err(_) if pinned.met_another() => Err(EnrolmentError::OtherRun { address }),
            other => Ok((other?, pinned)),
        }
    };
    match race::first(addresses, connect).await {
        Ok((address, (connection, pinned))) => Ok((address, connection, pinned)),
        Err(mut tried) if tried.len() == 1 => Err(tried.remove(0).1),
        Err(tried) => Err(EnrolmentError::Nowhere { tried: tried.into_iter().map(|(_, error)| error).collect() }),
    }
}

async fn attempt(socket: &OpenSocket, addresses: &[SocketAddr], token: &Token) -> Result<Identity, EnrolmentError> {
    let key = KeyPair::generate().map_err(AuthorityError::from)?;
    let request = CertificateParams::default().serialize_request(&key).map_err(AuthorityError::from)?;
    let request = request.der().to_vec();
    let (address, connection, pinned) = reach(socket, addresses, token).await?;
    let broken = |cause: String| EnrolmentError::Broken { address, cause: visible_within(&cause, MAX_REASON_CHARS) };
    let failed = |cause: &str| EnrolmentError::Failed { address, cause: cause.to_owned() };

    let exchange = async {
        let (mut send, mut receive) = connection.open_bi().await.map_err(|e| broken(closing::explain(&e)))?;
        let proof = proof::make(&connection, PURPOSE, &token.secret, &request).ok_or_else(|| failed("TLS gave no session key"))?;
        let message =
            Request { protocol: PROTOCOL, certificate_request: request, token: tokens::id(&token.secret), proof: *proof.as_bytes() };
        let lost = |e: WireError| broken(closing::explain_failure(&connection, &e));
        write_message(&mut send, &message).await.map_err(lost)?;
        let _ = send.finish();
        match read_message::<Reply>(&mut receive, MESSAGE_MAX).await {
            Err(e @ (WireError::TooLong { .. } | WireError::Invalid { .. })) => {
                Err(failed(&visible_within(&e.to_string(), MAX_REASON_CHARS)))
            }
            other => other.map_err(lost),
        }
    };
    let reply = tokio::time::timeout(TIMEOUT, exchange).await.map_err(|_| broken("no answer came".to_owned()))??;
    connection.close(0u32.into(), b"");
    let certificate = match reply {
        Some(Reply::Welcome { certificate }) => CertificateDer::from(certificate),
        Some(Reply::Refused { reason }) => {
            return Err(EnrolmentError::Refused { address, reason: visible_within(&reason, MAX_REASON_CHARS) });
        }
        None => return Err(broken("it ended without an answer".to_owned())),
    };
    let name = tls::name_in(&certificate).ok_or_else(|| failed("the certificate holds no name"))?;
    let authority = pinned.authority().ok_or_else(|| failed("the authority was not shown"))?;
    Ok(Identity::new(name, certificate, authority, PrivateKeyDer::Pkcs8(key.serialize_der().into())))
}

/// Coordinator side: answers a peer that connected for [`Alpn::Enrol`]. Once the worker
/// has proved a token's secret, `name` is called with the id of that token and returns
/// the worker's name, which is the result.
pub async fn admit<N>(peer: Peer, authority: &Authority, name: impl FnOnce(String) -> N) -> Result<String, EnrolmentError>
where
    N: Future<Output = Result<String, String>>,
{
    let connection = &peer.connection;
    let address = connection.remote_address();
    let broken = |cause: String| EnrolmentError::Broken { address, cause: visible_within(&cause, MAX_REASON_CHARS) };
    let request = async {
        let (send, mut receive) = connection.accept_bi().await.map_err(|e| broken(closing::explain(&e)))?;
        Ok::<_, EnrolmentError>((send, read_message::<Request>(&mut receive, MESSAGE_MAX).await))
    };
    let exchange = async {
        let Ok(request) = tokio::time::timeout(REQUEST_TIMEOUT, request).await else {
            connection.close(BUSY, b"no request to enrol came in time: try again");
            return Err(broken(format!("no request came within {REQUEST_TIMEOUT:?}")));
        };
        let (mut send, request) = request?;
        let decided = match request {
            Ok(Some(request)) => decide(&peer, authority, &request, name).await,
            Ok(None) => Err("no request came".to_owned()),
            // Only the log here describes the bytes; the stranger gets no details.
            Err(problem @ WireError::Io(_)) => return Err(broken(closing::explain_failure(connection, &problem))),
            Err(_) => Err("the request is not valid: the worker may be of another version".to_owned()),
        };
        let reply = match &decided {
            Ok((_, certificate)) => Reply::Welcome { certificate: certificate.to_vec() },
            Err(reason) => Reply::Refused { reason: reason.clone() },
        };
        write_message(&mut send, &reply).await.map_err(|e| broken(closing::explain_failure(connection, &e)))?;
        let _ = send.finish();
        // The worker closes once it has read the answer.
        connection.closed().await;
        decided
            .map(|(name, _)| name)
            .map_err(|reason| EnrolmentError::Refuse { address, reason: visible_within(&reason, MAX_REASON_CHARS) })
    };
    tokio::time::timeout(TIMEOUT, exchange).await.map_err(|_| broken("it took too long".to_owned()))?
}

async fn decide<N>(
    peer: &Peer,
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
    proof::check(&peer.connection, authority, PURPOSE, &request.token, &request.certificate_request, request.proof)?;
    // The worker now waits until the coordinator has recorded it, perhaps for a while.
    peer.prove();
    let name = name(request.token.clone()).await?;
    let certificate = authority.issue(&name, &request.certificate_request).map_err(|e| e.to_string())?;
    Ok((name, certificate))
}

#[cfg(fuzzing)]
pub(crate) async fn read_any(bytes: &[u8]) {
    let _ = read_message::<Request>(&mut &*bytes, MESSAGE_MAX).await;
    let _ = read_message::<Reply>(&mut &*bytes, MESSAGE_MAX).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_come_ever_more_slowly_and_not_all_at_once() {
        for attempts in 1..200 {
            let (soonest, latest) = (back_off(attempts, u32::MAX), back_off(attempts, 0));
            assert!(latest <= LONGEST_WAIT && latest >= back_off(attempts - 1, 0));
            assert!(soonest.abs_diff(latest / 2) < Duration::from_micros(1), "{soonest:?} {latest:?}");
        }
        assert_eq!(back_off(1, 0), FIRST_WAIT);
        assert_eq!(back_off(u32::MAX, 0), LONGEST_WAIT);
    }
}
