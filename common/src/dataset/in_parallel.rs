//! The same work for many files or folders, on several threads.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

const REPORT_EVERY: Duration = Duration::from_millis(100);

/// As many threads as this process may use.
pub(super) fn all_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Does `work` for each of `items`, which it gets with their numbers, on so many threads. Results
/// are in the order of the items. After an error nothing more is begun, and of several errors the
/// first in that order is returned. `report` is called on this thread from time to time, and at
/// the end.
pub(super) fn each<I: Sync, T: Send, E: Send>(
    threads: usize,
    items: &[I],
    report: &dyn Fn(),
    work: impl Fn(usize, &I) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let next = AtomicUsize::new(0);
    let take = || {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(number) else { return done };
            let result = work(number, item);
            if result.is_err() {
                next.store(items.len(), Ordering::Relaxed);
            }
            done.push((number, result));
        }
    };
    let mut done = std::thread::scope(|scope| {
        let (working, ended) = mpsc::channel::<Infallible>();
        let begin = |working| {
            scope.spawn(|| {
                let (_working, done) = (working, take());
                done
            })
        };
        let threads: Vec<_> = vec![working; threads.min(items.len())].into_iter().map(begin).collect();
        while ended.recv_timeout(REPORT_EVERY) == Err(RecvTimeoutError::Timeout) {
            report();
        }
        let joined = threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        joined.flatten().collect::<Vec<_>>()
    });
    report();
    done.sort_unstable_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn results_are_in_order_whatever_the_number_of_threads() {
        let items: Vec<usize> = (100..357).collect();
        for threads in [1, 2, 3, 300] {
            let reports = AtomicU64::new(0);
            let report = || _ = reports.fetch_add(1, Ordering::Relaxed);
            let numbered = each(threads, &items, &report, |number, item| Ok::<_, Infallible>((number, *item))).unwrap();
            assert_eq!(numbered, items.iter().copied().enumerate().collect::<Vec<_>>());
            assert!(reports.into_inner() > 0);
        }
        assert_eq!(each(2, &[] as &[u8], &|| {}, |_, _| Ok::<_, Infallible>(())).unwrap(), []);
    }

    #[test]
    fn the_first_error_is_told_and_nothing_is_begun_after_it() {
        for (threads, bad) in (0..200).map(|seed| (1 + seed % 4, seed * 7)) {
            let begun = AtomicU64::new(0);
            let result = each(threads, &[(); 10_000], &|| {}, |number, ()| {
                begun.fetch_add(1, Ordering::Relaxed);
                if number >= bad { Err(number) } else { Ok(()) }
            });
            assert_eq!(result, Err(bad));
            assert!(threads > 1 || begun.into_inner() == bad as u64 + 1);
        }
    }
}
