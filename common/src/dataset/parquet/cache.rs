//! Decoded pages that were used last, so that rows which are read one after the other
//! have their page decoded once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use parquet::data_type::ByteArray;

/// Bytes of pages that are kept. The page that was used last stays even if it has more.
const BYTES: usize = 64 << 20;

/// The values of a page, by row; null ones are none.
pub(super) type Values = Arc<Vec<Option<ByteArray>>>;

struct Kept {
    page: u32,
    bytes: usize,
    values: Values,
}

/// The last pages, the one that was used last in front.
pub(super) struct Cache {
    bound: usize,
    kept: Mutex<VecDeque<Kept>>,
}

impl Default for Cache {
    fn default() -> Self {
        Self::bounded(BYTES)
    }
}

impl Cache {
    fn bounded(bound: usize) -> Self {
        Self { bound, kept: Mutex::default() }
    }

    pub(super) fn get(&self, page: u32) -> Option<Values> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|one| one.page == page)?;
        let one = kept.remove(at)?;
        let values = Arc::clone(&one.values);
        kept.push_front(one);
        Some(values)
    }

    pub(super) fn insert(&self, page: u32, values: &Values) {
        // Two rows of a dictionary may share their bytes, which are counted twice then.
        let bytes = values.iter().map(|value| size_of::<Option<ByteArray>>() + value.as_ref().map_or(0, ByteArray::len)).sum();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|one| one.page != page);
        kept.push_front(Kept { page, bytes, values: Arc::clone(values) });
        let mut sum = 0;
        let fit = kept.iter().take_while(|one| {
            sum += one.bytes;
            sum <= self.bound
        });
        let fit = fit.count().max(1);
        kept.truncate(fit);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_were_used_last_stay_within_the_bound() {
        let page = |bytes: usize| -> Values { Arc::new(vec![Some(ByteArray::from(vec![7; bytes])), None]) };
        let cache = Cache::bounded(10_000);
        for n in 0..3 {
            cache.insert(n, &page(3000));
        }
        assert!(cache.get(0).is_some());
        cache.insert(3, &page(3000));
        assert_eq!([0, 1, 2, 3].map(|n| cache.get(n).is_some()), [true, false, true, true]);
        cache.insert(4, &page(50_000));
        assert_eq!([0, 1, 2, 3, 4].map(|n| cache.get(n).is_some()), [false, false, false, false, true]);
        assert_eq!(cache.get(4).unwrap()[0].as_ref().unwrap().len(), 50_000);
    }
}
