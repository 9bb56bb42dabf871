//! A visitor's measurements. They are figures; `verdicts.rs` says what they mean.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::{Instant as Deadline, timeout, timeout_at};

use super::messages::{Answer, MESSAGE_MAX, PIECE, Question, Terms};
use crate::net::explain_failure;
use crate::net::transport::STREAMS_IN_FLIGHT;
use crate::wire::{read_message, write_message};

/// How long the answer to a small question may take, and a measurement of the bandwidth.
const ANSWERED: Duration = Duration::from_secs(3);
const MEASURED: Duration = Duration::from_secs(6);

/// For how long bytes are taken: the coordinator sends for a second.
const TAKES_FOR: Duration = Duration::from_millis(1500);

/// How long a datagram to this machine may take, once it has been sent.
const KNOCKED: Duration = Duration::from_secs(1);

/// One look at the coordinator's clock.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Look {
    pub round_trip: Duration,
    /// The coordinator's clock less this machine's, if both ways took equally long, in ms.
    pub ahead_ms: f64,
}

/// Bytes that have arrived, and since they were asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Transfer {
    pub bytes: u64,
    pub took: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// From this machine to the coordinator.
    Up,
    Down,
}

pub(super) async fn terms(connection: &Connection) -> Result<Terms, String> {
    match ask(connection, &Question::Terms).await? {
        Answer::Terms(terms) => Ok(terms),
        other => Err(unexpected(&other)),
    }
}

/// Looks at the coordinator's clock so many times, one after the other.
pub(super) async fn clock(connection: &Connection, times: usize) -> Result<Vec<Look>, String> {
    let mut looks = Vec::with_capacity(times);
    for _ in 0..times {
        let (sent, start) = (unix_ms(), Instant::now());
        let Answer::Clock { unix_micros } = ask(connection, &Question::Clock).await? else {
            return Err("it did not say its time".to_owned());
        };
        let round_trip = start.elapsed();
        let ahead_ms = unix_micros as f64 / 1e3 - (sent + round_trip.as_secs_f64() * 5e2);
        looks.push(Look { round_trip, ahead_ms });
    }
    Ok(looks)
}

fn unix_ms() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64() * 1e3
}

/// Whether a datagram of the coordinator's own reaches `listen` here; and its port.
pub(super) async fn knock(connection: &Connection, listen: SocketAddr) -> Result<(u16, bool), String> {
    let socket = UdpSocket::bind(listen).await.map_err(|e| format!("could not open UDP {listen}: {e}"))?;
    let port = socket.local_addr().map_err(|e| e.to_string())?.port();
    let mut word = [0; 8];
    crate::net::random_bytes(&mut word).ok_or("the system gives no random numbers")?;
    match ask(connection, &Question::Knock { port, word: u64::from_le_bytes(word) }).await? {
        Answer::Knocked => {}
        other => return Err(unexpected(&other)),
    }
    let heard = async {
        let mut came = [0; 16];
        while let Ok((length, _)) = socket.recv_from(&mut came).await {
            if came[..length] == word {
                return true;
            }
        }
        false
    };
    Ok((port, timeout(KNOCKED, heard).await.unwrap_or(false)))
}

/// Moves at most `bytes` over all connections together, as a ring moves a bucket: in several
/// streams on each.
pub(super) async fn transfer(connections: &[Connection], direction: Direction, bytes: u64) -> Result<Transfer, String> {
    let streams = connections.len() as u64 * u64::from(STREAMS_IN_FLIGHT);
    let (mut parts, start) = (JoinSet::new(), Instant::now());
    for connection in connections {
        for _ in 0..STREAMS_IN_FLIGHT {
            let connection = connection.clone();
            parts.spawn(async move {
                let part = part(&connection, direction, bytes / streams);
                let moved = timeout(MEASURED, part).await.unwrap_or_else(|_| Err("the transfer did not end".to_owned()));
                moved.map_err(|e| explain_failure(&connection, &e))
            });
        }
    }
    let mut bytes = 0;
    while let Some(part) = parts.join_next().await {
        bytes += part.map_err(|e| e.to_string())??;
    }
    Ok(Transfer { bytes, took: start.elapsed() })
}

/// The bytes that one stream has moved.
async fn part(connection: &Connection, direction: Direction, bytes: u64) -> Result<u64, String> {
    match direction {
        Direction::Down => {
            let (_send, mut receive) = put(connection, &Question::Download { bytes }).await?;
            let (until, mut got) = (Deadline::now() + TAKES_FOR, 0);
            // What comes later is not waited for.
            while let Ok(chunk) = timeout_at(until, receive.read_chunk(PIECE, true)).await {
                match chunk.map_err(|e| e.to_string())? {
                    Some(chunk) => got += chunk.bytes.len() as u64,
                    None => return Ok(got),
                }
            }
            let _ = receive.stop(VarInt::from_u32(0));
            Ok(got)
        }
        Direction::Up => {
            let (mut send, mut receive) = put(connection, &Question::Upload { bytes }).await?;
            let (piece, mut left) = (Bytes::from_static(&[0; PIECE]), bytes);
            while left > 0 {
                let part = piece.slice(..PIECE.min(left as usize));
                left -= part.len() as u64;
                match send.write_chunk(part).await {
                    Ok(()) => {}
                    // It has taken enough, and says how much.
                    Err(quinn::WriteError::Stopped(_)) => break,
                    Err(e) => return Err(e.to_string()),
                }
            }
            let _ = send.finish();
            match read_message::<Answer>(&mut receive, MESSAGE_MAX).await.map_err(|e| e.to_string())? {
                Some(Answer::Received { bytes }) => Ok(bytes),
                other => Err(other.as_ref().map_or_else(|| "it gave no answer".to_owned(), unexpected)),
            }
        }
    }
}

async fn put(connection: &Connection, question: &Question) -> Result<(SendStream, RecvStream), String> {
    let (mut send, receive) = connection.open_bi().await.map_err(|e| e.to_string())?;
    write_message(&mut send, question).await.map_err(|e| e.to_string())?;
    Ok((send, receive))
}

async fn ask(connection: &Connection, question: &Question) -> Result<Answer, String> {
    let exchange = async {
        let (mut send, mut receive) = put(connection, question).await?;
        let _ = send.finish();
        read_message::<Answer>(&mut receive, MESSAGE_MAX).await.map_err(|e| e.to_string())?.ok_or_else(|| "it gave no answer".to_owned())
    };
    let answer = timeout(ANSWERED, exchange).await.unwrap_or_else(|_| Err("no answer came".to_owned()));
    answer.map_err(|e| explain_failure(connection, &e))
}

/// Why an answer is not the one that was asked for.
fn unexpected(answer: &Answer) -> String {
    match answer {
        Answer::Refused { reason } => format!("it refused: {}", crate::ui::visible_within(reason, 200)),
        _ => "its answer is to another question".to_owned(),
    }
}
