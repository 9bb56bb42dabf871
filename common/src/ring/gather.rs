//! The matrices of which each rank has some rows, and which all ranks have whole after a
//! round. It knows neither what they are for nor their values.

use std::ops::Range;

use super::encoding::Encoding;
use crate::digest::Digest;

/// Matrices that are gathered in every round, beside the buckets that are summed. All have
/// the same rows, and the same number format on the wire and in memory, so gathering loses
/// nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Gathers {
    /// Where the rows of each rank begin, in order, and where those of the last end.
    starts: Vec<usize>,
    /// The values of a row of each matrix.
    widths: Vec<usize>,
    bf16: bool,
}

impl Gathers {
    /// Matrices with rows of so many values each, of which every rank has so many rows, in
    /// the order of the ranks.
    pub fn new(rows: &[usize], widths: Vec<usize>, bf16: bool) -> Self {
        let mut end = 0;
        let ends = rows.iter().map(|rows| {
            end += rows;
            end
        });
        Self { starts: std::iter::once(0).chain(ends).collect(), widths, bf16 }
    }

    /// Number of matrices.
    pub fn len(&self) -> usize {
        self.widths.len()
    }

    pub fn is_empty(&self) -> bool {
        self.widths.is_empty()
    }

    /// How many ranks have rows; 0 if nothing is gathered.
    pub fn ranks(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// Rows of every matrix.
    pub fn rows(&self) -> usize {
        self.starts.last().copied().unwrap_or_default()
    }

    /// The rows of a rank.
    pub fn rows_of(&self, rank: usize) -> Range<usize> {
        self.starts[rank]..self.starts[rank + 1]
    }

    /// Values of a row of a matrix.
    pub fn width(&self, matrix: usize) -> usize {
        self.widths[matrix]
    }

    /// Values of a matrix.
    pub fn values(&self, matrix: usize) -> usize {
        self.rows() * self.widths[matrix]
    }

    /// The values of a matrix that a rank contributes.
    pub fn block(&self, matrix: usize, rank: usize) -> Range<usize> {
        let (rows, width) = (self.rows_of(rank), self.widths[matrix]);
        rows.start * width..rows.end * width
    }

    pub fn encoding(&self) -> Encoding {
        if self.bf16 { Encoding::Bf16 } else { Encoding::F32 }
    }

    /// The same on all ranks that mean the same matrices.
    pub(super) fn digest(&self) -> Digest {
        let numbers = [&self.starts, &self.widths].into_iter().flat_map(|list| std::iter::once(list.len()).chain(list.iter().copied()));
        let bytes: Vec<u8> = numbers.chain([usize::from(self.bf16)]).flat_map(|n| (n as u64).to_le_bytes()).collect();
        Digest::of(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_a_matrix_in_the_order_of_the_ranks() {
        let gathers = Gathers::new(&[2, 0, 3], vec![5, 1], true);
        assert_eq!((gathers.rows(), gathers.values(0), gathers.ranks()), (5, 25, 3));
        assert_eq!([0, 1, 2].map(|rank| gathers.block(0, rank)), [0..10, 10..10, 10..25]);
        let others = [
            Gathers::new(&[2, 1, 2], vec![5, 1], true),
            Gathers::new(&[2, 0, 3], vec![5, 2], true),
            Gathers::new(&[2, 0, 3], vec![5], true),
            Gathers::new(&[2, 0, 3], vec![5, 1], false),
            Gathers::default(),
        ];
        assert!(others.iter().all(|other| other.digest() != gathers.digest()));
    }
}
