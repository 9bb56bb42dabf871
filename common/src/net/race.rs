//! Tries several addresses of one node at the same time, as browsers do (RFC 8305): each a
//! little after the one before it, so that where the first answers no other is asked.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep, sleep_until};

use super::relay::is_relayed;
use crate::timing::RELAY_AFTER;

/// How long after one address the next one is tried, if the one has neither answered nor
/// failed by then.
const STAGGER: Duration = Duration::from_millis(100);

/// The first that answers, with its address; else why each failed, in their order. The way
/// through the relay begins after the others have failed, or have not answered for a while:
/// it is slower, so it must not win by a moment.
pub(super) async fn first<T, E, F>(
    addresses: &[SocketAddr],
    connect: impl Fn(SocketAddr) -> F,
) -> Result<(SocketAddr, T), Vec<(SocketAddr, E)>>
where
    F: Future<Output = Result<T, E>>,
{
    let (mut running, mut failed) = (FuturesUnordered::new(), Vec::new());
    let mut next = (0..).zip(addresses).peekable();
    let start = Instant::now();
    loop {
        if let Some((place, &address)) = next.next() {
            let attempt = connect(address);
            running.push(async move { (place, address, attempt.await) });
        }
        let relay_is_next = next.peek().is_some_and(|(_, address)| is_relayed(**address));
        let stagger = async {
            match next.peek() {
                Some(_) if relay_is_next => sleep_until((start + RELAY_AFTER).max(Instant::now() + STAGGER)).await,
                Some(_) => sleep(STAGGER).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(stagger);
        loop {
            tokio::select! {
                ended = running.next() => match ended {
                    Some((_, address, Ok(connected))) => return Ok((address, connected)),
                    Some((place, address, Err(error))) => {
                        failed.push((place, address, error));
                        if !relay_is_next || running.is_empty() {
                            break;
                        }
                    }
                    None => {
                        failed.sort_by_key(|(place, ..): &(u32, SocketAddr, E)| *place);
                        return Err(failed.into_iter().map(|(_, address, error)| (address, error)).collect());
                    }
                },
                () = &mut stagger => break,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn addresses(count: u16) -> Vec<SocketAddr> {
        (0..count).map(|port| ([10, 0, 0, 1], port).into()).collect()
    }

    #[tokio::test]
    async fn where_the_first_answers_no_other_is_asked() {
        let asked = AtomicU32::new(0);
        let answers = async |address: SocketAddr| {
            asked.fetch_add(1, Ordering::Relaxed);
            Ok::<_, ()>(address.port())
        };
        assert_eq!(first(&addresses(5), answers).await, Ok((addresses(1)[0], 0)));
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn silent_addresses_are_passed_while_they_are_still_tried() {
        let start = Instant::now();
        let last_answers = async |address: SocketAddr| match address.port() {
            3 => Ok::<_, &str>("here"),
            1 => Err("refused"),
            _ => std::future::pending().await,
        };
        let (address, answer) = first(&addresses(4), last_answers).await.unwrap_or_else(|e| panic!("{e:?}"));
        assert_eq!((address.port(), answer), (3, "here"));
        // After 0 and 2 the next waits its time; 1 has failed at once.
        assert!(start.elapsed() >= 2 * STAGGER && start.elapsed() < 3 * STAGGER + Duration::from_secs(1), "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn when_all_fail_each_says_why() {
        let fails = async |address: SocketAddr| Err::<(), _>(address.port());
        let failed = first(&addresses(3), fails).await.err().unwrap_or_default();
        assert_eq!(failed.iter().map(|(_, why)| *why).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(first(&[], fails).await, Err(Vec::new()));
    }
    fn with_relay(count: u16) -> (Vec<SocketAddr>, SocketAddr) {
        let relay = super::super::relay::address_of("worker-7").unwrap_or_else(|| panic!("no address"));
        (addresses(count).into_iter().chain([relay]).collect(), relay)
    }

    #[tokio::test]
    async fn the_relay_waits_for_a_direct_way_that_takes_its_time() {
        let (addresses, relay) = with_relay(3);
        let slow = async |address: SocketAddr| match address.port() {
            0 if address != relay => Err("refused"),
            2 => {
                sleep(RELAY_AFTER / 2).await;
                Ok("direct")
            }
            _ if address == relay => Ok("relayed"),
            _ => std::future::pending().await,
        };
        assert_eq!(first(&addresses, slow).await, Ok((addresses[2], "direct")));
    }

    #[tokio::test]
    async fn the_relay_is_the_last_resort_and_the_first_where_it_was_the_last_one_used() {
        let start = Instant::now();
        let (mut addresses, relay) = with_relay(2);
        let silent = async |address: SocketAddr| if address == relay { Ok::<_, &str>(7) } else { std::future::pending().await };
        assert_eq!(first(&addresses, silent).await, Ok((relay, 7)));
        assert!(start.elapsed() >= RELAY_AFTER, "{:?}", start.elapsed());

        let start = Instant::now();
        let failing = async |address: SocketAddr| if address == relay { Ok(7) } else { Err("refused") };
        assert_eq!(first(&addresses, failing).await, Ok((relay, 7)));
        addresses.rotate_right(1);
        assert_eq!(first(&addresses, silent).await, Ok((relay, 7)));
        assert!(start.elapsed() < RELAY_AFTER, "{:?}", start.elapsed());
    }
}
