//! The coordinator's side of a visit.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use quinn::{RecvStream, SendStream, VarInt};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::{Instant as Deadline, timeout_at};

use super::ledger::{self, LIFETIME, Ledger};
use super::messages::{Answer, MESSAGE_MAX, PIECE, Question, Terms};
use crate::net::addresses::any_like;
use crate::net::visit::{self, VisitId};
use crate::net::{Authority, Peer};
use crate::wire::{WireError, read_message, write_message};

/// How long bytes are sent, and how long they are taken: theirs have a way to go.
const SENDS_FOR: Duration = Duration::from_secs(1);
const TAKES_FOR: Duration = Duration::from_millis(1500);

/// How often a datagram is sent to a visitor's port, and how soon again.
const KNOCK_TIMES: u32 = 3;
const KNOCK_AGAIN: Duration = Duration::from_millis(50);

/// The visits to one coordinator.
pub struct Diagnoses(Mutex<Ledger<VisitId>>);

impl Default for Diagnoses {
    fn default() -> Self {
        Self(Mutex::new(Ledger::new()))
    }
}

/// A connection of a visit, which leaves the ledger however it ends.
struct Guest<'a> {
    diagnoses: &'a Diagnoses,
    visit: VisitId,
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        self.diagnoses.ledger().leave(Instant::now(), self.visit);
    }
}

impl Diagnoses {
    fn ledger(&self) -> MutexGuard<'_, Ledger<VisitId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves a peer that connected for [`crate::net::Alpn::Doctor`] until it closes its
    /// connection, for half a minute at most. `trains`: whether a ring trains.
    ///
    /// # Errors
    /// Why the peer was refused.
    pub async fn serve(self: Arc<Self>, peer: Peer, authority: &Authority, trains: bool) -> Result<(), String> {
        let enter = |visit| self.ledger().enter(Instant::now(), visit, trains).map(|()| Guest { diagnoses: &self, visit });
        let guest = visit::receive(&peer, authority, enter).await?;
        let until = Deadline::now() + LIFETIME;
        // Answers end with the connection.
        let mut answers = JoinSet::new();
        while let Ok(Ok((send, receive))) = timeout_at(until, peer.connection.accept_bi()).await {
            let (diagnoses, visit, from) = (Arc::clone(&self), guest.visit, peer.connection.remote_address());
            answers.spawn(async move {
                if let Err(e) = diagnoses.answer(send, receive, visit, trains, from).await {
                    tracing::debug!("a visitor at {from} did not get its answer: {e}");
                }
            });
            while answers.try_join_next().is_some() {}
        }
        Ok(())
    }

    async fn answer(
        &self,
        mut send: SendStream,
        mut receive: RecvStream,
        visit: VisitId,
        trains: bool,
        from: SocketAddr,
    ) -> Result<(), WireError> {
        let Some(question) = read_message::<Question>(&mut receive, MESSAGE_MAX).await? else { return Ok(()) };
        let answer = match question {
            Question::Terms => {
                let seen = SocketAddr::new(from.ip().to_canonical(), from.port());
                Answer::Terms(Terms { version: env!("CARGO_PKG_VERSION").to_owned(), trains, bytes: ledger::bytes(trains), seen })
            }
            Question::Clock => {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                Answer::Clock { unix_micros: now.as_micros() as u64 }
            }
            Question::Knock { port, word } => {
                let may = self.ledger().knock(visit);
                let knocked =
                    if may { knock(from.ip().to_canonical(), port, word).await } else { Err("it was done often enough".to_owned()) };
                knocked.map_or_else(|reason| Answer::Refused { reason }, |()| Answer::Knocked)
            }
            Question::Download { bytes } => {
                let granted = self.ledger().take(visit, bytes);
                download(&mut send, granted).await;
                let _ = send.finish();
                return Ok(());
            }
            Question::Upload { bytes } => {
                let granted = self.ledger().take(visit, bytes);
                let bytes = take(&mut receive, granted).await;
                let _ = receive.stop(VarInt::from_u32(0));
                Answer::Received { bytes }
            }
        };
        write_message(&mut send, &answer).await?;
        let _ = send.finish();
        Ok(())
    }
}

/// Sends as many bytes as the visitor takes in the time.
async fn download(send: &mut SendStream, bytes: u64) {
    let (until, piece, mut left) = (Deadline::now() + SENDS_FOR, Bytes::from_static(&[0; PIECE]), bytes);
    while left > 0 && Deadline::now() < until {
        let part = piece.slice(..PIECE.min(left as usize));
        left -= part.len() as u64;
        if !matches!(timeout_at(until, send.write_chunk(part)).await, Ok(Ok(()))) {
            return;
        }
    }
}

/// How many bytes come in the time, up to `most`.
async fn take(receive: &mut RecvStream, most: u64) -> u64 {
    let (until, mut got) = (Deadline::now() + TAKES_FOR, 0);
    while got < most {
        let chunk = timeout_at(until, receive.read_chunk((most - got) as usize, true)).await;
        let Ok(Ok(Some(chunk))) = chunk else { break };
        got += chunk.bytes.len() as u64;
    }
    got
}

/// Sends a few bytes to a port of the visitor's own address, from a socket of its own.
async fn knock(ip: IpAddr, port: u16, word: u64) -> Result<(), String> {
    let socket = UdpSocket::bind((any_like(ip), 0)).await.map_err(|e| e.to_string())?;
    for _ in 0..KNOCK_TIMES {
        socket.send_to(&word.to_le_bytes(), (ip, port)).await.map_err(|e| e.to_string())?;
        tokio::time::sleep(KNOCK_AGAIN).await;
    }
    Ok(())
}
