//! Whether UDP reaches a coordinator and comes back, without a token: a QUIC server
//! answers a packet of an unknown version with the versions that it speaks
//! (RFC 8999, section 6), in fewer bytes than it got.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;

use crate::net::addresses::any_like;
use crate::net::random_bytes;
use crate::net::transport::SMALLEST_PACKET;

/// How often it is asked, and how long each time it may take to answer.
const TIMES: u32 = 4;
const EACH: Duration = Duration::from_millis(700);

/// A version that is reserved for this purpose (RFC 9000, section 15).
const UNKNOWN_VERSION: [u8; 4] = [0x1a, 0x2a, 0x3a, 0x4a];
const ID: usize = 8;

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reached {
    /// A QUIC server answers.
    Answered { from: IpAddr, took: Duration },
    /// The machine is there, and nothing listens on this port of it.
    Closed { from: IpAddr },
    /// Nothing.
    Silent { from: IpAddr },
    /// This machine could not even send.
    NoRoute { cause: String },
}

/// Whether a QUIC server, such as a coordinator, answers at `address`.
pub async fn quic_answers(address: SocketAddr) -> bool {
    matches!(reach(address).await, Reached::Answered { .. })
}

/// Sends datagrams to `address` until one is answered.
pub(super) async fn reach(address: SocketAddr) -> Reached {
    let (socket, from) = match route(address).await {
        Ok(way) => way,
        Err(cause) => return Reached::NoRoute { cause: cause.to_string() },
    };
    let mut ids = [0; 2 * ID];
    if random_bytes(&mut ids).is_none() {
        return Reached::NoRoute { cause: "the system gives no random numbers".to_owned() };
    }
    let (packet, mut refused) = (question(&ids), false);
    for _ in 0..TIMES {
        let start = Instant::now();
        match socket.send(&packet).await {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => {
                refused = true;
                continue;
            }
            Err(e) => return Reached::NoRoute { cause: e.to_string() },
        }
        let mut answer = [0; SMALLEST_PACKET as usize];
        let heard = async {
            loop {
                match socket.recv(&mut answer).await {
                    Ok(length) if is_answer(&answer[..length], &ids) => return Ok(start.elapsed()),
                    Ok(_) => {}
                    Err(e) => return Err(e),
                }
            }
        };
        match tokio::time::timeout(EACH, heard).await {
            Ok(Ok(took)) => return Reached::Answered { from, took },
            Ok(Err(e)) if e.kind() == ErrorKind::ConnectionRefused => refused = true,
            Ok(Err(e)) => return Reached::NoRoute { cause: e.to_string() },
            Err(_) => {}
        }
    }
    if refused { Reached::Closed { from } } else { Reached::Silent { from } }
}

/// A socket to `address`, and the address of this machine from which it sends.
async fn route(address: SocketAddr) -> std::io::Result<(UdpSocket, IpAddr)> {
    let socket = UdpSocket::bind((any_like(address.ip()), 0)).await?;
    socket.connect(address).await?;
    let from = socket.local_addr()?.ip();
    Ok((socket, from))
}

/// A datagram with a long header of an unknown version; `ids` are those of destination and
/// source. Servers answer no shorter one.
fn question(ids: &[u8; 2 * ID]) -> Vec<u8> {
    let mut packet = vec![0xc0];
    packet.extend(UNKNOWN_VERSION);
    for id in ids.chunks_exact(ID) {
        packet.push(ID as u8);
        packet.extend(id);
    }
    packet.resize(usize::from(SMALLEST_PACKET), 0);
    packet
}

/// Whether this is what a server says to [`question`]: version 0, and the same ids the other
/// way round.
fn is_answer(packet: &[u8], ids: &[u8; 2 * ID]) -> bool {
    let (destination, source) = ids.split_at(ID);
    let expected = [&[0, 0, 0, 0, ID as u8], source, &[ID as u8], destination].concat();
    packet.first().is_some_and(|first| first & 0x80 != 0) && packet[1..].starts_with(&expected)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[tokio::test]
    async fn a_port_where_nothing_listens_and_one_that_is_silent_are_told_apart() {
        let silent = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = silent.local_addr().unwrap();
        let here = IpAddr::from(Ipv4Addr::LOCALHOST);
        assert_eq!(reach(address).await, Reached::Silent { from: here });
        drop(silent);
        if cfg!(target_os = "linux") {
            assert_eq!(reach(address).await, Reached::Closed { from: here });
        }
    }

    #[test]
    fn only_the_answer_to_this_question_counts() {
        let ids = *b"toserverfromhere";
        let packet = question(&ids);
        assert_eq!(packet.len(), 1200);
        let answer = [b"\x80\0\0\0\0\x08fromhere\x08toserver".as_slice(), &[0, 0, 0, 1]].concat();
        assert!(is_answer(&answer, &ids));
        for length in 0..23 {
            assert!(!is_answer(&answer[..length], &ids), "{length} bytes");
        }
        assert!(!is_answer(&packet, &ids) && !is_answer(&answer, b"toserverfromHere"));
    }
}
