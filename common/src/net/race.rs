//! Tries several addresses of one node at the same time, as browsers do (RFC 8305): each a
//! little after the one before it, so that where the first answers no other is asked.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

/// How long after one address the next one is tried, if the one has neither answered nor
/// failed by then.
const STAGGER: Duration = Duration::from_millis(100);

/// The first that answers, with its address; else why each failed, in their order.
pub(super) async fn first<T, E, F>(
    addresses: &[SocketAddr],
    connect: impl Fn(SocketAddr) -> F,
) -> Result<(SocketAddr, T), Vec<(SocketAddr, E)>>
where
    F: Future<Output = Result<T, E>>,
{
    let (mut running, mut failed) = (FuturesUnordered::new(), Vec::new());
    let mut next = (0..).zip(addresses).peekable();
    loop {
        if let Some((place, &address)) = next.next() {
            let attempt = connect(address);
            running.push(async move { (place, address, attempt.await) });
        }
        let stagger = async {
            match next.peek() {
                Some(_) => tokio::time::sleep(STAGGER).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = running.next() => match ended {
                Some((_, address, Ok(connected))) => return Ok((address, connected)),
                Some((place, address, Err(error))) => failed.push((place, address, error)),
                None => break,
            },
            () = stagger => {}
        }
    }
    failed.sort_by_key(|(place, ..): &(u32, SocketAddr, E)| *place);
    Err(failed.into_iter().map(|(_, address, error)| (address, error)).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Instant;

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
}
