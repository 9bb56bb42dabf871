//! How the flat gradient is cut into buckets, each of which is reduced in one round. It
//! knows no parameter names and no values.

use std::ops::Range;

/// Values in the statistics bucket.
pub const STATISTICS: usize = 16;

/// The buckets of a flat f32 gradient. Buckets `0..len()` cover it in order, all of one
/// length but the last. The next one, the *statistics bucket*
/// ([`BucketLayout::statistics`]), carries [`STATISTICS`] sums of a step beside the
/// gradient (loss, counts) and always travels as f32. After it, the *exponents
/// bucket*, which reproducible sums need, has one value for each gradient bucket and is
/// reduced to the maximum of each value. The last one, the *counts bucket*, is for rounds
/// of evaluations alone and travels as f32, in which counts below 2^24 are exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BucketLayout {
    elements: usize,
    bucket_elements: usize,
    counts: usize,
}

impl BucketLayout {
    /// `elements` f32 values in buckets of `bucket_bytes` bytes of f32, rounded
    /// down to whole values but at least one.
    pub fn new(elements: usize, bucket_bytes: usize) -> Self {
        Self { elements, bucket_elements: (bucket_bytes / size_of::<f32>()).max(1), counts: 0 }
    }

    /// With so many values in the counts bucket.
    pub fn counting(self, counts: usize) -> Self {
        Self { counts, ..self }
    }

    /// Buckets of the gradient, without those that follow them.
    pub fn len(&self) -> usize {
        self.elements.div_ceil(self.bucket_elements)
    }

    pub fn is_empty(&self) -> bool {
        self.elements == 0
    }

    /// Values in the gradient.
    pub fn elements(&self) -> usize {
        self.elements
    }

    /// Values in every gradient bucket but the last.
    pub fn bucket_elements(&self) -> usize {
        self.bucket_elements
    }

    /// The index of the statistics bucket: the one after the gradient's.
    pub fn statistics(&self) -> usize {
        self.len()
    }

    /// The index of the exponents bucket.
    pub fn exponents(&self) -> usize {
        self.len() + 1
    }

    /// The index of the counts bucket: the last.
    pub fn counts(&self) -> usize {
        self.len() + 2
    }

    /// The index under which matrix `number` of [`super::Gathers`] is submitted: after all
    /// buckets.
    pub fn gathered(&self, number: usize) -> usize {
        self.counts() + 1 + number
    }

    /// The values of the flat gradient that bucket `bucket < len()` covers. The
    /// statistics bucket covers the [`STATISTICS`] places after the gradient, the
    /// exponents bucket one place for each gradient bucket after those, and the counts
    /// bucket as many as it has values after those.
    pub fn range(&self, bucket: usize) -> Range<usize> {
        assert!(bucket <= self.counts(), "bucket {bucket} of {}", self.len());
        let after = self.elements + STATISTICS;
        if bucket == self.counts() {
            return after + self.len()..after + self.len() + self.counts;
        }
        if bucket == self.exponents() {
            return after..after + self.len();
        }
        if bucket == self.statistics() {
            return self.elements..after;
        }
        let start = bucket * self.bucket_elements;
        start..(start + self.bucket_elements).min(self.elements)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_cover_the_gradient_in_order_and_statistics_follow() {
        for elements in 0..70 {
            for bytes in [0, 4, 7, 8, 40, 64, 400] {
                let layout = BucketLayout::new(elements, bytes);
                let mut next = 0;
                for bucket in 0..layout.len() {
                    let span = layout.range(bucket);
                    assert_eq!(span.start, next);
                    assert!(!span.is_empty() && span.len() <= layout.bucket_elements());
                    assert!(span.len() == layout.bucket_elements() || bucket + 1 == layout.len());
                    next = span.end;
                }
                assert_eq!(next, elements);
                assert_eq!(layout.range(layout.statistics()), elements..elements + STATISTICS);
                let (exponents, counts) = (layout.range(layout.exponents()), layout.counting(9).range(layout.counts()));
                assert_eq!((exponents.end, counts.len()), (counts.start, 9));
                assert!(layout.range(layout.counts()).is_empty() && layout.gathered(0) > layout.counts());
            }
        }
    }

    #[test]
    fn an_alexnet_gradient_in_eight_mebibyte_buckets() {
        let layout = BucketLayout::new(62_378_344, 8 << 20);
        assert_eq!(layout.len(), 30);
        assert_eq!(layout.range(29).len(), 62_378_344 - 29 * (2 << 20));
    }
}
