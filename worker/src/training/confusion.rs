//! The classes that scores stand for, and how often each class is predicted as each other
//! one, counted in an evaluation.

/// The class with the highest score; the first of several that are equal.
pub fn best(scores: &[f32]) -> usize {
    let better = |best: usize, class: usize| if scores[class] > scores[best] { class } else { best };
    (0..scores.len()).fold(0, better)
}

/// Scores as probabilities, which they are if the model was trained with cross-entropy.
pub fn softmax(scores: &[f32]) -> Vec<f64> {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exps: Vec<f64> = scores.iter().map(|s| f64::from(s - max).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.iter().map(|e| e / sum).collect()
}

/// The `most` classes of the highest scores, best first; of equal ones the first.
pub fn likeliest(scores: &[f32], most: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    order.truncate(most);
    order
}

/// The true class and the predicted one of each sample of a batch: labels `[n]`, scores
/// `[n, classes]`.
pub fn predictions<'a>(labels: &'a [i32], scores: &'a [f32], classes: usize) -> impl Iterator<Item = (usize, usize)> + 'a {
    labels.iter().zip(scores.chunks_exact(classes)).map(|(&label, scores)| (label as usize, best(scores)))
}

/// Counts of an evaluation, as they travel round the ring.
#[derive(Debug, Clone, PartialEq)]
pub struct Confusions {
    classes: usize,
    /// `[true class, predicted class]`; empty where they are not counted. Whole numbers below
    /// 2^24, which f32 has exactly.
    counts: Vec<f32>,
}

impl Confusions {
    /// `counts`: how many are summed over the ring; none of very many classes.
    pub(super) fn new(classes: usize, counts: usize) -> Self {
        Self { classes, counts: vec![0.0; counts] }
    }

    /// Counts a batch: labels `[n]` and scores `[n, classes]`.
    pub(super) fn add(&mut self, labels: &[i32], scores: &[f32]) {
        if self.counts.is_empty() {
            return;
        }
        for (label, predicted) in predictions(labels, scores, self.classes) {
            self.counts[label * self.classes + predicted] += 1.0;
        }
    }

    pub(super) fn into_counts(self) -> Vec<f32> {
        self.counts
    }

    /// Of the same classes, what was summed over the ring.
    pub(super) fn summed(classes: usize, counts: Vec<f32>) -> Self {
        Self { classes, counts }
    }

    /// `[true class][predicted class]`; none if nothing was counted.
    pub fn rows(&self) -> Option<Vec<Vec<u64>>> {
        let row = |row: &[f32]| row.iter().map(|&count| count as u64).collect();
        (!self.counts.is_empty()).then(|| self.counts.chunks(self.classes).map(row).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_count_where_their_best_score_is() {
        let mut confusions = Confusions::new(3, 9);
        confusions.add(&[0, 2, 2], &[0.1, 0.9, 0.0, 0.0, 0.0, 0.5, 0.7, 0.7, 0.1]);
        assert_eq!(confusions.rows(), Some(vec![vec![0, 1, 0], vec![0, 0, 0], vec![1, 0, 1]]));
        let mut none = Confusions::new(3, 0);
        none.add(&[0], &[0.0, 0.0, 1.0]);
        assert_eq!(none.rows(), None);
    }
}
