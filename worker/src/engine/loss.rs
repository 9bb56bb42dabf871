//! Loss and accuracy of a batch of logits `[n, classes]`, in host memory.

use common::config::{LossKind, ModelConfig, TrainConfig};

use crate::data::Second;

/// Sums over the samples of a batch; the sums of several batches or workers can be added.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sums {
    /// In nats, for cross-entropy.
    pub loss: f64,
    /// Samples whose label has the highest logit; of a mixed one, the label with the larger
    /// share.
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

/// The function that training minimises, of the logits o of a sample and its label y.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Loss {
    /// `-log softmax(o)[y]`; its gradient is softmax(o) minus the one-hot vector of
    /// y. With `smoothing` s the target is 1 - s + s / classes for the label and
    /// s / classes for the others (Szegedy et al., "Rethinking the Inception
    /// Architecture for Computer Vision", 2015).
    CrossEntropy { smoothing: f32 },
    /// Half the squared distance between o and the one-hot vector of y.
    Mse,
    /// The sum of `max(0, delta + o[j] - o[y])` over the other classes j.
    Margin { delta: f32 },
    /// `max(0, -o[y])`, where o is (-s, s): minus y s for a sample on the wrong
    /// side, whose gradient is the classic rule. A sample is right if `o[y] > 0`,
    /// so that at w = 0 all are wrong.
    Perceptron,
}

impl Loss {
    pub fn of(model: &ModelConfig, train: &TrainConfig) -> Self {
        match model {
            ModelConfig::Perceptron(_) => Self::Perceptron,
            ModelConfig::Softmax(m) if m.loss == LossKind::Mse => Self::Mse,
            ModelConfig::Softmax(m) if m.loss == LossKind::Margin => Self::Margin { delta: m.margin as f32 },
            _ => Self::CrossEntropy { smoothing: train.label_smoothing as f32 },
        }
    }

    /// The loss as evaluation measures it.
    pub(crate) fn unsmoothed(self) -> Self {
        if let Self::CrossEntropy { .. } = self { Self::CrossEntropy { smoothing: 0.0 } } else { self }
    }

    /// One score for each class of each sample, of `logits` `[n, crops, classes]`. Of
    /// cross-entropy it is the logarithm of the mean of the crops' softmax, whose softmax is
    /// that mean; of another loss, the mean of the logits.
    pub(crate) fn averaged(self, logits: Vec<f32>, crops: usize, classes: usize) -> Vec<f32> {
        if crops <= 1 {
            return logits;
        }
        let of_sample = |logits: &[f32]| -> Vec<f32> {
            let rows = logits.chunks_exact(classes);
            if !matches!(self, Self::CrossEntropy { .. }) {
                let mean = |class: usize| rows.clone().map(|row| row[class]).sum::<f32>() / crops as f32;
                return (0..classes).map(mean).collect();
            }
            let logs = rows.map(|row| {
                let sum = log_sum(row.iter().map(|&logit| logit.into()));
                row.iter().map(|&logit| f64::from(logit) - sum).collect::<Vec<f64>>()
            });
            let logs: Vec<Vec<f64>> = logs.collect();
            let mean = |class: usize| log_sum(logs.iter().map(|row| row[class])) - (crops as f64).ln();
            (0..classes).map(|class| mean(class) as f32).collect()
        };
        logits.chunks_exact(crops * classes).flat_map(of_sample).collect()
    }

    /// The sums of a batch and, in `slope` (if given), the gradient of `scale` times
    /// the summed loss with respect to the logits. `labels` must be checked.
    pub(crate) fn sums(self, logits: &[f32], labels: &[i32], scale: f32, slope: Option<&mut [f32]>) -> Sums {
        self.mixed_sums(logits, labels, &[], scale, slope)
    }

    /// As [`sums`](Self::sums), of samples that may be mixed: the loss of one is the sum of
    /// those of both labels, each times its share. `labels` have the larger shares and say
    /// what is right. `seconds` are as many, or none.
    pub(crate) fn mixed_sums(self, logits: &[f32], labels: &[i32], seconds: &[Second], scale: f32, mut slope: Option<&mut [f32]>) -> Sums {
        let classes = logits.len() / labels.len().max(1);
        let mut sums = Sums { count: labels.len() as u32, ..Sums::default() };
        let (mut unused, mut other) = (vec![0.0; classes], vec![0.0; classes]);
        for (row, (&label, logits)) in labels.iter().zip(logits.chunks_exact(classes)).enumerate() {
            let label = label as usize;
            let slope = slope.as_deref_mut().map_or(&mut unused[..], |s| &mut s[row * classes..(row + 1) * classes]);
            let mut loss = self.one(logits, label, slope);
            if let Some(&Second { label, share }) = seconds.get(row) {
                loss = (1.0 - share) * loss + share * self.one(logits, label as usize, &mut other);
                slope.iter_mut().zip(&other).for_each(|(s, other)| *s = (1.0 - share) * *s + share * other);
            }
            sums.loss += f64::from(loss);
            slope.iter_mut().for_each(|s| *s *= scale);
            let better = rank(logits, label);
            let right = if self == Self::Perceptron { logits[label] > 0.0 } else { better == 0 };
            sums.top1 += u32::from(right);
            sums.top5 += u32::from(better < 5);
        }
        sums
    }

    /// The loss of one sample; its gradient with respect to the logits goes to `slope`.
    fn one(self, logits: &[f32], label: usize, slope: &mut [f32]) -> f32 {
        match self {
            Self::CrossEntropy { smoothing } => {
                // Shifting by the maximum keeps every exponential at most 1.
                let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                slope.iter_mut().zip(logits).for_each(|(s, l)| *s = (l - max).exp());
                let sum = slope.iter().sum::<f32>();
                let log_sum = max + sum.ln();
                let share = smoothing / logits.len() as f32;
                slope.iter_mut().for_each(|s| *s = *s / sum - share);
                slope[label] -= 1.0 - smoothing;
                let mean_loss = if smoothing > 0.0 { logits.iter().map(|l| log_sum - l).sum::<f32>() * share } else { 0.0 };
                (1.0 - smoothing) * (log_sum - logits[label]) + mean_loss
            }
            Self::Mse => {
                slope.copy_from_slice(logits);
                slope[label] -= 1.0;
                0.5 * slope.iter().map(|d| d * d).sum::<f32>()
            }
            Self::Margin { delta } => {
                let mut loss = 0.0;
                let mut beaten = 0.0;
                for (class, (s, l)) in slope.iter_mut().zip(logits).enumerate() {
                    let short = delta + l - logits[label];
                    // A NaN must reach the loss.
                    let counts = class != label && (short > 0.0 || short.is_nan());
                    *s = f32::from(u8::from(counts));
                    beaten += *s;
                    loss += if counts { short } else { 0.0 };
                }
                slope[label] = -beaten;
                loss
            }
            Self::Perceptron => {
                let wrong = logits[label] <= 0.0 || logits[label].is_nan();
                slope.fill(0.0);
                slope[label] = -f32::from(u8::from(wrong));
                if wrong { -logits[label] } else { 0.0 }
            }
        }
    }
}

/// The logarithm of the sum of exponentials. Shifting by the maximum keeps each at most 1.
fn log_sum(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let max = values.clone().fold(f64::NEG_INFINITY, f64::max);
    max + values.map(|value| (value - max).exp()).sum::<f64>().ln()
}

/// How many classes come before `label`: those with a higher logit, or the same one and
/// a smaller index. A label whose logit is NaN comes last.
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

    const PLAIN: Loss = Loss::CrossEntropy { smoothing: 0.0 };

    #[test]
    fn loss_and_slope_match_the_definition() {
        let logits = [1.0, 2.0, 0.5, -1.0, 0.0, 3.0];
        let mut slope = [0.0; 6];
        let sums = PLAIN.sums(&logits, &[1, 0], 0.5, Some(&mut slope));
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

    /// The gradient of cross-entropy is softmax(o) - y.
    #[test]
    fn the_slope_of_cross_entropy_is_softmax_minus_one_hot() {
        let logits = [0.3f32, -0.7, 1.1, 0.2, 40.0, -90.0];
        for label in 0..6 {
            let mut slope = [0.0; 6];
            PLAIN.sums(&logits, &[label], 1.0, Some(&mut slope));
            let exp: Vec<f64> = logits.iter().map(|&l| (f64::from(l) - 40.0).exp()).collect();
            let sum: f64 = exp.iter().sum();
            for (class, (s, e)) in slope.iter().zip(&exp).enumerate() {
                let expected = e / sum - f64::from(u8::from(class as i32 == label));
                assert!((f64::from(*s) - expected).abs() < 1e-6, "{class}: {s} {expected}");
            }
        }
    }

    #[test]
    fn every_slope_matches_finite_differences() {
        // No logit is so close to a kink of the margin loss that the finite step
        // reaches it.
        let logits = [0.3f32, -0.7, 1.1, 0.2];
        let losses = [Loss::CrossEntropy { smoothing: 0.1 }, Loss::Mse, Loss::Margin { delta: 1.15 }];
        for (loss, label) in losses.into_iter().flat_map(|loss| (0..4).map(move |label| (loss, label))) {
            let mut slope = [0.0; 4];
            loss.sums(&logits, &[label], 1.0, Some(&mut slope));
            for i in 0..4 {
                let at = |delta: f32| {
                    let mut moved = logits;
                    moved[i] += delta;
                    loss.sums(&moved, &[label], 1.0, None).loss
                };
                let expected = (at(1e-2) - at(-1e-2)) / 2e-2;
                assert!((f64::from(slope[i]) - expected).abs() < 1e-4, "{loss:?} {label} {i}: {} {expected}", slope[i]);
            }
        }
    }

    #[test]
    fn crops_are_averaged_by_their_softmax() {
        // Two samples of three crops and two classes: with (1/2, 3/4, 1/4) and (1, 0, 1/2) for
        // the first class.
        let third = 3f32.ln();
        let logits = vec![5.0, 5.0, third, 0.0, 0.0, third, 100.0, -2000.0, -2000.0, 100.0, 7.0, 7.0];
        let scores = PLAIN.averaged(logits.clone(), 3, 2);
        assert!(scores.iter().all(|score| (f64::from(*score) - 0.5f64.ln()).abs() < 1e-6), "{scores:?}");
        let sums = PLAIN.sums(&scores, &[0, 1], 1.0, None);
        assert!((sums.loss - 2.0 * 2f64.ln()).abs() < 1e-6 && sums.count == 2, "{sums:?}");
        // Far apart in all crops, and still finite.
        let far = PLAIN.averaged(vec![0.0, 3000.0, 0.0, 3000.0], 2, 2);
        assert!((far[0] + 3000.0).abs() < 1e-3 && far[1] == 0.0, "{far:?}");
        assert_eq!(Loss::Mse.averaged(logits.clone(), 3, 2)[..2], [(5.0 + third) / 3.0, (5.0 + third) / 3.0]);
        assert_eq!(PLAIN.averaged(logits.clone(), 1, 2), logits);
        assert!(PLAIN.averaged(vec![f32::NAN, 1.0, 2.0, 3.0], 2, 2).iter().all(|score| score.is_nan()));
    }

    #[test]
    fn a_mixed_sample_has_both_losses_by_their_shares() {
        let logits = [0.3f32, -0.7, 1.1, 0.2];
        for loss in [Loss::CrossEntropy { smoothing: 0.1 }, Loss::Mse, Loss::Margin { delta: 1.15 }] {
            let of = |label, seconds: &[Second]| {
                let mut slope = [0.0; 4];
                (loss.mixed_sums(&logits, &[label], seconds, 0.5, Some(&mut slope)), slope)
            };
            let ((first, slope), (second, other)) = (of(2, &[]), of(1, &[]));
            let (found, mixed) = of(2, &[Second { label: 1, share: 0.25 }]);
            assert!((found.loss - (0.75 * first.loss + 0.25 * second.loss)).abs() < 1e-6, "{loss:?}");
            assert_eq!((found.top1, found.top5, found.count), (1, 1, 1));
            for (mixed, (slope, other)) in mixed.iter().zip(slope.iter().zip(other)) {
                assert!((mixed - (0.75 * slope + 0.25 * other)).abs() < 1e-6, "{loss:?}");
            }
        }
    }

    #[test]
    fn the_margin_counts_only_what_falls_short_of_it() {
        let loss = Loss::Margin { delta: 1.0 };
        assert_eq!(loss.sums(&[3.0, 1.5, 2.0], &[0], 1.0, None).loss, 0.0);
        assert_eq!(loss.sums(&[2.0, 1.5, 0.0], &[0], 1.0, None).loss, 0.5);
        assert!(loss.sums(&[f32::NAN, 1.5, 0.0], &[0], 1.0, None).loss.is_nan());
    }

    #[test]
    fn a_perceptron_learns_from_mistakes_only_and_zero_is_one() {
        let slope = |logits: [f32; 2], label| {
            let mut slope = [9.0; 2];
            let sums = Loss::Perceptron.sums(&logits, &[label], 1.0, Some(&mut slope));
            (slope, sums.top1)
        };
        assert_eq!(slope([-0.5, 0.5], 1), ([0.0, 0.0], 1));
        assert_eq!(slope([-0.5, 0.5], 0), ([-1.0, 0.0], 0));
        assert_eq!(slope([0.0, 0.0], 0), ([-1.0, 0.0], 0));
        assert_eq!(slope([0.0, 0.0], 1), ([0.0, -1.0], 0));
    }

    #[test]
    fn huge_logits_stay_finite_and_nan_is_never_right() {
        let sums = PLAIN.sums(&[1e4, -1e4], &[1], 1.0, None);
        assert!((sums.loss - 2e4).abs() < 1.0);
        let sums = PLAIN.sums(&[f32::NAN; 3], &[0], 1.0, None);
        assert_eq!((sums.top1, sums.top5), (0, 0));
        assert!(sums.loss.is_nan());
    }

    #[test]
    fn ties_are_broken_by_the_class_index() {
        let sums = PLAIN.sums(&[0.0; 14], &[0, 6], 1.0, None);
        assert_eq!((sums.top1, sums.top5), (1, 1));
    }
}
