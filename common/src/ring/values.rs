//! A bucket's values in memory: f32, or bf16 where the gradient is computed in bf16 and
//! travels in bf16. Then nothing is converted on the way, and all of it takes half the
//! memory: a sum of two bf16 values is rounded anyway when it is sent on, so it may as
//! well be kept as bf16.

use std::ops::Range;

use crate::simd::{bf16_to_f32, f32_to_bf16, to_bf16};

/// Values that are owned.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    F32(Vec<f32>),
    /// As their bits.
    Bf16(Vec<u16>),
}

/// Values that are read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Span<'a> {
    F32(&'a [f32]),
    Bf16(&'a [u16]),
}

/// Values that are written.
#[derive(Debug)]
pub enum SpanMut<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [u16]),
}

/// Values that are converted at a time: few enough to stay in the first cache.
const BLOCK: usize = 4096;

/// A bucket of a gradient, in either format.
pub trait Bucket {
    fn span(&self) -> Span<'_>;
}

impl Bucket for Values {
    fn span(&self) -> Span<'_> {
        match self {
            Self::F32(values) => Span::F32(values),
            Self::Bf16(values) => Span::Bf16(values),
        }
    }
}

impl Bucket for Span<'_> {
    fn span(&self) -> Span<'_> {
        *self
    }
}

impl Bucket for Vec<f32> {
    fn span(&self) -> Span<'_> {
        Span::F32(self)
    }
}

impl Default for Values {
    fn default() -> Self {
        Self::F32(Vec::new())
    }
}

impl From<Vec<f32>> for Values {
    fn from(values: Vec<f32>) -> Self {
        Self::F32(values)
    }
}

impl Values {
    pub fn zeros(bf16: bool, n: usize) -> Self {
        if bf16 { Self::Bf16(vec![0; n]) } else { Self::F32(vec![0.0; n]) }
    }

    pub fn len(&self) -> usize {
        self.span().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn range_mut(&mut self, range: Range<usize>) -> SpanMut<'_> {
        match self {
            Self::F32(values) => SpanMut::F32(&mut values[range]),
            Self::Bf16(values) => SpanMut::Bf16(&mut values[range]),
        }
    }

    /// Writes a span at `at`, rounded to nearest even if necessary.
    pub fn write(&mut self, at: usize, span: Span<'_>) {
        match (self.range_mut(at..at + span.len()), span) {
            (SpanMut::F32(to), span) => span.read(to),
            (SpanMut::Bf16(to), Span::Bf16(from)) => to.copy_from_slice(from),
            (SpanMut::Bf16(to), Span::F32(from)) => f32_to_bf16(from, to),
        }
    }

    pub fn fill(&mut self, value: f32) {
        match self {
            Self::F32(values) => values.fill(value),
            Self::Bf16(bits) => bits.fill(to_bf16(value)),
        }
    }

    /// Makes these values zero.
    pub fn clear(&mut self, range: Range<usize>) {
        match self.range_mut(range) {
            SpanMut::F32(values) => values.fill(0.0),
            SpanMut::Bf16(bits) => bits.fill(0),
        }
    }

    pub fn into_f32(self) -> Vec<f32> {
        match self {
            Self::F32(values) => values,
            Self::Bf16(bits) => {
                let mut values = vec![0.0; bits.len()];
                bf16_to_f32(&bits, &mut values);
                values
            }
        }
    }
}

impl<'a> Span<'a> {
    pub fn len(self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    pub fn range(self, range: Range<usize>) -> Self {
        match self {
            Self::F32(values) => Self::F32(&values[range]),
            Self::Bf16(values) => Self::Bf16(&values[range]),
        }
    }

    /// Parts of `n` values; the last may be shorter.
    pub fn chunks(self, n: usize) -> impl Iterator<Item = Self> {
        let len = self.len();
        (0..len).step_by(n).map(move |at| self.range(at..(at + n).min(len)))
    }

    /// Copies to a place of the same length.
    pub fn read(self, to: &mut [f32]) {
        match self {
            Self::F32(values) => to.copy_from_slice(values),
            Self::Bf16(values) => bf16_to_f32(values, to),
        }
    }

    /// Hands out all values as f32, in order and without a copy of the whole.
    pub fn for_each_f32(self, mut take: impl FnMut(&[f32])) {
        match self {
            Self::F32(values) => take(values),
            Self::Bf16(values) => {
                let mut block = [0.0; BLOCK];
                for values in values.chunks(BLOCK) {
                    let block = &mut block[..values.len()];
                    bf16_to_f32(values, block);
                    take(block);
                }
            }
        }
    }
}

impl<'a> From<&'a [f32]> for Span<'a> {
    fn from(values: &'a [f32]) -> Self {
        Self::F32(values)
    }
}

impl<'a> From<&'a Vec<f32>> for Span<'a> {
    fn from(values: &'a Vec<f32>) -> Self {
        Self::F32(values)
    }
}

impl SpanMut<'_> {
    pub fn reborrow(&mut self) -> SpanMut<'_> {
        match self {
            Self::F32(values) => SpanMut::F32(values),
            Self::Bf16(values) => SpanMut::Bf16(values),
        }
    }
}

impl<'a> From<&'a mut [f32]> for SpanMut<'a> {
    fn from(values: &'a mut [f32]) -> Self {
        Self::F32(values)
    }
}

impl<'a> From<&'a mut Vec<f32>> for SpanMut<'a> {
    fn from(values: &'a mut Vec<f32>) -> Self {
        Self::F32(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_either_format_are_taken_in_by_either() {
        let exact: Vec<f32> =
            (0..10_000).map(|i| (i as f32 - 5000.0) / 64.0).map(|v| crate::simd::from_bf16(crate::simd::to_bf16(v))).collect();
        let mut bits = vec![0; exact.len()];
        f32_to_bf16(&exact, &mut bits);
        for bf16 in [false, true] {
            for span in [Span::F32(&exact), Span::Bf16(&bits)] {
                let mut values = Values::zeros(bf16, exact.len() + 3);
                for (n, part) in span.chunks(777).enumerate() {
                    values.write(3 + n * 777, part);
                }
                let mut seen = Vec::new();
                values.span().for_each_f32(|part| seen.extend_from_slice(part));
                assert_eq!(seen[3..], exact);
                assert_eq!(values.into_f32(), seen);
            }
        }
    }
}
