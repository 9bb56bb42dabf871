//! Updates by libtorch's operations, and what they depend on, over flat vectors on one
//! device.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::super::EngineError;
use crate::optim::{LambStep, NotFinite, Rule};

/// Values that an update works on at a time: enough to keep a GPU busy, and few enough for
/// its temporary memory to be small beside the state. Those of a CPU stay in its caches.
const PIECE: usize = 1 << 24;
const CPU_PIECE: usize = 1 << 15;

/// Updates weights by the rule, and the state of the optimizer with them, piece by piece.
/// All vectors are of the same values; `mirror` is a copy of the weights in another format,
/// `average` their moving average, and how far it follows them.
pub(super) fn apply(
    rule: &Rule,
    weights: &Tensor,
    gradient: &Tensor,
    slots: &[Tensor],
    mirror: Option<&Tensor>,
    average: Option<(&Tensor, f32)>,
) -> Result<(), EngineError> {
    for (start, len) in pieces(weights, 0, weights.numel() as i64) {
        let piece = |flat: &Tensor| flat.f_narrow(0, start, len);
        let mut weights = piece(weights)?;
        let mut slots = slots.iter().map(piece).collect::<Result<Vec<_>, _>>()?;
        update_piece(rule, &mut weights, &piece(gradient)?.f_to_kind(Kind::Float)?, &mut slots)?;
        if let Some((average, rest)) = average {
            let mut average = piece(average)?;
            if *rule == Rule::Running {
                average.f_copy_(&weights)?;
            } else {
                let way = weights.f_sub(&average)?.f_mul_scalar(f64::from(rest))?;
                let _ = average.f_add_(&way)?;
            }
        }
        if let Some(mirror) = mirror {
            piece(mirror)?.f_copy_(&weights)?;
        }
    }
    Ok(())
}

/// The pieces of a part of a flat vector: start and length of each.
pub(super) fn pieces(flat: &Tensor, start: i64, len: i64) -> impl Iterator<Item = (i64, i64)> + use<> {
    let most = if flat.device() == tch::Device::Cpu { CPU_PIECE } else { PIECE } as i64;
    (0..len).step_by(most as usize).map(move |at| (start + at, most.min(len - at)))
}

/// The first place of a flat vector that is not finite.
pub(super) fn first_not_finite(flat: &Tensor) -> Result<NotFinite, EngineError> {
    let bad = flat.f_isfinite()?.f_logical_not()?.f_to_kind(Kind::Uint8)?;
    Ok(NotFinite { at: i64::try_from(bad.f_argmax(0, false)?)? as usize })
}

/// The direction of an update by LAMB.
pub(super) fn lamb_direction(step: &LambStep, weights: &Tensor, m: &Tensor, v: &Tensor) -> Result<Tensor, EngineError> {
    let root = corrected_root(v, step.root_correct2, step.epsilon)?;
    let decay = weights.f_mul_scalar(f64::from(step.weight_decay))?;
    Ok(m.f_mul_scalar(f64::from(step.correct1))?.f_div_(&root)?.f_add_(&decay)?)
}

/// `sqrt(v) / root_correct2 + epsilon`.
fn corrected_root(v: &Tensor, root_correct2: f32, epsilon: f32) -> Result<Tensor, EngineError> {
    let mut root = square_root(v)?;
    // By a tensor: on CUDA, a number would be multiplied by its rounded reciprocal.
    let correct = Tensor::f_full([1], f64::from(root_correct2), (Kind::Float, root.device()))?;
    Ok(root.f_div_(&correct)?.f_add_scalar_(f64::from(epsilon))?)
}

/// One update of some weights. See `crate::optim::kernels` for the formulas; every
/// operation here is one of theirs.
fn update_piece(rule: &Rule, weights: &mut Tensor, gradient: &Tensor, slots: &mut [Tensor]) -> Result<(), EngineError> {
    let times = |tensor: &Tensor, factor: f32| tensor.f_mul_scalar(f64::from(factor));
    match (rule, slots) {
        (Rule::Sgd(step), [momentum]) => {
            let mut direction = times(gradient, step.factor)?;
            let _ = direction.f_add_(&times(weights, step.weight_decay)?)?;
            let _ = momentum.f_mul_scalar_(f64::from(step.momentum))?.f_add_(&direction)?;
            let change = if step.nesterov { direction.f_add_(&times(momentum, step.momentum)?)? } else { momentum.shallow_clone() };
            let _ = weights.f_sub_(&times(&change, step.lr)?)?;
        }
        (Rule::Lars(step), [momentum]) => {
            let mut direction = times(gradient, step.factor)?;
            let _ = direction.f_add_(&times(weights, step.weight_decay)?)?;
            let _ = momentum.f_mul_scalar_(f64::from(step.momentum))?.f_add_(&times(&direction, step.rate)?)?;
            let _ = weights.f_sub_(momentum)?;
        }
        (Rule::Moments(step), [m, v]) => {
            let g = times(gradient, step.factor)?;
            let _ = m.f_mul_scalar_(f64::from(step.beta1))?.f_add_(&times(&g, step.rest1)?)?;
            let _ = v.f_mul_scalar_(f64::from(step.beta2))?.f_add_(&times(&g, step.rest2)?.f_mul_(&g)?)?;
        }
        (Rule::Lamb(step), [m, v]) => {
            let change = times(&lamb_direction(step, weights, m, v)?, step.rate)?;
            let _ = weights.f_sub_(&change)?;
        }
        (Rule::Adam(step), [m, v]) => {
            let mut g = times(gradient, step.factor)?;
            let _ = g.f_add_(&times(weights, step.weight_decay)?)?;
            let _ = m.f_mul_scalar_(f64::from(step.beta1))?.f_add_(&times(&g, step.rest1)?)?;
            let _ = v.f_mul_scalar_(f64::from(step.beta2))?.f_add_(&times(&g, step.rest2)?.f_mul_(&g)?)?;
            let change = times(m, step.rate)?.f_div_(&corrected_root(v, step.root_correct2, step.epsilon)?)?;
            let _ = weights.f_mul_scalar_(f64::from(step.shrink))?.f_sub_(&change)?;
        }
        (Rule::Running, _) => {
            let _ = weights.f_sub_(gradient)?;
        }
        _ => unreachable!("slots are made for the optimizer's kind"),
    }
    Ok(())
}

/// Correctly rounded. So are CUDA's own roots, but not those of the vector mathematics
/// library that libtorch uses on the CPU; those of f64 are near enough to the truth for
/// their f32 to be it.
fn square_root(values: &Tensor) -> Result<Tensor, EngineError> {
    match values.device() {
        tch::Device::Cpu => Ok(values.f_to_kind(Kind::Double)?.f_sqrt()?.f_to_kind(Kind::Float)?),
        _ => Ok(values.f_sqrt()?),
    }
}

/// The Euclidean norm of a flat gradient, summed in f64, on its device. Its last `running`
/// values are those of running statistics: they count for nothing, unless one is not finite.
/// Then the norm is not finite either.
pub(super) fn norm(flat: &Tensor, running: usize) -> Result<Tensor, EngineError> {
    let trained = flat.numel() - running;
    let norm = norm_of(flat, 0..trained)?;
    if running == 0 {
        return Ok(norm);
    }
    let nothing = norm_of(flat, trained..flat.numel())?.f_mul_scalar(0.0)?;
    Ok(norm.f_add(&nothing)?)
}

fn norm_of(flat: &Tensor, range: Range<usize>) -> Result<Tensor, EngineError> {
    if range.is_empty() {
        return Ok(Tensor::f_zeros([], (Kind::Double, flat.device()))?);
    }
    let pieces = range.clone().step_by(PIECE).map(|start| {
        let piece = flat.f_narrow(0, start as i64, PIECE.min(range.end - start) as i64)?;
        piece.f_norm_scalaropt_dtype(2.0, Kind::Double)
    });
    let pieces = pieces.collect::<Result<Vec<_>, _>>()?;
    Ok(Tensor::f_stack(&pieces, 0)?.f_square()?.f_sum(Kind::Double)?.f_sqrt()?)
}
