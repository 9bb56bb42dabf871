//! Kernels of one, two and three dimensions: named ones and those of a file.

use std::path::Path;

use anyhow::{Context, Result, bail};

/// The longest side of a kernel.
const MAX_SIDE: usize = 99;

/// Weights in row-major order. Every side is odd, so that there is a middle.
#[derive(Debug, Clone, PartialEq)]
pub struct Kernel {
    /// One to three sides, the slowest first.
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

impl Kernel {
    /// The kernel `edge`, `sharpen` or `gaussian` in so many dimensions; any other name
    /// is that of a file.
    pub fn of(name: &str, dimensions: usize) -> Result<Self> {
        match name {
            "edge" => Ok(Self::edge(dimensions)),
            "sharpen" => Ok(Self::sharpen(dimensions)),
            "gaussian" => Ok(Self::gaussian(dimensions)),
            file => Self::read(Path::new(file), dimensions),
        }
    }

    /// Three values a side: minus one everywhere but in the middle, which makes the sum 0.
    fn edge(dimensions: usize) -> Self {
        let mut values = vec![-1.0; 3usize.pow(dimensions as u32)];
        let middle = values.len() / 2;
        values[middle] = (values.len() - 1) as f32;
        Self { shape: vec![3; dimensions], values }
    }

    /// Minus one on both sides of the middle along each axis; the middle makes the sum 1.
    fn sharpen(dimensions: usize) -> Self {
        let mut values = vec![0.0; 3usize.pow(dimensions as u32)];
        let middle = values.len() / 2;
        for axis in 0..dimensions {
            let step = 3usize.pow(axis as u32);
            values[middle - step] = -1.0;
            values[middle + step] = -1.0;
        }
        values[middle] = 1.0 + 2.0 * dimensions as f32;
        Self { shape: vec![3; dimensions], values }
    }

    /// (1 2 1) / 4 along each axis.
    fn gaussian(dimensions: usize) -> Self {
        let line = [0.25, 0.5, 0.25];
        let values = (0..dimensions).fold(vec![1.0], |values, _| values.iter().flat_map(|v| line.map(|l| v * l)).collect());
        Self { shape: vec![3; dimensions], values }
    }

    /// Reads numbers (also fractions such as 1/16), a row of the kernel on each line,
    /// slices of a three-dimensional one with an empty line between them. Text after a
    /// `#` is a comment.
    pub fn read(path: &Path, dimensions: usize) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!("could not read the kernel `{}`: give edge, sharpen, gaussian or a file of numbers", path.display())
        })?;
        Self::parse(&text, dimensions).with_context(|| format!("the kernel `{}` cannot be used", path.display()))
    }

    fn parse(text: &str, dimensions: usize) -> Result<Self> {
        let mut slices: Vec<Vec<Vec<f32>>> = vec![Vec::new()];
        for (n, line) in text.lines().enumerate() {
            let content = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = content.split([' ', ',', ';', '\t']).filter(|w| !w.is_empty()).collect();
            if words.is_empty() {
                // A line that holds only a comment does not separate slices.
                if line.trim().is_empty() && slices.last().is_some_and(|s| !s.is_empty()) {
                    slices.push(Vec::new());
                }
                continue;
            }
            let row: Option<Vec<f32>> = words.iter().map(|w| number(w)).collect();
            let row = row.with_context(|| format!("line {} is not a row of numbers: `{}`", n + 1, content.trim()))?;
            slices.last_mut().map(|s| s.push(row)).context("it has no rows")?;
        }
        slices.retain(|s| !s.is_empty());
        let (depth, height) = (slices.len(), slices.first().map_or(0, Vec::len));
        let width = slices.first().and_then(|s| s.first()).map_or(0, Vec::len);
        if depth == 0 {
            bail!("it has no numbers");
        }
        if slices.iter().any(|s| s.len() != height || s.iter().any(|row| row.len() != width)) {
            bail!("its rows are not all of one length: every row needs {width} numbers, and every slice {height} rows");
        }
        let shape = match (dimensions, depth, height) {
            (1, 1, _) if height == 1 || width == 1 => vec![width * height],
            (2, 1, _) => vec![height, width],
            (3, _, _) => vec![depth, height, width],
            _ => {
                let found = if depth > 1 { 3 } else { 2 };
                bail!("it has {found} dimensions, and the input has {dimensions}");
            }
        };
        let sides = shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
        if shape.iter().any(|side| side % 2 == 0) {
            bail!("it is {sides}: every side must be odd, so that the kernel has a middle");
        }
        if shape.iter().any(|&side| side > MAX_SIDE) {
            bail!("it is {sides}: {MAX_SIDE} on a side are the most");
        }
        Ok(Self { shape, values: slices.into_iter().flatten().flatten().collect() })
    }

    /// Reverses the kernel along every axis: cross-correlation with the result is
    /// convolution with the original.
    pub fn flip(mut self) -> Self {
        self.values.reverse();
        self
    }
}

fn number(text: &str) -> Option<f32> {
    let plain = |text: &str| text.parse::<f32>().ok();
    let value = match text.split_once('/') {
        Some((above, below)) => plain(above)? / plain(below)?,
        None => plain(text)?,
    };
    value.is_finite().then_some(value)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn named_kernels_are_those_of_the_notes() {
        assert_eq!(Kernel::edge(2).values, [-1., -1., -1., -1., 8., -1., -1., -1., -1.]);
        assert_eq!(Kernel::sharpen(2).values, [0., -1., 0., -1., 5., -1., 0., -1., 0.]);
        assert_eq!(Kernel::gaussian(2).values, [1., 2., 1., 2., 4., 2., 1., 2., 1.].map(|v: f32| v / 16.0));
        for dimensions in 1..=3 {
            let sum = |k: Kernel| k.values.iter().sum::<f32>();
            assert_eq!(
                (sum(Kernel::edge(dimensions)), sum(Kernel::sharpen(dimensions)), sum(Kernel::gaussian(dimensions))),
                (0.0, 1.0, 1.0)
            );
        }
    }

    #[test]
    fn files_are_read_with_comments_fractions_and_slices() {
        let kernel = Kernel::parse("# a blur\n1/9 1/9, 1/9\n0 1 0 # middle\n-1\t2;3\n", 2).unwrap();
        assert_eq!((kernel.shape, kernel.values[4], kernel.values[8]), (vec![3, 3], 1.0, 3.0));
        assert_eq!(Kernel::parse("1 2 3", 1).unwrap().shape, [3]);
        assert_eq!(Kernel::parse("1\n2\n3\n", 1).unwrap().shape, [3]);
        let cube = Kernel::parse("1\n\n2\n\n\n3\n", 3).unwrap();
        assert_eq!((cube.shape, cube.values), (vec![3, 1, 1], vec![1.0, 2.0, 3.0]));
        assert_eq!(Kernel::parse("1 2 3", 1).unwrap().flip().values, [3.0, 2.0, 1.0]);
    }

    #[test]
    fn bad_files_are_named_with_the_cause() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k.txt");
        for (text, dimensions, expected) in [
            ("1 2\n3 4\n", 2, "2x2: every side must be odd"),
            ("1 2 3\n4 5\n6 7 8\n", 2, "not all of one length"),
            ("1 x 3\n", 1, "line 1 is not a row of numbers"),
            ("1/0 1 1\n", 1, "line 1"),
            ("", 2, "no numbers"),
            ("1 2 3\n4 5 6\n7 8 9\n", 1, "2 dimensions, and the input has 1"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = format!("{:#}", Kernel::of(&path.display().to_string(), dimensions).unwrap_err());
            assert!(error.contains("k.txt") && error.contains(expected), "{text:?}: {error}");
        }
        assert!(format!("{:#}", Kernel::of("sharp", 2).unwrap_err()).contains("edge, sharpen, gaussian"));
    }
}
