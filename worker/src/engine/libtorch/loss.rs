//! [`Loss`] by libtorch's operations, so that logits need not leave their device.

use tch::{Kind, Tensor};

use super::super::{EngineError, Loss, Sums};

/// What [`Loss::sums`] returns, still on the device.
pub(super) struct DeviceSums {
    /// `[3]`, f64: the summed loss, and how many samples have the label first and among
    /// the first five.
    pub(super) sums: Tensor,
    /// The gradient of `scale` times the summed loss with respect to the logits.
    pub(super) slope: Tensor,
}

/// What logits are compared with.
pub(super) struct Target {
    /// int64, `[n]`.
    pub(super) labels: Tensor,
    /// Of mixed samples: the second labels, int64 `[n]`, and their shares, f32 `[n]`.
    pub(super) seconds: Option<(Tensor, Tensor)>,
}

/// As [`Loss::mixed_sums`]. `logits` are f32 `[n, classes]`, on the device of the target.
pub(super) fn sums(loss: Loss, logits: &Tensor, target: &Target, scale: f32) -> Result<DeviceSums, EngineError> {
    let classes = logits.size()[1];
    let column = target.labels.f_unsqueeze(1)?;
    let own = logits.f_gather(1, &column, false)?;
    let (mut losses, mut slope) = losses_and_slope(loss, logits, &column)?;
    if let Some((labels, shares)) = &target.seconds {
        let (other_losses, other_slope) = losses_and_slope(loss, logits, &labels.f_unsqueeze(1)?)?;
        let share = shares.f_unsqueeze(1)?;
        let rest = share.f_neg()?.f_add_scalar(1.0)?;
        losses = losses.f_mul(&rest)?.f_add(&other_losses.f_mul(&share)?)?;
        slope = slope.f_mul(&rest)?.f_add(&other_slope.f_mul(&share)?)?;
    }
    // How many classes come before the label: as `rank` on the host.
    let places = Tensor::f_arange(classes, (Kind::Int64, logits.device()))?.f_unsqueeze(0)?;
    let before = logits.f_eq_tensor(&own)?.f_logical_and(&places.f_lt_tensor(&column)?)?;
    let better = logits.f_gt_tensor(&own)?.f_logical_or(&before)?.f_sum_dim_intlist(1, true, Kind::Int64)?;
    let ranked = own.f_isnan()?.f_logical_not()?;
    let first = match loss {
        Loss::Perceptron => own.f_gt(0.0)?,
        _ => better.f_eq(0)?.f_logical_and(&ranked)?,
    };
    let five = better.f_lt(5)?.f_logical_and(&ranked)?;
    let total = |tensor: &Tensor| tensor.f_sum(Kind::Double);
    let sums = Tensor::f_stack(&[total(&losses)?, total(&first)?, total(&five)?], 0)?;
    Ok(DeviceSums { sums, slope: slope.f_mul_scalar(f64::from(scale))? })
}

/// The loss of each sample, `[n, 1]`, and its gradient with respect to the logits. `column`
/// are the labels, int64 `[n, 1]`.
fn losses_and_slope(loss: Loss, logits: &Tensor, column: &Tensor) -> Result<(Tensor, Tensor), EngineError> {
    let classes = logits.size()[1];
    let one_hot = logits.f_zeros_like()?.f_scatter_value(1, column, 1.0)?;
    let own = logits.f_gather(1, column, false)?;
    Ok(match loss {
        Loss::CrossEntropy { smoothing } => {
            let smoothing = f64::from(smoothing);
            let logs = logits.f_log_softmax(1, Kind::Float)?;
            let share = smoothing / classes as f64;
            let target = one_hot.f_mul_scalar(1.0 - smoothing)?.f_add_scalar(share)?;
            let slope = logs.f_exp()?.f_sub(&target)?;
            let losses = logs.f_gather(1, column, false)?.f_mul_scalar(smoothing - 1.0)?;
            let losses =
                if smoothing > 0.0 { losses.f_sub(&logs.f_sum_dim_intlist(1, true, Kind::Float)?.f_mul_scalar(share)?)? } else { losses };
            (losses, slope)
        }
        Loss::Mse => {
            let slope = logits.f_sub(&one_hot)?;
            (slope.f_square()?.f_sum_dim_intlist(1, true, Kind::Float)?.f_mul_scalar(0.5)?, slope)
        }
        Loss::Margin { delta } => {
            let short = logits.f_sub(&own)?.f_add_scalar(f64::from(delta))?;
            // A NaN must reach the loss.
            let short_of = short.f_gt(0.0)?.f_logical_or(&short.f_isnan()?)?;
            let counts = short_of.f_logical_and(&one_hot.f_eq(0.0)?)?;
            let losses = short.f_masked_fill(&counts.f_logical_not()?, 0.0)?.f_sum_dim_intlist(1, true, Kind::Float)?;
            let counts = counts.f_to_kind(Kind::Float)?;
            let beaten = counts.f_sum_dim_intlist(1, true, Kind::Float)?;
            (losses, counts.f_sub(&one_hot.f_mul(&beaten)?)?)
        }
        Loss::Perceptron => {
            let wrong = own.f_gt(0.0)?.f_logical_not()?;
            let losses = own.f_neg()?.f_masked_fill(&wrong.f_logical_not()?, 0.0)?;
            (losses, one_hot.f_mul(&wrong.f_to_kind(Kind::Float)?)?.f_neg()?)
        }
    })
}

/// Reads [`DeviceSums::sums`] of so many samples, and whatever follows them.
pub(super) fn read(sums: &Tensor, samples: usize) -> Result<(Sums, Vec<f64>), EngineError> {
    let values: Vec<f64> = Vec::try_from(sums)?;
    let [loss, top1, top5, ref rest @ ..] = values[..] else {
        return Err(EngineError::Compute("statistics are missing".to_owned()));
    };
    Ok((Sums { loss, top1: top1 as u32, top5: top5 as u32, count: samples as u32 }, rest.to_vec()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use common::seed;

    use super::*;
    use crate::data::Second;

    /// Logits with ties and a NaN, of every loss, against the host's sums.
    #[test]
    fn the_device_finds_what_the_host_finds() {
        const CLASSES: usize = 7;
        const ROWS: usize = 40;
        let mut rng = seed::stream(3, "logits", &[]);
        let labels: Vec<i32> = (0..ROWS).map(|_| seed::below(&mut rng, CLASSES as u32) as i32).collect();
        let finite: Vec<f32> = (0..ROWS * CLASSES).map(|_| seed::below(&mut rng, 9) as f32 - 4.0).collect();
        let mut spoilt = finite.clone();
        spoilt[3 * CLASSES + labels[3] as usize] = f32::NAN;
        let losses = [0.0, 0.1].map(|smoothing| Loss::CrossEntropy { smoothing });
        let second = |row: usize| Second { label: ((row * 3) % CLASSES) as i32, share: row as f32 / (2 * ROWS) as f32 };
        let mixed: Vec<Second> = (0..ROWS).map(second).collect();
        for loss in losses.into_iter().chain([Loss::Mse, Loss::Margin { delta: 1.15 }, Loss::Perceptron]) {
            for (logits, seconds) in [(&finite, &[][..]), (&spoilt, &[]), (&finite, &mixed)] {
                let mut slope = vec![0.0; logits.len()];
                let host = loss.mixed_sums(logits, &labels, seconds, 0.25, Some(&mut slope));
                let tensor = Tensor::from_slice(logits).view([ROWS as i64, CLASSES as i64]);
                let labels: Vec<i64> = labels.iter().map(|&l| l.into()).collect();
                let columns = || {
                    let labels: Vec<i64> = seconds.iter().map(|second| second.label.into()).collect();
                    let shares: Vec<f32> = seconds.iter().map(|second| second.share).collect();
                    (Tensor::from_slice(&labels), Tensor::from_slice(&shares))
                };
                let target = Target { labels: Tensor::from_slice(&labels), seconds: (!seconds.is_empty()).then(columns) };
                let found = sums(loss, &tensor, &target, 0.25).unwrap();
                let [total, first, five] = Vec::<f64>::try_from(found.sums).unwrap()[..] else { panic!("not three sums") };
                assert_eq!((first as u32, five as u32), (host.top1, host.top5), "{loss:?}");
                assert!((total - host.loss).abs() < 1e-4 || total.is_nan() && host.loss.is_nan(), "{loss:?}: {total} {}", host.loss);
                let slopes = Vec::<f32>::try_from(found.slope.reshape([-1])).unwrap();
                for (place, (found, expected)) in slopes.iter().zip(&slope).enumerate() {
                    // What else a row with a NaN has is of no use to anybody.
                    let row_is_spoilt = logits[place / CLASSES * CLASSES..][..CLASSES].iter().any(|l| l.is_nan());
                    assert!((found - expected).abs() < 1e-6 || row_is_spoilt, "{loss:?} {place}: {found} {expected}");
                }
            }
        }
    }
}
