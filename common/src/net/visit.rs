//! A visit: a node that knows a token's secret connects to the coordinator without
//! getting a certificate, a name, or a line of the journal. What is said on a visit is
//! for other modules.

use std::net::SocketAddr;
use std::time::Duration;

use rkyv::{Archive, Deserialize, Serialize};

use super::authority::Authority;
use super::error::NetError;
use super::peer::Peer;
use super::pinned::PinnedClient;
use super::protocol::Alpn;
use super::socket::OpenSocket;
use super::token::Token;
use super::{closing, proof, tls, tokens};
use crate::ui::visible_within;
use crate::wire::PROTOCOL;
use crate::wire::frame::{WireError, read_message, write_message};

/// How long a visitor may take to say who it is, and for how long one may be silent later.
const INTRODUCTION_TIMEOUT: Duration = Duration::from_secs(2);
const IDLE: Duration = Duration::from_secs(5);
const MESSAGE_MAX: usize = 1 << 10;
const MAX_REASON_CHARS: usize = 300;
const PURPOSE: &str = "ringleader 1 visit proof";

/// Tells the connections of one visit from those of others.
pub(crate) type VisitId = [u8; 16];

#[derive(Debug, thiserror::Error)]
pub(crate) enum VisitError {
    #[error("it belongs to another run than the token: check the address, or copy the token that the coordinator prints now")]
    OtherRun,
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Net(#[from] NetError),
    #[error("{0}")]
    Failed(String),
}

/// The first message of each connection of a visit.
#[derive(Archive, Serialize, Deserialize)]
struct Introduction {
    protocol: u32,
    visit: VisitId,
    /// The id of the token whose secret is proved.
    token: String,
    proof: [u8; 32],
}

#[derive(Archive, Serialize, Deserialize)]
enum Reply {
    Welcome,
    Refused { reason: String },
}

/// The visitor's side.
pub(crate) struct Visitor {
    client: PinnedClient,
    token: Token,
    visit: VisitId,
}

impl Visitor {
    /// A visit to the coordinator at `address`. Must be called within a tokio runtime.
    pub(crate) fn new(address: SocketAddr, token: &Token) -> Result<Self, VisitError> {
        let mut visit = [0; 16];
        tls::random(&mut visit).ok_or_else(|| VisitError::Failed("the system gives no random numbers".to_owned()))?;
        Ok(Self {
            client: PinnedClient::new(&OpenSocket::towards(address)?, address, token, Alpn::Doctor, IDLE)?,
            token: token.clone(),
            visit,
        })
    }

    /// One more connection of this visit, on which the coordinator has admitted it.
    pub(crate) async fn connect(&self) -> Result<quinn::Connection, VisitError> {
        let connection = match self.client.connect().await {
            Err(_) if self.client.met_another() => return Err(VisitError::OtherRun),
            Err(NetError::Connect { cause, .. }) if cause.contains("application protocol") => {
                return Err(VisitError::Refused(
                    "it is of a version that cannot be diagnosed: use the same version on all machines".to_owned(),
                ));
            }
            other => other?,
        };
        let answer = tokio::time::timeout(IDLE, self.introduce(&connection)).await;
        answer.unwrap_or_else(|_| Err(VisitError::Failed("no answer came".to_owned()))).map(|()| connection)
    }

    async fn introduce(&self, connection: &quinn::Connection) -> Result<(), VisitError> {
        let lost = |e: &dyn std::fmt::Display| VisitError::Failed(closing::explain_failure(connection, e));
        let proof = proof::make(connection, PURPOSE, &self.token.secret, &self.visit);
        let proof = *proof.ok_or_else(|| VisitError::Failed("TLS gave no session key".to_owned()))?.as_bytes();
        let introduction = Introduction { protocol: PROTOCOL, visit: self.visit, token: tokens::id(&self.token.secret), proof };
        let (mut send, mut receive) = connection.open_bi().await.map_err(|e| lost(&e))?;
        write_message(&mut send, &introduction).await.map_err(|e| lost(&e))?;
        let _ = send.finish();
        match read_message::<Reply>(&mut receive, MESSAGE_MAX).await.map_err(|e| lost(&e))? {
            Some(Reply::Welcome) => Ok(()),
            Some(Reply::Refused { reason }) => Err(VisitError::Refused(visible_within(&reason, MAX_REASON_CHARS))),
            None => Err(VisitError::Failed("it ended without an answer".to_owned())),
        }
    }
}

/// The coordinator's side: hears who a peer is that connected for [`Alpn::Doctor`]. If it
/// knows a token's secret, `admit` is asked whether this visit may have one more
/// connection; the reason of a refusal is sent to the visitor.
///
/// # Errors
/// Why the peer is no guest; its connection is then over.
pub(crate) async fn receive<T>(peer: &Peer, authority: &Authority, admit: impl FnOnce(VisitId) -> Result<T, String>) -> Result<T, String> {
    let connection = &peer.connection;
    let hear = async {
        let (send, mut receive) = connection.accept_bi().await.map_err(|e| closing::explain(&e))?;
        let said = read_message::<Introduction>(&mut receive, MESSAGE_MAX).await;
        Ok::<_, String>((send, said))
    };
    let Ok(heard) = tokio::time::timeout(INTRODUCTION_TIMEOUT, hear).await else {
        return Err(format!("a visitor did not say who it is within {INTRODUCTION_TIMEOUT:?}"));
    };
    let (mut send, said) = heard?;
    let admitted = match said {
        Ok(Some(introduction)) => check(peer, authority, &introduction).and_then(|()| admit(introduction.visit)),
        Ok(None) => Err("it did not say who it is".to_owned()),
        Err(problem @ WireError::Io(_)) => return Err(closing::explain_failure(connection, &problem)),
        Err(_) => Err("its introduction is not valid: it may be of another version".to_owned()),
    };
    let reply = match &admitted {
        Ok(_) => {
            peer.prove();
            peer.raise();
            Reply::Welcome
        }
        Err(reason) => Reply::Refused { reason: reason.clone() },
    };
    write_message(&mut send, &reply).await.map_err(|e| closing::explain_failure(connection, &e))?;
    let _ = send.finish();
    if admitted.is_err() {
        // The visitor closes once it has read the answer.
        let _ = tokio::time::timeout(INTRODUCTION_TIMEOUT, connection.closed()).await;
    }
    admitted
}

fn check(peer: &Peer, authority: &Authority, said: &Introduction) -> Result<(), String> {
    if said.protocol != PROTOCOL {
        return Err(format!(
            "this machine speaks protocol {}, the coordinator {PROTOCOL}: use the same version on all machines",
            said.protocol
        ));
    }
    proof::check(&peer.connection, authority, PURPOSE, &said.token, &said.visit, said.proof)
}

#[cfg(fuzzing)]
pub(crate) async fn read_any(bytes: &[u8]) {
    let _ = read_message::<Introduction>(&mut &*bytes, MESSAGE_MAX).await;
    let _ = read_message::<Reply>(&mut &*bytes, MESSAGE_MAX).await;
}
