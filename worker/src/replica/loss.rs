//! Cross-entropy and accuracy of a batch of logits, on the host: `[n, classes]`
//! is small, and so the loss is the same code on every device.

use super::ReplicaError;

/// Sums over the samples of a batch; batches and workers add up.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sums {
    /// Cross-entropy in nats.
    pub loss: f64,
    /// Samples whose label has the highest logit.
    pub top1: u32,
    /// Samples whose label is among the five highest logits (all, with five classes or fewer).
    pub top5: u32,
    pub count: u32,
}

impl std::ops::AddAssign for Sums {
    fn add_assign(&mut self, other: Self) {
        self.loss += other.loss;
        self.top1 += other.top1;
        self.top5 += other.top5;
        self.count += other.count;
    }
}

/// Refuses labels that are no class.
pub(super) fn check_labels(labels: &[i32], classes: usize) -> Result<(), ReplicaError> {
    match labels.iter().position(|&label| usize::try_from(label).map_or(true, |l| l >= classes)) {
        None => Ok(()),
        Some(index) => Err(ReplicaError::Label { index, label: labels[index], classes }),
    }
}

/// The sums of a batch and, in `slope` (if given), the gradient of `scale` times
/// the summed loss by the logits.
///
/// With `smoothing` s the target is 1 - s + s / classes for the label and
/// s / classes for the others (Szegedy et al., "Rethinking the Inception
/// Architecture for Computer Vision", 2015). `labels` must be checked.
pub(super) fn cross_entropy(logits: &[f32], labels: &[i32], smoothing: f32, scale: f32, mut slope: Option<&mut [f32]>) -> Sums {
    let classes = logits.len() / labels.len().max(1);
    let share = smoothing / classes as f32;
    let mut sums = Sums { count: labels.len() as u32, ..Sums::default() };
    for (row, (&label, logits)) in labels.iter().zip(logits.chunks_exact(classes)).enumerate() {
        let label = label as usize;
        // Shifting by the maximum keeps every exponential at most 1.
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let log_sum = max + logits.iter().map(|l| (l - max).exp()).sum::<f32>().ln();
        let mean_loss = if smoothing > 0.0 { logits.iter().map(|l| log_sum - l).sum::<f32>() * share } else { 0.0 };
        sums.loss += f64::from((1.0 - smoothing) * (log_sum - logits[label]) + mean_loss);
        let better = rank(logits, label);
        sums.top1 += u32::from(better == 0);
        sums.top5 += u32::from(better < 5);
        if let Some(slope) = slope.as_deref_mut() {
            let slope = &mut slope[row * classes..(row + 1) * classes];
            for (s, l) in slope.iter_mut().zip(logits) {
                *s = ((l - log_sum).exp() - share) * scale;
            }
            slope[label] -= (1.0 - smoothing) * scale;
        }
    }
    sums
}

/// How many classes come before `label`: those with a higher logit, or the same
/// one and a smaller index. A label without a number comes last.
fn rank(logits: &[f32], label: usize) -> usize {
    let own = logits[label];
    if own.is_nan() {
        return logits.len().max(5);
    }
    logits.iter().enumerate().filter(|&(class, &l)| l > own || (l == own && class < label)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_and_slope_match_the_definition() {
        let logits = [1.0, 2.0, 0.5, -1.0, 0.0, 3.0];
        let mut slope = [0.0; 6];
        let sums = cross_entropy(&logits, &[1, 0], 0.0, 0.5, Some(&mut slope));
        let exp: Vec<f64> = logits.iter().map(|&l| f64::from(l).exp()).collect();
        let (first, second) = (exp[..3].iter().sum::<f64>(), exp[3..].iter().sum::<f64>());
        let expected = -(exp[1] / first).ln() - (exp[3] / second).ln();
        assert!((sums.loss - expected).abs() < 1e-5, "{} {expected}", sums.loss);
        assert_eq!((sums.top1, sums.top5, sums.count), (1, 2, 2));
        for (i, s) in slope.iter().enumerate() {
            let target = if i == 1 || i == 3 { 1.0 } else { 0.0 };
            let expected = 0.5 * (exp[i] / if i < 3 { first } else { second } - target);
            assert!((f64::from(*s) - expected).abs() < 1e-6, "{i}: {s} {expected}");
        }
    }

    #[test]
    fn slope_matches_finite_differences_with_smoothing() {
        let logits = [0.3f32, -0.7, 1.1, 0.2];
        let mut slope = [0.0; 4];
        cross_entropy(&logits, &[2], 0.1, 1.0, Some(&mut slope));
        for i in 0..4 {
            let at = |delta: f32| {
                let mut moved = logits;
                moved[i] += delta;
                cross_entropy(&moved, &[2], 0.1, 1.0, None).loss
            };
            let expected = (at(1e-2) - at(-1e-2)) / 2e-2;
            assert!((f64::from(slope[i]) - expected).abs() < 1e-4, "{i}: {} {expected}", slope[i]);
        }
    }

    #[test]
    fn huge_logits_stay_finite_and_nan_is_never_right() {
        let sums = cross_entropy(&[1e4, -1e4], &[1], 0.0, 1.0, None);
        assert!((sums.loss - 2e4).abs() < 1.0);
        let sums = cross_entropy(&[f32::NAN; 3], &[0], 0.0, 1.0, None);
        assert_eq!((sums.top1, sums.top5), (0, 0));
        assert!(sums.loss.is_nan());
    }

    #[test]
    fn ties_are_broken_by_the_class_index() {
        let sums = cross_entropy(&[0.0; 14], &[0, 6], 0.0, 1.0, None);
        assert_eq!((sums.top1, sums.top5), (1, 1));
    }

    #[test]
    fn labels_outside_the_classes_are_refused() {
        assert!(check_labels(&[0, 9], 10).is_ok());
        assert!(matches!(check_labels(&[0, 10], 10), Err(ReplicaError::Label { index: 1, label: 10, .. })));
        assert!(matches!(check_labels(&[-1], 10), Err(ReplicaError::Label { index: 0, .. })));
    }
}
